"""Records of a pair that a function is given: of which kind, of which pair, and whole?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from growth.reading.pairs import Pair, layer_names
from linmaps.checks import alike


def owned(record: Any, name: str, pair: Any, kind: type, made: str) -> None:
    """Raise a TypeError unless a record is of its kind, a ValueError unless it is of that pair (where both are known).

    pair: a Pair, or a record that knows its own; made: what makes such records.

    >>> import torch, growth
    >>> new = growth.Delta(torch.ones(1, 1), None, torch.ones(()), pair=Pair("a", "b"))
    >>> owned(new, "delta", Pair("b", "c"), growth.Delta, "optimal_delta")
    Traceback (most recent call last):
    ValueError: delta: is of Pair('a', 'b'), expected one of Pair('b', 'c'); give what optimal_delta made for this pair ...
    """
    if not isinstance(record, kind):
        raise TypeError(f"{name}: got {type(record).__name__}, expected a growth.{kind.__name__}, of {made}")
    if kind.__name__ in SHAPES:
        _whole(record, name, SHAPES[kind.__name__])
    own, other = getattr(record, "pair", None), pair if isinstance(pair, Pair) else getattr(pair, "pair", None)
    if own is not None and other is not None and layer_names(own) != layer_names(other):
        raise ValueError(
            f"{name}: is of {own}, expected one of {other}; give what {made} made for this pair (of the same layers under other "
            f"names: dataclasses.replace({name}, pair=None))"
        )


SHAPES = {  # the axes of each tensor of a record: equal letters are equal sizes; what ends in ? may be absent
    "Statistics": {"S": "aa", "M": "aq", "S_prev": "bb", "M_prev": "bt", "P": "*ba", "E": "qq"}
    | dict.fromkeys(("count", "positions", "sigma0", "slope_plus", "slope_minus"), ""),
    "Delta": {"weight": "qp", "bias?": "q", "decrease": ""},
    "Neurons": {
        "fan_in": "kr",
        "fan_in_bias?": "k",
        "fan_out": "qk",
        "eigenvalues": "e",  # hand-picked units keep those of all
        "gains": "g",
        "gain": "",
        "sigma0": "",
    },
}


def _whole(record: Any, name: str, shapes: dict[str, str]) -> None:
    """Raise unless the tensors of a record are real, of one dtype and device, and of shapes that fit each other."""
    sizes: dict[str, int] = {}
    first: Tensor | None = None
    for key, axes in shapes.items():
        t = getattr(record, key.rstrip("?"))
        where = f"{name}: {key.rstrip('?')}"
        if t is None and key.endswith("?"):
            continue
        if not isinstance(t, Tensor) or not t.is_floating_point():
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"{where}: got {got}, expected a real floating tensor")
        first = t if first is None or type(record).__name__ != "Statistics" else first  # units are cast where they go
        alike([t], where, [first], f"{name}: S")
        shape = tuple(t.shape)[-2:] if axes.startswith("*") else tuple(t.shape)
        axes = axes.removeprefix("*")
        if len(shape) != len(axes) or any(sizes.setdefault(a, n) != n for a, n in zip(axes, shape)):
            want = ", ".join(str(sizes.get(a, a)) for a in axes)
            every = ", ".join(f"{k.rstrip('?')} [{', '.join(a.strip('*'))}]" for k, a in shapes.items() if a)
            raise ValueError(
                f"{where}: got shape {tuple(t.shape)}, expected [{want}], as of {every}; make records by their "
                "functions, map over an ensemble with torch.func.vmap"
            )
