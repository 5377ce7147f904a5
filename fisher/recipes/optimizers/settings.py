"""What the arguments of `kfac` say, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

from torch import Tensor

from fisher.collector.collection import LayerCollection
from fisher.recipes.optimizers.curvature import Damped
from fisher.recipes.optimizers.schedules import Schedule, check_schedule, scheduled_at
from linmaps.checks import number, size
from linmaps.trees.mappings import is_mapping

Loss = Callable[[Any, Any], Tensor]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Damping, lengths and constraints of the steps of `kfac`, which says what they are."""

    damping: Any  # a Schedule, or a mapping {layer: number}
    adapt: bool
    rate: Schedule | None
    momentum: Schedule
    clip: float | None
    weight_decay: Schedule
    loss: Loss | None
    l2: float
    norm_constraint: float | None
    adapt_every: int
    factor: float
    lower: float
    upper: float
    minimum: float
    kind: Damped
    forget: float

    def __post_init__(self) -> None:
        if is_mapping(self.damping):
            for name, r in self.damping.items():
                number(r, f"damping: {name}", low=0, cure="one for each layer")
        else:
            check_schedule(self.damping, "damping", low=0)
        check_schedule(self.momentum, "momentum", low=0, high=1, below=True)
        check_schedule(self.weight_decay, "weight_decay", low=0)
        if self.rate is not None:
            check_schedule(self.rate, "rate", low=0)
        for name in ("clip", "norm_constraint"):
            if getattr(self, name) is not None:
                number(getattr(self, name), name, low=0, above=True, tensor=False)
        for name in ("l2", "factor", "lower", "upper", "minimum"):
            number(getattr(self, name), name, low=0, tensor=False)
        number(self.forget, "forget", low=0, high=1, tensor=False)
        size(self.adapt_every, "adapt_every", 1, cure="a number of steps")
        if not self.factor > 1 or not 0 < self.lower < self.upper:
            raise ValueError(
                f"got factor={self.factor}, lower={self.lower}, upper={self.upper}, expected factor > 1 and 0 < lower < upper"
            )
        if self.norm_constraint is not None and self.rate is None:
            raise ValueError(
                "norm_constraint: got it with rate=None, expected a rate; the exact length needs none, and clip bounds it too"
            )
        if self.loss is not None and not callable(self.loss):
            raise TypeError(
                f"loss: got {type(self.loss).__name__}, expected a function (params, batch) -> scalar or [B]"
            )
        if self.kind not in get_args(Damped):
            raise ValueError(f"kind: got {self.kind!r}, expected one of {list(get_args(Damped))}")

    def of_layers(self, damping: Any, layers: LayerCollection) -> Any:
        """What is added to F: damping + l2, or {layer: damping times its number + l2}; ValueError for other layers."""
        if not is_mapping(self.damping):
            return damping + self.l2
        expected = [layer.name for layer in layers]
        if set(self.damping) != set(expected):
            raise ValueError(
                f"damping: got numbers for {list(self.damping)}, expected one for each layer of {expected}"
            )
        return {name: damping * self.damping[name] + self.l2 for name in expected}

    def due(self, n: int) -> bool:
        """Whether the damping is adapted at step n."""
        return self.adapts and (n + 1) % self.adapt_every == 0

    def at(self, n: int, like: Tensor) -> dict[str, Any]:
        """The values at step n of the settings that are functions of it."""
        low = {"low": 0}
        own: dict[str, Any] = {"damping": (self.damping, low), "weight_decay": (self.weight_decay, low)}
        if self.rate is not None:
            own |= {"rate": (self.rate, low), "momentum": (self.momentum, {"low": 0, "high": 1, "below": True})}
        return scheduled_at(n, own, like)

    @property
    def adapts(self) -> bool:
        """Whether the damping follows the ratio: a schedule is not adapted."""
        return self.adapt and not callable(self.damping)

    @property
    def numbered(self) -> bool:
        """Whether what is done depends on the number of the step."""
        moving = any(map(callable, (self.damping, self.rate, self.momentum, self.weight_decay)))
        return moving or (self.adapts and self.adapt_every > 1)
