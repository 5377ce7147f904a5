"""What EKFAC adds to KFAC: second moments of the gradients in the eigenbases of its factors.

D[o, i] = 1/B sum over columns and b of ((W' (sum over s of g a') U)[o, i])^2, U [I, I], W [O, O].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.collector.blocks.uses import Layer
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import LeafRows, of_layer
from fisher.collector.products import gradient, joined, product_squares, turned_squares
from fisher.pmat import PMat, PMatEKFAC
from fisher.pmat.decompositions.eigenblocks import left_t, right
from fisher.reducers.base import Options, Reducer, mean
from fisher.reducers.kfac import KFAC
from linmaps.numerics.eigen import eigh

Bases = tuple[Tensor, ...]  # (U, W), or the one basis of a layer that is seen through


class EKFAC(KFAC):
    """All of it at once, from a single batch and a single chunk of columns: inputs and output-gradients are kept."""

    at_once = True
    patched = False

    def keep(self, use: int, a: Tensor) -> Any:
        return super().keep(use, a), a

    def inputs(self, kept: dict[int, Any]) -> Any:
        return {}

    @property
    def by_rows(self) -> tuple[Layer, ...]:
        return self.layers.exact

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        moments, whole = {k: m for k, (m, _) in kept.items()}, {k: a for k, (_, a) in kept.items()}
        inner = super().inputs(moments)
        outer = super().columns(whole, g, rows)
        made = self.factors(inner, outer, 1)
        bases: dict[str, Bases] = {l.name: basis(l, *made[l.name], _rows(l, whole)) for l in self.layers if l.kronecker}
        for l in self._through:
            bases[l.name] = _own_basis(self.through_block(l, made) if self.dense(l) else None, l, self.options.like)
        moved = {n: _moments(self, self.layers[n], U, whole, g, rows) for n, U in bases.items()}
        return outer, bases, moved

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        outer, bases, moved = columns
        return PMatEKFAC(_values(moved, seen), bases, self.blocks(outer, seen), self.layers)


class InBases(Reducer):
    """A reducer for the bases of a matrix that is there."""

    def __init__(self, layers: LayerCollection, options: Options, F: PMatEKFAC) -> None:
        super().__init__(layers, options)
        self.F = F

    @classmethod
    def of(cls, F: PMatEKFAC) -> Callable[[LayerCollection, Options], Reducer]:
        """Makes of the layers a reducer for F's bases."""
        return lambda layers, options: cls(layers, options, F)


class Correction(InBases):
    """The second moments alone, in bases that are there."""

    @property
    def by_rows(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers.exact if layer.name in self.F.bases)

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        return {n: _moments(self, self.layers[n], U, kept, g, rows) for n, U in self.F.bases.items()}

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        return PMatEKFAC(_values(columns, seen), self.F.bases, self.F.exact, self.layers)


class Both(InBases, EKFAC):
    """The factors, and the second moments in bases that are there, from one batch: (PMatKFAC, PMatEKFAC)."""

    def apart(self, inputs: Any, columns: Any) -> tuple[Any, Any]:
        outer, moved = columns
        (inputs, outer), rows = KFAC.apart(self, inputs, outer)
        return (inputs, (outer, moved)), rows

    def inputs(self, kept: dict[int, Any]) -> Any:
        return KFAC.inputs(self, {k: moments for k, (moments, _) in kept.items()})

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        whole = {k: a for k, (_, a) in kept.items()}
        moved = {n: _moments(self, self.layers[n], U, whole, g, rows) for n, U in self.F.bases.items()}
        return KFAC.columns(self, whole, g, rows), moved

    def finish(self, inputs: Any, columns: Any, seen: int) -> Any:
        outer, moved = columns
        F = KFAC.finish(self, inputs, outer, seen)
        exact = {n: m for n, m in F.exact.items() if n not in self.F.bases}  # type: ignore[attr-defined]
        return F, PMatEKFAC(_values(moved, seen), self.F.bases, exact, self.layers)


def basis(layer: Layer, A: Tensor, G: Tensor, rows: int | None = None) -> Bases:
    """Eigenvectors of the two factors; ones for a diagonal one.  rows: of how many inputs A is the second moment."""

    def vectors(m: Tensor, rank: int | None) -> Tensor:
        if m.ndim == 1 + layer.grouped:
            return torch.ones_like(m, dtype=G.dtype)
        return vmap(lambda m: eigh(m, rank)[1])(m) if layer.grouped else eigh(m, rank)[1]

    return vectors(A, rows), vectors(G, None)


def _rows(layer: Layer, inputs: dict[int, Tensor]) -> int | None:
    """How many inputs a layer has in one batch, which is all its factor is made of; None where that is not so."""
    return None if layer.inner else sum(math.prod(inputs[k].shape[:2]) for k in layer.uses)


def _own_basis(block: Tensor | None, layer: Layer, like: Tensor) -> Bases:
    """Eigenvectors of the block of a layer that is seen through; ones where it is kept as a diagonal."""
    return (like.new_ones(layer.numel) if block is None else eigh(block)[1],)


def _moments(
    reducer: Reducer, layer: Layer, bases: Bases, kept: dict[int, Tensor], g: dict[int, Tensor], rows: LeafRows
) -> Any:
    """Sums of squares in the eigenbases, and of the gradients there where the mean is to be subtracted."""
    if layer.by_leaf:
        (Q,), r = bases, of_layer(layer, rows)
        r = r if Q.ndim == 1 else r @ Q
        return (r**2).sum((0, 1)), r.sum((0, 1)) if reducer.options.centered else {}
    U, W = bases
    if layer.inner:
        return _tied_moments(reducer, layer, bases, *reducer.pieces(layer, kept, g))
    a, t = joined(layer, *reducer.pieces(layer, kept, g))
    turned, t = _turned(layer, a, U), _turned(layer, t, W)
    squares = product_squares(layer, turned, t)
    if not reducer.options.centered:
        return squares, {}
    first = gradient(layer, *[[p] if isinstance(p, Tensor) else p for p in _single(reducer, layer, kept, g)])
    thin = 1 + layer.grouped
    first = first if U.ndim == thin else first @ U
    return squares, first if W.ndim == thin else W.mT @ first


def _tied_moments(reducer: Reducer, layer: Layer, bases: Bases, a: list[Tensor], g: list[Tensor]) -> Any:
    U, W = bases
    turn = lambda r: left_t(W, right(r, U))
    squares = turned_squares(layer, a, g, turn)
    return squares, turn(gradient(layer, a, [t.sum(0) for t in g])) if reducer.options.centered else {}


def _turned(layer: Layer, t: Tensor, basis: Tensor) -> Tensor:
    """t in a basis; as it is in that of a diagonal factor."""
    if basis.ndim == 1 + layer.grouped:
        return t
    return torch.einsum("...gi,gij->...gj", t, basis) if layer.grouped else t @ basis


def _single(reducer: Reducer, layer: Layer, kept: dict[int, Tensor], g: dict[int, Tensor]) -> Any:
    a, t = reducer.pieces(layer, kept, g)
    return a, [u.sum(0) for u in t]


def _values(moved: dict[str, Any], seen: int) -> dict[str, Tensor]:
    return {
        n: mean(s, seen) - (m / seen) ** 2 if isinstance(m, Tensor) else mean(s, seen) for n, (s, m) in moved.items()
    }
