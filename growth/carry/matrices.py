"""Fisher matrices over a change of widths: old blocks keep place and value, rows and columns of new parameters are zero.

Their layers have views `[O, I]`, of which sources say what each entry was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisher.collector.collection import LayerCollection
from fisher.pmat import (
    PMat,
    PMatBlockDiag,
    PMatDense,
    PMatDiag,
    PMatEigen,
    PMatEKFAC,
    PMatEye,
    PMatKFAC,
    PMatLowRank,
    PMatMixed,
    PMatQuasiDiag,
    PMatRange,
    PMatSum,
)
from growth.carry.layouts import carried_layers, moves_of, resized
from growth.carry.sources import Source, flat_source, layer_sources
from growth.surgery.moves import Moves
from linmaps import trees
from linmaps.trees import Layout

RECOMPUTE = "compute it anew with fisher.fim(f, grown, data, ...)"


def carried_matrix(F: PMat, moves: Moves) -> Any:
    """The matrix F over params as a matrix over the resized params.

    Raises ValueError for matrices over other params, for those that hold a function of params, and for eigenbases of
    which a part would have to go.

    >>> import torch, fisher
    >>> from growth.surgery.moves import growing
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(1, 1)}
    >>> F = fisher.fim(f, p, torch.ones(2, 1), fisher.PMatDense, "gaussian")
    >>> carried_matrix(F, growing(p, {"w": torch.ones(2, 1)})).to_torch().round()
    tensor([[1., 0.],
            [0., 0.]])
    """
    if isinstance(F, PMatSum):
        return PMatSum(tuple(carried_matrix(G, moves) for G in F.terms))
    if isinstance(F, PMatMixed):
        parts, split = (tuple(carried_matrix(G, moves) for G in F.parts), F.split)
        return PMatMixed(parts, tuple(carried_layers(s, moves) for s in split), carried_layers(F.layers, moves))
    if isinstance(F, (PMatLowRank, PMatRange)):
        return _rows(F, moves)
    if isinstance(F, (PMatEye, PMatDiag, PMatDense)):
        return _whole(F, moves)
    if isinstance(F, PMatEigen) and not isinstance(F.layers, LayerCollection):
        space = resized(F.layers.space, moves)
        flat = flat_source(F.layers.space, moves)
        source = Source(flat, flat, flat, True)
        values, vectors = _eigen(F, {"": source}, moves)
        return PMatEigen(values, vectors, dataclasses.replace(F.layers, space=space))
    if isinstance(F, (PMatKFAC, PMatEKFAC, PMatBlockDiag, PMatQuasiDiag, PMatEigen)):
        return _layerwise(F, moves)
    raise ValueError(
        f"{type(F).__name__}: holds params or functions of them, expected a matrix of numbers alone; {RECOMPUTE}"
    )


def _whole(F: Any, moves: Moves) -> Any:
    layout = resized(F.layout, moves)
    if isinstance(F, PMatEye):
        return PMatEye(F.alpha.clone(), layout)
    if isinstance(F, PMatDiag):
        return PMatDiag(_tree(F.diag, F.layout, moves), layout)
    source = flat_source(F.layout, moves)
    return dataclasses.replace(F, matrix=_picked(F.matrix, source, source), layout=layout)


def _rows(F: Any, moves: Moves) -> Any:
    if isinstance(F, PMatLowRank):
        return PMatLowRank(_tree(F.rows, F.layout, moves, 1), None if F.weights is None else F.weights.clone())
    if moves.pruned is not None:
        raise _no_part(F)
    return PMatRange(F.core.clone(), _tree(F.basis, F.layout, moves, 1), F.rest.clone())


def _layerwise(F: Any, moves: Moves) -> Any:
    new = carried_layers(F.layers, moves)
    at = layer_sources(F.layers, new, moves)
    if isinstance(F, PMatBlockDiag):
        return dataclasses.replace(F, blocks={n: _block(m, at[n]) for n, m in F.blocks.items()}, layers=new)
    if isinstance(F, PMatEigen):
        return PMatEigen(*_eigen(F, at, moves), new)
    if isinstance(F, PMatQuasiDiag):
        cross = {n: _view(c, at[n].rows, at[n].columns[:-1], at[n].changed) for n, c in F.cross.items()}
        return PMatQuasiDiag(_tree(F.diag, F.layout, moves), cross, new)
    exact = {n: _block(m, at[n]) for n, m in F.exact.items()}
    if isinstance(F, PMatKFAC):
        factors = {n: _both(_factor, pair, at[n]) for n, pair in F.factors.items()}
        return dataclasses.replace(F, factors=factors, exact=exact, layers=new)
    if moves.pruned is not None and any(at[n].changed for n in F.bases):
        raise _no_part(F)
    bases: dict[str, tuple[Tensor, ...]] = {
        n: (_basis(pair[0], _entries(at[n])),) if len(pair) == 1 else _both(_basis, pair, at[n])
        for n, pair in F.bases.items()
    }
    values = {
        n: _of_entries(D, at[n]) if len(F.bases[n]) == 1 else _view(D, at[n].rows, at[n].columns, at[n].changed)
        for n, D in F.eigenvalues.items()
    }
    return PMatEKFAC(values, bases, exact, new)


def _entries(at: Source) -> Tensor | None:
    return at.entries if at.changed else None


def _of_entries(D: Tensor, at: Source) -> Tensor:
    return _picked(D, at.entries) if at.changed else D.clone()


def _eigen(F: PMatEigen, at: dict[str, Source], moves: Moves) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    if moves.pruned is not None and any(s.changed for s in at.values()):
        raise _no_part(F)
    values = {n: _of_entries(D, at[n]) for n, D in F.values.items()}
    return values, {n: _basis(U, _entries(at[n])) for n, U in F.vectors.items()}


def _picked(t: Tensor, *sources: Tensor | None) -> Tensor:
    """t with its last axes rearranged by sources, zero where there is none; a source of None leaves its axis."""
    for axis, source in zip(range(-len(sources), 0), sources):
        if source is not None:
            n = t.shape[axis]
            padded = pad(t.movedim(axis, -1), (0, 1)).movedim(-1, axis)
            t = padded.index_select(axis, torch.where(source < 0, n, source).to(t.device))
    return t.clone() if all(s is None for s in sources) else t


def _factor(m: Tensor, source: Tensor | None) -> Tensor:
    """A factor `[n, n]`, or the diagonal `[n]` of one."""
    return _picked(m, *[source] * min(m.ndim, 2))


def _basis(U: Tensor, source: Tensor | None) -> Tensor:
    """An orthogonal basis `[n, n]` (ones `[n]`: the identity), with new axes of its own for new coordinates."""
    moved = _factor(U, source)
    if source is None:
        return moved
    fresh = (source < 0).to(moved)
    return moved + (fresh if U.ndim == 1 else torch.diag(fresh))


def _block(m: Tensor, source: Source) -> Tensor:
    """An exact block `[n, n]`, or the diagonal `[n]` of one; a scalar c stands for c I."""
    return _picked(m, *[source.entries] * m.ndim) if m.ndim and source.changed else m.clone()


def _view(t: Tensor, rows: Tensor, columns: Tensor, changed: bool) -> Tensor:
    return _picked(t, rows, columns) if changed else t.clone()


def _both(fn: Callable[[Tensor, Tensor | None], Tensor], pair: Sequence[Tensor], at: Source) -> tuple[Tensor, Tensor]:
    """fn of the factor of the inputs with the source of the columns, and of that of the outputs with that of the rows."""
    columns, rows = (at.columns, at.rows) if at.changed else (None, None)
    return fn(pair[0], columns), fn(pair[1], rows)


def _tree(v: Any, layout: Layout, moves: Moves, lead: int = 0) -> Any:
    """A tree of this layout (with `lead` axes in front of its leaves) moved."""
    flat, treedef = trees.flatten(v)
    return treedef.unflatten([m.lifted(t.shape[:lead])(t) for t, m in zip(flat, moves_of(layout, moves))])


def _no_part(F: PMat) -> ValueError:
    return ValueError(
        f"{type(F).__name__}: got a matrix in its eigenbasis, expected one of entries or factors, of which a part is a matrix "
        "of that kind; prune the matrix it was made of (PMatKFAC, PMatDense, ...), or compute it anew"
    )
