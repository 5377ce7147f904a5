"""Gated pairs: hidden units that are products of two layers of the same inputs, and a layer that reads them.

r inputs of `gate` and `up`, p outputs of each (hidden units) and inputs of `after`, q outputs of `after`.
"""

from __future__ import annotations

import dataclasses

from growth.reading.activations import Activation
from growth.reading.pairs import Both, LayoutName, Pair
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path


@trees.static
@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Gated(Pair):
    """Three layers `a = W (σ(G x + g) * (U x + c)) + b` between which hidden units can be added: SwiGLU, GEGLU, bilinear.

    gate, up: paths of the layers G and U, weights `[p, r]`; after: that of W, `[q, p]`; each with a bias or without.
    activation: the elementwise map σ of the gate; None lets `statistics` find it among the usual ones (identity, SiLU,
    GELU, sigmoid, ReLU, tanh, softplus), by what f does.  A name is held against f in any case.

    It is a pair (up, after) whose units are multiplied by a gate, and is taken wherever a `Pair` is.  A new unit has a row
    in gate and in up.  At amplitude t the gate's row is taken as it is, up and out go with √t each, so that the slope in t
    is not zero: that of σ(a x) (u x) (w G) for a gate row a, which `statistics(..., gates=)` is given.

    layout: as of a `Pair`, that of gate and up, and that of after.

    Raises ValueError if two of the paths are the same, TypeError if a path or the activation is of another kind.
    Source: Shazeer, "GLU variants improve transformer" (2020).

    >>> import torch, growth
    >>> from torch.nn.functional import linear, silu
    >>> f = lambda p, x: linear(silu(linear(x, p["gate"])) * linear(x, p["up"]), p["down"])
    >>> p = {"gate": torch.eye(2), "up": torch.ones(2, 2), "down": torch.zeros(1, 2)}
    >>> data, pair = (torch.eye(2), torch.tensor([[1.0], [0.0]])), growth.Gated("gate", "up", "down")
    >>> new = growth.optimal_neurons(growth.statistics(f, p, data, pair, "squared_error"), 1)
    >>> {name: tuple(leaf.shape) for name, leaf in growth.grow(p, pair, new).items()}
    {'gate': (3, 2), 'up': (3, 2), 'down': (1, 3)}
    """

    before: str | Path = dataclasses.field(init=False)
    norm: None = dataclasses.field(init=False, default=None)
    along: tuple[()] = dataclasses.field(init=False, default=())
    depthwise: None = dataclasses.field(init=False, default=None)
    gate: str | Path = ()
    up: str | Path = ()

    def __init__(
        self,
        gate: str | Path,
        up: str | Path,
        after: str | Path,
        activation: Activation | None = None,
        layout: LayoutName | Both = "out_in",
    ) -> None:
        given = {"gate": gate, "up": up, "after": after}
        for name, path in given.items():
            if not isinstance(path, (str, tuple)):
                raise TypeError(
                    f"Gated: {name} is a {type(path).__name__}, expected a dotted string or a tuple of keys"
                )
        if len({path_str(path) for path in given.values()}) < 3:
            raise ValueError(f"Gated: got {[path_str(path) for path in given.values()]}, expected three layers")
        for name, value in {
            **given,
            "before": up,
            "activation": activation,
            "norm": None,
            "layout": layout,
            "depthwise": None,
        }.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The dotted paths of the layers of both sides, the same however they are written.

        >>> Gated("a", "b", ("net", 0)).names
        (('a', 'b'), ('net.0',))
        """
        return (path_str(self.gate), path_str(self.up)), (path_str(self.after),)  # type: ignore[arg-type]

    def _bare(self) -> Gated:
        return Gated(self.gate, self.up, self.after, layout=self.layout)  # type: ignore[arg-type]

    def __str__(self) -> str:
        shown = [repr(path_str(p)) for p in (self.gate, self.up, self.after)]  # type: ignore[arg-type]
        return f"Gated({', '.join([*shown, *self._others()])})"

    def __repr__(self) -> str:
        shown = {"gate": self.gate, "up": self.up, "after": self.after, "activation": self.activation}
        return f"Gated({', '.join([*(f'{name}={value!r}' for name, value in shown.items()), *self._others()])})"
