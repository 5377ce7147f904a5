"""Rows B, a tree `[n, *leaf]`: B v, B'c and B B', in any dtype without a copy of all rows in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.pmat.contract.limits import check_dense
from linmaps import trees
from linmaps.numerics.numeric import eye_like
from linmaps.trees import Layout

CHUNK = 2**24  # numbers of the rows that are cast at once


def _columns(row: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """A leaf's rows `[n, m]` in a dtype, by parts of their columns that are small where they have to be cast."""
    flat = row.flatten(1) if row.ndim > 1 else row[:, None]
    if flat.dtype == dtype:
        return [flat]
    return [t.to(dtype) for t in flat.split(max(1, CHUNK // max(1, len(flat))), 1)]


def products(rows: Any, v: Any) -> Tensor:
    """B v `[*lead, n]` for rows `[n, *leaf]` and a vector, or a map with leading axes; in the dtype of v.

    >>> import torch
    >>> products({"w": torch.eye(2)}, {"w": torch.tensor([3.0, 4.0])})
    tensor([3., 4.])
    """
    parts = []
    for r, t in zip(trees.leaves(rows), trees.leaves(v)):
        columns = _columns(r, t.dtype)
        lead = tuple(t.shape[: t.ndim - (r.ndim - 1)])
        flat = t.reshape((*lead, sum(c.shape[1] for c in columns)))
        parts += [s @ c.mT for s, c in zip(flat.split([c.shape[1] for c in columns], -1), columns)]
    return sum(parts[1:], parts[0])


def combination(rows: Any, c: Tensor, dtype: torch.dtype | None = None) -> Any:
    """B'c, a tree `[*lead, *leaf]`, for c `[*lead, n]`; computed in the dtype of c, given in `dtype` (None: the same).

    >>> import torch
    >>> combination({"w": torch.eye(2)}, torch.tensor([3.0, 4.0]))
    {'w': tensor([3., 4.])}
    """

    def one(r: Tensor) -> Tensor:
        parts = [(c @ columns).to(c.dtype if dtype is None else dtype) for columns in _columns(r, c.dtype)]
        return torch.cat(parts, -1).reshape((*c.shape[:-1], *r.shape[1:]))

    return trees.map(one, rows)


def gram(rows: Any, dtype: torch.dtype | None = None, left: Tensor | None = None) -> Tensor:
    """B B' `[n, n]`, in `dtype` (None: that of the rows); left: of the rows left B."""
    flat = trees.leaves(rows)
    check_dense(
        len(flat[0]), "the Gram matrix of the rows of a PMatLowRank", "use PMatDense or PMatDiag", dtype=flat[0].dtype
    )
    columns = [c for r in flat for c in _columns(r, r.dtype if dtype is None else dtype)]
    parts = [c @ c.mT for c in (columns if left is None else (left @ c for c in columns))]
    return sum(parts[1:], parts[0])


def orthonormal(rows: Any, left: Tensor) -> Tensor:
    """left, such that left B has orthonormal rows, with the rounding of weak directions removed by two Newton steps."""
    G, eye = gram(rows, left.dtype, left), eye_like(left, len(left))
    for _ in range(2):
        step = 1.5 * eye - G / 2
        left, G = step @ left, step @ G @ step
    return left


def row_layout(rows: Any) -> Layout:
    """The layout of one of the rows."""
    whole = Layout.of(rows)
    return Layout(whole.treedef, tuple(s[1:] for s in whole.shapes))
