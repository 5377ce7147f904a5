"""Gated pairs: hidden units that are products of two layers of the same inputs, and a layer that reads them.

r inputs of `gate` and `up`, p outputs of each (hidden units) and inputs of `after`, q outputs of `after`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from growth.reading.activations import Activation
from growth.reading.pairs import Both, LayoutName, Pair
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path

HalvesOrder = Literal["gate_up", "up_gate"]
ORDERS = get_args(HalvesOrder)


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

    packed: the path of one layer that holds both, weight `[2 p, r]`, whose output f cuts in two halves (`chunk(2, -1)`, slices,
    `F.glu`); then gate and up are None.  order: which half is which, "gate_up" (the gate first, as in LLaMA's packed forms) or
    "up_gate" (`F.glu`: a * sigmoid(b)); `statistics` holds it against f.  In all that is said of units the two halves are two
    layers.  New rows come last in each half, so that state goes along by `grow_like(..., heads=pair)`, and what was computed
    for the layer before the packed one must be applied before this pair grows (`grow` of a list does so).
    layout: as of a `Pair`, that of gate and up, and that of after.

    Raises ValueError if two of the paths are the same, for gate or up beside packed, another order, or an order without packed;
    TypeError if a path or the activation is of another kind.
    Source: Shazeer, "GLU variants improve transformer" (2020).

    >>> import torch, growth
    >>> from torch.nn.functional import linear, silu
    >>> f = lambda p, x: linear(silu(linear(x, p["gate"])) * linear(x, p["up"]), p["down"])
    >>> p = {"gate": torch.eye(2), "up": torch.ones(2, 2), "down": torch.zeros(1, 2)}
    >>> data, pair = (torch.eye(2), torch.tensor([[1.0], [0.0]])), growth.Gated("gate", "up", "down")
    >>> new = growth.optimal_neurons(growth.statistics(f, p, data, pair, "squared_error"), 1)
    >>> {name: tuple(leaf.shape) for name, leaf in growth.grow(p, pair, new).items()}
    {'gate': (3, 2), 'up': (3, 2), 'down': (1, 3)}
    >>> both, one = (
    ...     {"both": torch.cat([p["gate"], p["up"]]), "down": p["down"]},
    ...     growth.Gated(None, None, "down", packed="both"),
    ... )
    >>> {name: tuple(leaf.shape) for name, leaf in growth.widen(both, one, 1).items()}
    {'both': (6, 2), 'down': (1, 3)}
    """

    before: str | Path = dataclasses.field(init=False)
    norm: None = dataclasses.field(init=False, default=None)
    along: tuple[()] = dataclasses.field(init=False, default=())
    depthwise: None = dataclasses.field(init=False, default=None)
    gate: str | Path | None = None
    up: str | Path | None = None
    packed: str | Path | None = None
    order: HalvesOrder = "gate_up"

    def __init__(
        self,
        gate: str | Path | None,
        up: str | Path | None,
        after: str | Path,
        activation: Activation | None = None,
        layout: LayoutName | Both = "out_in",
        *,
        packed: str | Path | None = None,
        order: HalvesOrder = "gate_up",
    ) -> None:
        given = {"gate": gate, "up": up, "after": after} if packed is None else {"packed": packed, "after": after}
        if packed is not None and (gate is not None or up is not None):
            raise ValueError(f"Gated: got gate={gate!r}, up={up!r} beside packed, expected None: packed holds both")
        if order not in ORDERS:
            raise ValueError(f"Gated: order is {order!r}, expected one of {list(ORDERS)}")
        if packed is None and order != ORDERS[0]:
            raise ValueError(f"Gated: order is {order!r} without packed, expected none: gate and up are named")
        for name, path in given.items():
            if not isinstance(path, (str, tuple)):
                raise TypeError(
                    f"Gated: {name} is a {type(path).__name__}, expected a dotted string or a tuple of keys"
                )
        found = [path_str(path) for path in given.values()]  # type: ignore[arg-type]
        if len(set(found)) < len(given):
            raise ValueError(f"Gated: got {found}, expected {'three' if packed is None else 'two'} layers")
        for name, value in {
            "gate": gate,
            "up": up,
            "after": after,
            "packed": packed,
            "order": order,
            "before": up if packed is None else packed,
            "activation": activation,
            "norm": None,
            "layout": layout,
            "depthwise": None,
        }.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The dotted paths of the layers of both sides, the same however they are written; of a packed one with the order.

        >>> Gated("a", "b", ("net", 0)).names, Gated(None, None, "c", packed="ab").names
        ((('a', 'b'), ('net.0',)), (('ab', 'gate_up'), ('c',)))
        """
        after = (path_str(self.after),)  # type: ignore[arg-type]
        if self.packed is not None:
            return (path_str(self.packed), self.order), after
        return (path_str(self.gate), path_str(self.up)), after  # type: ignore[arg-type]

    @property
    def swapped(self) -> Gated:
        """A packed pair with its halves in the other order.

        >>> print(Gated(None, None, "c", packed="ab").swapped)
        Gated(packed='ab', after='c', order='up_gate')
        """
        return dataclasses.replace(self, order=ORDERS[1 - ORDERS.index(self.order)])

    def __str__(self) -> str:
        if self.packed is not None:
            parts = [f"packed={path_str(self.packed)!r}", f"after={path_str(self.after)!r}"]  # type: ignore[arg-type]
            parts += [] if self.order == ORDERS[0] else [f"order={self.order!r}"]
            return f"Gated({', '.join([*parts, *self._others()])})"
        shown = [repr(path_str(p)) for p in (self.gate, self.up, self.after)]  # type: ignore[arg-type]
        return f"Gated({', '.join([*shown, *self._others()])})"

    def __repr__(self) -> str:
        shown = {"gate": self.gate, "up": self.up, "after": self.after, "activation": self.activation}
        shown |= {} if self.packed is None else {"packed": self.packed, "order": self.order}
        return f"Gated({', '.join([*(f'{name}={value!r}' for name, value in shown.items()), *self._others()])})"
