"""Settings that are numbers, or functions of the number of the step: 0, 1, 2, ...; what is due at a step."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.checks import number
from linmaps.trees.printed import on_a_line

Schedule = float | Tensor | Callable[[int], float | Tensor]


def check_schedule(value: Any, name: str, **bounds: Any) -> None:
    """Raise unless value is a number within the bounds, or a function, whose values are looked at as they come."""
    if not callable(value):
        number(value, name, **bounds, cure="or a function of the number of the step")
        return
    try:
        inspect.signature(value).bind(0)
    except TypeError:
        raise TypeError(
            f"{name}: got a function of other arguments, expected one of the number of the step, 0, 1, ...: lambda step: 0.1"
        ) from None
    except ValueError:  # one without a signature, whose own error will say so
        return


def scheduled(value: Schedule, step: int, name: str, like: Tensor, **bounds: Any) -> float | Tensor:
    """The value at a step; ValueError for one out of bounds, TypeError for a tensor elsewhere than `like`.

    >>> import torch
    >>> scheduled(lambda step: 0.1 / (1 + step), 1, "rate", torch.ones(1)), scheduled(0.1, 0, "rate", torch.ones(1))
    (0.05, 0.1)
    """
    found = value
    if callable(value):
        found = value(step)
        number(found, f"{name}({step})", **bounds)
    if isinstance(found, Tensor) and found.device not in (like.device, torch.device("cpu")):
        raise TypeError(f"{name}: got a tensor on {found.device}, expected one on {like.device}; move it with .to(...)")
    made: float | Tensor = found  # type: ignore[assignment]
    return made


@trees.record(static=("factors", "bases", "first", "adapts"))
class Turn:
    """What the number of a step decides: whose turn it is (settings of a graph), and what schedules say (its tensors)."""

    factors: bool = True
    bases: bool = True
    first: bool = False
    adapts: bool = False
    numbers: Any = ()

    def at(self, name: str, value: Schedule, like: Tensor, **bounds: Any) -> float | Tensor:
        """The value of a setting at this step."""
        return scheduled(dict(self.numbers).get(name, value), 0, name, like, **bounds)

    def in_tensors(self, like: Tensor) -> Turn:
        """The same with tensors in place of numbers: a graph takes others at each step."""
        numbers = {
            name: torch.as_tensor(value, dtype=like.dtype, device=like.device)
            for name, value in dict(self.numbers).items()
        }
        return dataclasses.replace(self, numbers=numbers)

    def __repr__(self) -> str:
        due = [name for name in ("factors", "bases", "first", "adapts") if getattr(self, name)]
        return on_a_line(self, [*due, *dict(self.numbers)])


def scheduled_at(step: int, settings: Mapping[str, tuple[Any, Mapping[str, Any]]], like: Tensor) -> dict[str, Any]:
    """{name: value at the step} of those of `{name: (setting, bounds)}` that are functions of it.

    >>> import torch
    >>> scheduled_at(3, {"rate": (lambda step: step / 2, {"low": 0}), "momentum": (0.9, {})}, torch.ones(1))
    {'rate': 1.5}
    """
    moving = {name: own for name, own in settings.items() if callable(own[0])}
    return {name: scheduled(value, step, name, like, **bounds) for name, (value, bounds) in moving.items()}
