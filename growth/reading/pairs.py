"""Pairs: two layers with nothing but what acts on each unit alone between, by their paths in params.

r inputs of `before`, p its outputs (hidden units) and inputs of `after`, q outputs of `after`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

from growth.reading.activations import Activation
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path

LayoutName = Literal["out_in", "in_out"]
LAYOUTS = get_args(LayoutName)
Both = tuple[LayoutName, LayoutName]


@trees.static
@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Sum:
    """Layers whose outputs f adds: a merge node with several predecessors.

    As `before` of a Pair: all lead to the hidden units, so a new unit gets inputs from each.  As `after`: the first reads
    the hidden units, and the change of weights is solved for all together.  One bias among them is enough.

    Raises ValueError for fewer than two layers or the same one twice, TypeError for what is no path.

    >>> Sum("main", "skip")
    Sum('main', 'skip')
    """

    layers: tuple[str | Path, ...]

    def __init__(self, *layers: str | Path) -> None:
        for path in layers:
            _check_path(path, "Sum: a layer")
        if len({path_str(path) for path in layers}) != len(layers) or len(layers) < 2:
            raise ValueError(f"Sum: got {layers}, expected two or more layers")
        object.__setattr__(self, "layers", layers)

    def __repr__(self) -> str:
        return f"Sum({', '.join(repr(path_str(p)) for p in self.layers)})"


@trees.static
@dataclasses.dataclass(frozen=True, repr=False)
class Pair:
    """Two layers `z = U b2 + c`, `a = W activation(z) + b` between which hidden units can be added.

    before, after: paths of the layers, dotted strings or tuples of keys; `"hidden"` names the leaves `hidden.weight`
    `[p, r]` and `hidden.bias` `[p]` (which may be absent), in nested dicts as in flat ones with dotted keys.  Two
    convolutions without groups, weights `[p, r, *kernel]` and `[q, p, *kernel]`, are a pair too, and so are a
    convolution and the dense layer behind its flattened map, weight `[q, p m]` for m positions.  p may be 0; but
    torch's convolutions know no width 0: start from one unit of zeros, and `prune` it once there are others.
    A dense layer before a convolution, `[p m, r]` and `[q, p, *kernel]`, has m rows for each unit (f makes maps of m positions of
    its output): `widen`, `prune`, `cut`, `restore`, `rescale` and the states know them, closed forms do not.
    Either may be a `Sum` of layers whose outputs f adds.
    activation: the elementwise map between them; None lets `statistics` read it from what f does (behind a Sum name it), and
    with it what joins the positions of each unit's map: average, largest and lp pooling, adaptive ones, means over the map,
    padding of every mode, upsampling; flattening, and dropout in eval mode; and one of the usual activations where f writes it
    out in several calls, as the GELU of GPT-2 is.  Of averages and padding the closed forms are
    exact.  Through a maximum (or a power) they see the positions that the units there are choose now, and `choose_sign`
    gives the slopes of the new ones.
    norm: path of a batch norm between them, whose leaves (weight, bias, running_mean, running_var) `[p]` grow along; a list
    of several.
    along: paths of the activation's own leaves with one number per unit, as of `torch.nn.PReLU(p)`, which grow along; new
    entries are .25, as torch initialises them.  `statistics` finds those of PReLU, and its records keep them, so that `grow`
    needs none; functions that see neither f nor a record of it (`prune`, `widen`, `initialize`) must be told.  A leaf with one
    number for all units is none of them and stays as it is: that of torch's `PReLU()` at any width, 1 among them.
    depthwise: path of a depthwise convolution between them (weight `[p, 1, *kernel]`, bias `[p]`), as between the 1 x 1
    convolutions of MobileNet, which grows along: a new kernel is 1 at its centre, so that a new unit is read where it is.
    layout: how the weights are stored, "out_in" as above (F.linear, convolutions), or "in_out": `[r, p]` used as x @ W, and
    `[r, p, *kernel]` of transposed convolutions; one for both layers, or a tuple of one for each.  In all that is said of units
    weights are [out, in], however they are stored.  A table `[V, p]` (F.embedding) may be `before`: its rows are its inputs,
    r = V, and statistics hold a moment `[V, V]` of them; of units found in data the entries at its padding row are 0, and of
    those of `widen` with f and x; elsewhere (`initialize`) zero them by hand.

    Raises ValueError if the two paths are the same and for an unknown layout, TypeError if a path or the activation is of another
    kind.

    >>> Pair("hidden", "output"), str(Pair("hidden", ("net", 2), norm="net.1"))
    (Pair(before='hidden', after='output', activation=None, norm=None), "Pair('hidden', 'net.2', norm='net.1')")
    >>> Pair("hidden", "output", along=("act.weight",)).along
    ('act.weight',)
    """

    before: str | Path | Sum
    after: str | Path | Sum
    activation: Activation | None = None
    norm: str | Path | Sequence[str | Path] | None = None
    along: tuple[str | Path, ...] = ()
    layout: LayoutName | Both = "out_in"
    depthwise: str | Path | None = None

    def __post_init__(self) -> None:
        check_layout(self.layout)
        if isinstance(self.norm, list):
            object.__setattr__(self, "norm", tuple(p if isinstance(p, tuple) else (p,) for p in self.norm))
        norms = [("norm", path) for path in self.norms]
        between = [] if self.depthwise is None else [("depthwise", self.depthwise)]
        for name, path in (("before", self.before), ("after", self.after), *norms, *between):
            if not isinstance(path, Sum):
                _check_path(path, f"Pair: {name}")
        if not isinstance(self.along, tuple):
            raise TypeError(f"Pair: along is a {type(self.along).__name__}, expected a tuple of paths of leaves")
        for path in self.along:
            _check_path(path, "Pair: one of along")
        object.__setattr__(self, "along", tuple(sorted({path_str(path) for path in self.along})))
        both = {path_str(p) for p in parts(self.before)} & {path_str(p) for p in parts(self.after)}
        if both:
            raise ValueError(f"Pair: before and after are both {both.pop()!r}, expected two layers")
        if self.activation is not None and not callable(self.activation):
            raise TypeError(f"Pair: activation is {self.activation!r}, expected a callable of one tensor, or None")

    @property
    def norms(self) -> tuple[str | Path, ...]:
        """The paths of the norms between the layers.

        >>> Pair("a", "b", norm=["n", ("net", 1)]).norms
        (('n',), ('net', 1))
        """
        several = isinstance(self.norm, tuple) and bool(self.norm) and all(isinstance(p, tuple) for p in self.norm)
        return () if self.norm is None else self.norm if several else (self.norm,)  # type: ignore[return-value]

    @property
    def layouts(self) -> Both:
        """How the weights of `before` and of `after` are stored.

        >>> Pair("a", "b", layout="in_out").layouts
        ('in_out', 'in_out')
        """
        return self.layout if isinstance(self.layout, tuple) else (self.layout, self.layout)

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The dotted paths of the layers of both sides, the same however they are written.

        >>> Pair("a", ("net", 0)).names
        (('a',), ('net.0',))
        """
        return tuple(map(path_str, parts(self.before))), tuple(map(path_str, parts(self.after)))

    def __str__(self) -> str:
        shown = [repr(p) if isinstance(p, Sum) else repr(path_str(p)) for p in (self.before, self.after)]
        names = [path_str(p) for p in self.norms]
        norm = [f"norm={(names[0] if len(names) == 1 else names)!r}"] if names else []
        return f"Pair({', '.join([*shown, *norm, *self._others()])})"

    def __repr__(self) -> str:
        shown = [f"{name}={getattr(self, name)!r}" for name in ("before", "after", "activation", "norm")]
        return f"Pair({', '.join([*shown, *self._others()])})"

    def _others(self) -> list[str]:
        layout = [] if self.layout == "out_in" else [f"layout={self.layout!r}"]
        deep = [] if self.depthwise is None else [f"depthwise={path_str(self.depthwise)!r}"]
        return [*([f"along={self.along}"] if self.along else []), *layout, *deep]


