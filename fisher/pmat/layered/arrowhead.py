"""Arrowhead blocks: a diagonal bordered by one row and column per output unit, the linear algebra of one layer.

Per unit [[diag(d), c], [c', e]]: d `[O, I]` of the weights, e `[O]` of the bias, c `[O, I]` between them (groups may come
in front); V `[K, O, I + 1]` the views `[W | b]` of K vectors.  All by the Schur complement s = e - c' diag(d)^-1 c.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from fisher.pmat.contract.cuts import NO_CUT, Cut
from fisher.pmat.contract.damping import Scalar
from fisher.pmat.contract.limits import PRODUCTS, check_dense
from fisher.pmat.decompositions import spectra
from fisher.pmat.decompositions.precise import precisely, singly
from linmaps import trees
from linmaps.numerics.eigen import cutoff, pinv


@trees.record()
class ArrowheadBlock:
    """The diagonal in the shape of the view `[O, I + 1]`, and the border c `[O, I]`."""

    entries: Tensor
    cross: Tensor
    diagonals: ClassVar[bool] = True

    def _schur(self, regul: Scalar) -> tuple[Tensor, Tensor, Tensor]:
        """d, c / d and s of the matrix + regul I."""
        entries = self.entries + regul
        d, e = entries[..., :-1], entries[..., -1]
        ratio = self.cross / d
        return d, ratio, e - (self.cross * ratio).sum(-1)

    @singly
    def mv(self, V: Tensor) -> Tensor:
        w, b = V[..., :-1], V[..., -1]
        border = torch.cat([self.cross * b[..., None], (self.cross * w).sum(-1, keepdim=True)], -1)
        return self.entries * V + border

    def solve(self, V: Tensor, regul: Scalar, kind: str, cut: Cut = NO_CUT) -> Tensor:
        return self._solve(V, regul, kind, *cut.of(cutoff(self.entries.shape[-1], self.entries.dtype)))

    @precisely
    def _solve(self, V: Tensor, regul: Scalar, kind: str, rtol: float, atol: Scalar) -> Tensor:
        if kind == "lstsq":
            return torch.einsum("...ij,k...j->k...i", self.each(lambda m: pinv(m, rtol=rtol, atol=atol)), V)
        d, ratio, s = self._schur(regul)
        w, b = V[..., :-1], V[..., -1]
        b = (b - (ratio * w).sum(-1)) / s
        return torch.cat([w / d - ratio * b[..., None], b[..., None]], -1)

    @precisely
    def sample(self, Z: Tensor, regul: Scalar) -> Tensor:
        d, ratio, s = self._schur(regul)
        b = Z[..., -1] * s**-0.5
        return torch.cat([Z[..., :-1] * d**-0.5 - ratio * b[..., None], b[..., None]], -1)

    @precisely
    def logdet(self, regul: Scalar) -> Tensor:
        d, _, s = self._schur(regul)
        return spectra.log_abs(d) + spectra.log_abs(s)

    def diag(self) -> Tensor:
        return self.entries

    def matrices(self) -> Tensor:
        """The matrix of each unit, `[..., O, I + 1, I + 1]`."""
        *units, n = self.entries.shape
        check_dense(n, "the matrices of all units of a layer", PRODUCTS, count=math.prod(units), dtype=self.cross.dtype)
        border = torch.nn.functional.pad(self.cross[..., None], (self.cross.shape[-1], 0, 0, 1))
        return torch.diag_embed(self.entries) + border + border.mT

    def each(self, fn, *more: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """fn of the matrix of each unit, and of what there is more of each, `[..., O, ...]`."""
        for _ in range(self.entries.ndim - 1):
            fn = vmap(fn)
        return fn(self.matrices(), *more)

    def dense(self) -> Tensor:
        return self.spread(self.matrices())

    def spread(self, matrices: Tensor) -> Tensor:
        """One matrix `[n, n]` with a matrix per unit on its diagonal."""
        check_dense(self.entries.numel(), "a dense block of a layer", PRODUCTS, dtype=self.cross.dtype)
        return torch.block_diag(*matrices.flatten(0, -3).unbind(0))

    @singly
    def squares(self) -> Tensor:
        return (self.entries**2).sum() + 2 * (self.cross**2).sum()

    @precisely
    def extreme(self, largest: bool) -> Tensor:
        return spectra.extremes(self.each(spectra.spectrum_values), largest)
