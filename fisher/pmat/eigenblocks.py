"""Blocks in their eigenbasis: a diagonal between a rotation and its transpose, the linear algebra of one layer.

V `[K, *view]`: the layer's part of K vectors.  Every function of such a block is a function of its eigenvalues D.
A 1-d A `[I]` is the diagonal of a diagonal matrix, a 1-d basis (ones) the identity.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fisher.pmat import spectra
from fisher.pmat.base import Regul
from fisher.pmat.limits import PRODUCTS, check_dense
from linmaps import trees
from linmaps.linalg import rounding


def right(V: Tensor, A: Tensor) -> Tensor:
    """V A."""
    return V * A if A.ndim == 1 else V @ A


def right_t(V: Tensor, A: Tensor) -> Tensor:
    """V A'."""
    return V * A if A.ndim == 1 else V @ A.mT


def full(A: Tensor) -> Tensor:
    """A as a matrix."""
    return torch.diag(A) if A.ndim == 1 else A


def diagonal(A: Tensor) -> Tensor:
    """The diagonal of A."""
    return A if A.ndim == 1 else A.diagonal()


def kron(G: Tensor, A: Tensor) -> Tensor:
    """G (x) A, `[O I, O I]`."""
    check_dense(len(G) * len(A), "a dense Kronecker product of a layer", PRODUCTS, dtype=G.dtype)
    return torch.einsum("op,ij->oipj", G, A).reshape(len(G) * len(A), len(G) * len(A))


class Diagonalized:
    """basis diag(D) basis': a subclass says what the basis is."""

    D: Tensor

    def to_diag(self, V: Tensor) -> Tensor:
        """Coordinates in the eigenbasis."""
        raise AttributeError("a block defines to_diag")

    def from_diag(self, Z: Tensor) -> Tensor:
        """The way back."""
        raise AttributeError("a block defines from_diag")

    def basis(self) -> Tensor:
        """The dense basis `[n, n]`: a column per eigenvalue."""
        raise AttributeError("a block defines basis")

    def _with(self, D: Tensor) -> Any:
        return dataclasses.replace(self, D=D)  # type: ignore[type-var]

    def mv(self, V: Tensor) -> Tensor:
        return self.from_diag(self.D * self.to_diag(V)).reshape(V.shape)

    def solve(self, V: Tensor, regul: Regul, kind: str, rtol: float | None = None) -> Tensor:
        inverse = self.pinv(rtol).D if kind == "lstsq" else 1 / (self.D + regul)
        return self.from_diag(inverse * self.to_diag(V)).reshape(V.shape)

    def sample(self, Z: Tensor, regul: Regul) -> Tensor:
        return self.from_diag(self.pow(-0.5, regul).D * self.to_diag(Z)).reshape(Z.shape)

    def pow(self, p: float, regul: Regul) -> Any:
        return self._with(spectra.raised(spectra.clipped(self.D) + regul, spectra.real(p)))

    def pinv(self, rtol: float | None) -> Any:
        """Second moments in a null direction are rounding squared."""
        return self._with(spectra.pseudo(self.D, rounding(self.D.flatten()) ** 2 if rtol is None else rtol))

    def scaled(self, alpha: Regul) -> Any:
        return self._with(alpha * self.D)

    def logdet(self, regul: Regul) -> Tensor:
        return spectra.log_abs(self.D + regul)

    def dense(self) -> Tensor:
        B = self.basis()
        return (B * self.D.flatten()) @ B.mT

    def squares(self) -> Tensor:
        return (self.D**2).sum()

    def extreme(self, largest: bool) -> Tensor:
        return spectra.extremes(self.D, largest)


@trees.record()
class EigenBlock(Diagonalized):
    """(W (x) U) diag(D) (W (x) U)': eigenvalues D `[O, I]` in the basis of orthogonal W `[O, O]` and U `[I, I]`."""

    D: Tensor
    U: Tensor
    W: Tensor

    def to_diag(self, V: Tensor) -> Tensor:
        return self.W.mT @ right(V, self.U)

    def from_diag(self, Z: Tensor) -> Tensor:
        return self.W @ right_t(Z, self.U)

    def basis(self) -> Tensor:
        return kron(self.W, full(self.U))

    def diag(self) -> Tensor:
        return right_t(self.W**2 @ self.D, self.U**2)


@trees.record()
class BasisBlock(Diagonalized):
    """U diag(D) U': eigenvalues D `[n]` in the basis of the columns of U `[n, n]`, over the flattened view."""

    D: Tensor
    U: Tensor

    def to_diag(self, V: Tensor) -> Tensor:
        return right(V.flatten(1), self.U)

    def from_diag(self, Z: Tensor) -> Tensor:
        return right_t(Z, self.U)

    def basis(self) -> Tensor:
        return full(self.U)

    def diag(self) -> Tensor:
        return right_t(self.D, self.U**2)


def in_basis(block: Tensor, n: int) -> BasisBlock:
    """The eigenbasis of a matrix `[n, n]`, or of a scalar c that stands for c I."""
    s = spectra.spectrum(block if block.ndim else block.expand(n))
    return BasisBlock(s.values + diagonal(s.N), s.U)