def parts(side: Any) -> tuple[Any, ...]:
    """The paths of one side of a pair."""
    return side.layers if isinstance(side, Sum) else (side,)


def check_layout(layout: object) -> None:
    """Raise a ValueError unless it is a layout, or a tuple of two."""
    both = layout if isinstance(layout, tuple) else (layout, layout)
    if len(both) != 2 or not all(isinstance(one, str) and one in LAYOUTS for one in both):
        raise ValueError(f"layout: got {layout!r}, expected one of {list(LAYOUTS)}, or a tuple of two (before, after)")


def _check_path(path: Any, name: str) -> None:
    if not isinstance(path, (str, tuple)):
        raise TypeError(f"{name} is a {type(path).__name__}, expected a dotted string or a tuple of keys")


def as_list(item: Any, count: int, name: str) -> list[Any]:
    """One entry per pair: None and single items are given to each, a list is checked for its length."""
    if not isinstance(item, list):
        return [item] * count
    if len(item) != count:
        raise ValueError(f"{name}: got a list of {len(item)}, expected {count}, one per pair")
    return item


def check_pairs(pair: Pair | Sequence[Pair]) -> tuple[list[Pair], bool]:
    """The pairs as a list, and whether one was given alone."""
    if isinstance(pair, Pair):
        return [pair], True
    if isinstance(pair, (list, tuple)) and pair and all(isinstance(p, Pair) for p in pair):
        return list(pair), False
    raise TypeError(f"pair: got {pair!r}, expected a growth.Pair or a list of them")


def bare(pair: Pair | None) -> Pair | None:
    """The pair as its records keep it: all but the activation, as a callable would make two passes over one differ.

    >>> bare(Pair("a", ("b",), activation=abs, norm="n"))
    Pair(before='a', after=('b',), activation=None, norm='n')
    """
    return None if pair is None else dataclasses.replace(pair, activation=None)
