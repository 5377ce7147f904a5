"""Records of a pair that a function is given: of which kind, of which pair, and whole?"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from linmaps.checks import alike


@dataclasses.dataclass(frozen=True)
class Axes:
    """The axes of each tensor of a record: equal letters are equal sizes.

    of: a letter per axis, by name; a name that ends in ? may be None, a * stands for axes in front.
    cast: whether tensors of several dtypes stand together, since each is cast where it goes.
    """

    of: dict[str, str]
    cast: bool = False


def owned(record: Any, name: str, pair: Any, kind: type, made: str) -> None:
    """Raise a TypeError unless a record is of its kind, a ValueError unless it is of that pair (where both are known).

    A record says in a class variable `axes` what shapes its tensors have; they are held against it.
    pair: a Pair, or a record that knows its own, told apart by their `names`; made: what makes such records.

    >>> import torch, growth
    >>> new = growth.Delta(torch.ones(1, 1), None, torch.ones(()), pair=growth.Pair("a", "b"))
    >>> owned(new, "delta", growth.Pair("b", "c"), growth.Delta, "optimal_delta")
    Traceback (most recent call last):
    ValueError: delta: is of Pair('a', 'b'), expected one of Pair('b', 'c'); give what optimal_delta made for this pair ...
    """
    if not isinstance(record, kind):
        raise TypeError(f"{name}: got {type(record).__name__}, expected a growth.{kind.__name__}, of {made}")
    axes = getattr(record, "axes", None)
    if axes is not None:
        _whole(record, name, axes)
    own, other = getattr(record, "pair", None), getattr(pair, "pair", pair)
    here, there = (getattr(p, "names", None) for p in (own, other))
    if here is not None and there is not None and here != there:
        raise ValueError(
            f"{name}: is of {own}, expected one of {other}; give what {made} made for this pair (of the same layers under other "
            f"names: dataclasses.replace({name}, pair=None))"
        )


def _whole(record: Any, name: str, axes: Axes) -> None:
    """Raise unless the tensors of a record are real, of one dtype and device, and of shapes that fit each other."""
    sizes: dict[str, int] = {}
    first: Tensor | None = None
    for key, letters in axes.of.items():
        t = getattr(record, key.rstrip("?"))
        where = f"{name}: {key.rstrip('?')}"
        if t is None and key.endswith("?"):
            continue
        if not isinstance(t, Tensor) or not t.is_floating_point():
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"{where}: got {got}, expected a real floating tensor")
        first = t if first is None or axes.cast else first
        alike(t, where, first, f"{name}: {next(iter(axes.of))}")
        shape = tuple(t.shape)[-2:] if letters.startswith("*") else tuple(t.shape)
        letters = letters.removeprefix("*")
        if len(shape) != len(letters) or any(sizes.setdefault(a, n) != n for a, n in zip(letters, shape)):
            want = ", ".join(str(sizes.get(a, a)) for a in letters)
            every = ", ".join(f"{k.rstrip('?')} [{', '.join(a.strip('*'))}]" for k, a in axes.of.items() if a)
            raise ValueError(
                f"{where}: got shape {tuple(t.shape)}, expected [{want}], as of {every}; make records by their "
                "functions, map over an ensemble with torch.func.vmap"
            )
