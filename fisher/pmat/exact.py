"""Blocks without structure, and diagonal ones: the linear algebra of one layer.

V `[K, *view]`: the layer's part of K vectors; n entries per view.  The blocks of factored.py and arrowhead.py have the
same methods.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.pmat import spectra
from fisher.pmat.base import Regul
from fisher.pmat.limits import PRODUCTS, check_dense
from linmaps import trees
from linmaps.linalg import constant_eigh, damped, pinv, refined, solve


@trees.record()
class ExactBlock:
    """A dense symmetric matrix `[n, n]`."""

    matrix: Tensor

    def mv(self, V: Tensor) -> Tensor:
        return (V.flatten(1) @ self.matrix.mT).reshape(V.shape)

    def solve(self, V: Tensor, regul: Regul, kind: str, rtol: float | None = None) -> Tensor:
        columns = V.flatten(1).mT
        if kind == "lstsq":
            found = pinv(self.matrix, rtol=rtol) @ columns
        elif kind == "eigendecomposition":
            found = by_eigh(self.matrix, columns, regul)
        else:
            found = solve(damped(self.matrix, regul), columns)
        return found.mT.reshape(V.shape)

    def sample(self, Z: Tensor, regul: Regul) -> Tensor:
        return (Z.flatten(1) @ spectra.matrix_power(self.matrix, -0.5, regul)).reshape(Z.shape)

    def diag(self) -> Tensor:
        return self.matrix.diagonal()

    def dense(self) -> Tensor:
        return self.matrix

    def squares(self) -> Tensor:
        return (self.matrix**2).sum()

    def extreme(self, largest: bool) -> Tensor:
        return spectra.extremes(spectra.spectrum_values(self.matrix), largest)

    def logdet(self, regul: Regul) -> Tensor:
        return spectra.logdet(self.matrix, regul)


def by_eigh(m: Tensor, columns: Tensor, regul: Regul) -> Tensor:
    """(m + regul I)^-1 columns by the eigen-decomposition: rounding in m's null space does not swamp a small regul."""
    values, U = constant_eigh(m)
    values = values + (regul.detach() if isinstance(regul, Tensor) else regul)
    return refined(lambda b: U @ ((U.mT @ b) / values[:, None]), lambda x: m @ x + regul * x, columns, columns.detach())


@trees.record()
class DiagonalBlock:
    """A diagonal matrix, its entries in the shape of the view."""

    entries: Tensor

    def mv(self, V: Tensor) -> Tensor:
        return V * self.entries

    def solve(self, V: Tensor, regul: Regul, kind: str, rtol: float | None = None) -> Tensor:
        return V * spectra.pseudo(self.entries, rtol or 0.0) if kind == "lstsq" else V / (self.entries + regul)

    def sample(self, Z: Tensor, regul: Regul) -> Tensor:
        return Z * spectra.raised(spectra.clipped(self.entries) + regul, -0.5)

    def diag(self) -> Tensor:
        return self.entries

    def dense(self) -> Tensor:
        check_dense(self.entries.numel(), "a dense block of a diagonal", PRODUCTS, dtype=self.entries.dtype)
        return torch.diag(self.entries.flatten())

    def squares(self) -> Tensor:
        return (self.entries**2).sum()

    def extreme(self, largest: bool) -> Tensor:
        return spectra.extremes(self.entries, largest)

    def logdet(self, regul: Regul) -> Tensor:
        return spectra.log_abs(self.entries + regul)


def exact(block: Tensor, shape: tuple[int, ...]) -> Any:
    """The block of a matrix `[n, n]`, or of a scalar c that stands for c I."""
    return ExactBlock(block) if block.ndim else DiagonalBlock(block.expand(shape))


# functions of a matrix [n, n], or of a scalar that stands for c I


def exact_power(block: Tensor, p: float, regul: Regul) -> Tensor:
    """(block + regul I)^p."""
    if block.ndim:
        return spectra.matrix_power(block, p, regul)
    return spectra.raised(block + regul, spectra.real(p))


def exact_pinv(block: Tensor, rtol: float | None) -> Tensor:
    """The pseudo-inverse."""
    return pinv(block, rtol=rtol) if block.ndim else spectra.pseudo(block, rtol or 0.0)


def exact_sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b."""
    if a.ndim == b.ndim:
        return a + b
    return damped(a, b) if a.ndim else damped(b, a)
