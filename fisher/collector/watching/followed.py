"""What a call makes of a leaf that it gives in another guise: the views of its results."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from fisher.collector.calls.views import guise, is_transpose, multiple, picks, slices
from fisher.collector.rules.match import View

Found = list[tuple[Tensor, View]]


def views_of(func: Any, args: Any, kwargs: Any, out: Any, v: View) -> Found | None:
    """The results of a call of one view, each with its own; None where no view says what they are."""
    if v.index is not None:
        return _of_rows(func, args, kwargs, out, v)
    if is_transpose(func, args, kwargs) and v.shape is None:
        return [(out, dataclasses.replace(v, transposed=not v.transposed))]
    plain = not v.transposed and v.shape is None
    first = (v.rows or (0, 0))[0]
    cut = slices(func, args, kwargs, out) if plain else None
    if cut is not None:
        return [
            (
                part,
                v
                if part.shape == args[0].shape
                else dataclasses.replace(v, rows=(first + start, first + start + part.shape[0])),
            )
            for part, start in cut
        ]
    taken = picks(func, args, kwargs, out) if plain else None
    if taken is not None:
        return [
            (part, dataclasses.replace(v, rows=(first + k, first + k + 1), shape=tuple(part.shape)))
            for part, k in taken
        ]
    shape = guise(func, args, kwargs, out)
    if shape is not None and shape == tuple(args[0].shape):
        return [(out, v)]
    if shape is not None and not v.transposed:
        own = v.leaf if v.rows is None else (v.rows[1] - v.rows[0], *v.leaf[1:])
        return [(out, dataclasses.replace(v, shape=None if shape == own else shape))]
    factor = multiple(func, args, kwargs)
    return None if factor is None else [(out, dataclasses.replace(v, factor=v.factor * factor))]


def _of_rows(func: Any, args: Any, kwargs: Any, out: Any, v: View) -> Found | None:
    """Of rows of a table: some of them, or another shape."""
    cut = slices(func, args, kwargs, out) if v.shape is None else None
    if cut is not None:
        index: Any = v.index
        return [(part, dataclasses.replace(v, index=index[start : start + part.shape[0]])) for part, start in cut]
    shape = guise(func, args, kwargs, out)
    return None if shape is None else [(out, dataclasses.replace(v, shape=shape))]
