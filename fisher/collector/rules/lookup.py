"""Rules for tables: `F.embedding`, `W[index]`, `index_select`, and tables of positions that are added."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fisher.collector.rules import forms
from fisher.collector.rules.match import Lookup, Match, View, bind, spoken


def embedding(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.embedding(index, W, padding_idx)`: one row of W for each index, and no use at all at padding_idx.

    ValueError for max_norm (it changes W in place) and scale_grad_by_freq (its gradient is no derivative).
    """
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    index, w, padding, max_norm, _, by_freq, _ = bind(names, args, kwargs, (None, None, None, None, 2.0, False, False))
    seen = view(w)
    if seen is None:
        return None
    for name, on in (("max_norm", max_norm is not None), ("scale_grad_by_freq", by_freq)):
        if on:
            raise ValueError(
                f"{spoken(seen.path)}: embedding with {name}, expected a plain table; what it does to the weight or to the "
                f"gradient is no function of the parameters: leave {name} out"
            )
    return _table(index, w, seen, padding)


def getitem(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`W[index]` with a tensor of ints."""
    w, index = args
    seen = view(w)
    return _table(index, w, seen, None) if seen is not None else None


def index_select(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`W.index_select(0, index)`."""
    w, dim, index = bind(("input", "dim", "index"), args, kwargs, (None, None, None))
    seen = view(w)
    return _table(index, w, seen, None) if seen is not None and dim == 0 else None


def _table(index: Any, w: Tensor, seen: Any, padding: int | None) -> Match | None:
    ints = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not ints or index.ndim == 0 or w.ndim != 2 or not seen.whole:
        return None
    return Match("embedding", seen, None, index, forms.Lookup(True, w.shape[0], padding))


def constant_rows(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> View | None:
    """The view that a lookup with an index that no data enter gives: rows of a table of positions, `W[arange(T)]`, and of a
    table `[1, T, O]` its first positions, `W[:, :t]`."""
    if func is torch.Tensor.__getitem__ and (seen := view(args[0])) is not None and seen.whole:
        rows = _middle(args[1], args[0])
        if rows is not None:
            return dataclasses.replace(seen, index=rows)
    match = _LOOKUPS[func](args, kwargs, view) if func in _LOOKUPS else None
    if match is None or match.weight is None or match.inputs is None or match.inputs.ndim > 2:
        return None
    if match.form.padding_idx is not None or (match.inputs.ndim == 2 and len(match.inputs) > 1):  # type: ignore[attr-defined]
        return None
    return dataclasses.replace(match.weight, index=match.inputs.flatten())


def _middle(index: Any, w: Tensor) -> Tensor | None:
    """The rows of `[1, T, O]` that `w[:, a:b]` takes."""
    if not isinstance(index, tuple) or w.ndim != 3 or w.shape[0] != 1 or not 2 <= len(index) <= 3:
        return None
    every, some, *rest = (slice(None) if i is ... else i for i in index)
    if every != slice(None) or not isinstance(some, slice) or rest not in ([], [slice(None)]):
        return None
    return torch.arange(w.shape[1], device=w.device)[some]


_LOOKUPS = {
    F.embedding: embedding,
    torch.Tensor.__getitem__: getitem,
    torch.index_select: index_select,
    torch.Tensor.index_select: index_select,
}


def positions(z: Tensor, own: tuple[int, ...], seen: View) -> Match | None:
    """A table that is added to all examples, a row for each position: a lookup whose index is the position.

    z `[.., T, .., O]`, of whose axes before the last the table `own` has one, and is broadcast over the other.
    """
    lead = (1,) * (z.ndim - len(own)) + own[:-1]
    axes = [k for k, n in enumerate(lead) if n > 1]
    rows = [n for n in seen.leaf[:-1] if n > 1]
    if any(n not in (1, m) for n, m in zip((*lead, own[-1] if own else 1), z.shape)):  # z is repeated, not the table
        return None
    if z.ndim != 3 or len(axes) != 1 or len(rows) != 1 or own[-1] != z.shape[-1] or own[-1] == 1 or seen.transposed:
        return None
    (axis,), (size,) = axes, rows
    index, first = seen.index, 0 if seen.rows is None else seen.rows[0]
    if seen.leaf[-1] != own[-1] or (seen.rows is not None and len(seen.leaf) > 2):
        return None
    if index is None:
        index = torch.arange(first, first + lead[axis], device=z.device)
    if len(index) != lead[axis] or (seen.rows is None and seen.index is None and lead[axis] != size):
        return None
    index = index.reshape([len(index) if k == axis else 1 for k in range(z.ndim - 1)]).expand(z.shape[:-1])
    table = None if len(seen.leaf) == 2 else (size, own[-1])
    plain = dataclasses.replace(seen, rows=None, index=None, shape=None)
    return Match("positions", plain, None, index, forms.Lookup(True, size, None, table))


def gathered(z: Tensor, addresses: Tensor, seen: View) -> Match | None:
    """Entries of a table `[V, O]` that are added to all examples, in any order of axes, as a relative bias `[1, O, T, T]` is.

    addresses: of what is added, the numbers of its entries in the table; seen: the table.
    """
    shape = tuple(n for n in seen.leaf if n > 1)
    if len(shape) != 2 or addresses.ndim > z.ndim or not seen.whole:
        return None
    places = addresses.reshape((1,) * (z.ndim - addresses.ndim) + tuple(addresses.shape))
    if (places.shape[0] != 1 and z.ndim > 1) or any(n not in (1, m) for n, m in zip(places.shape, z.shape)):
        return None
    rows, columns = places // shape[1], places % shape[1]
    for axis in range(z.ndim):
        if places.shape[axis] != shape[1]:
            continue
        order = torch.arange(shape[1], device=places.device).reshape([-1 if k == axis else 1 for k in range(z.ndim)])
        if torch.equal(columns, order.expand_as(columns)) and torch.equal(
            rows, rows.narrow(axis, 0, 1).expand_as(rows)
        ):
            index = rows.select(axis, 0).expand(*z.shape[:axis], *z.shape[axis + 1 :])
            table = None if len(seen.leaf) == 2 else shape
            form = forms.Lookup(True, shape[0], None, table, None if axis == z.ndim - 1 else axis)
            return Match("positions", seen, None, index, form)
    return None


def token(t: Tensor, seen: View) -> Match | None:
    """A leaf that is put beside the data, the same for all examples: a bias alone, or a table with a row for each position.

    t: the leaf as it stands there, repeated along the axis of the examples.
    """
    own = seen.leaf if seen.shape is None else seen.shape
    if seen.transposed or seen.rows is not None or seen.index is not None or not own or own[-1] != t.shape[-1]:
        return None
    if math.prod(own[:-1]) > 1:
        return positions(t, own, seen)
    return Match("bias", None, dataclasses.replace(seen, shape=None), None)
