"""Blocks in their eigenbasis: a diagonal between a rotation and its transpose, the linear algebra of one layer.

V `[K, *view]`: the layer's part of K vectors.  Every function of such a block is a function of its eigenvalues D.
A 1-d A or G is the diagonal of a diagonal matrix, a 1-d basis (ones) the identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.distributed.splitting import Job, cubes, shared
from fisher.pmat.contract.cuts import NO_CUT, Cut
from fisher.pmat.contract.damping import Scalar
from fisher.pmat.contract.limits import PRODUCTS, check_dense
from fisher.pmat.decompositions import spectra
from fisher.pmat.decompositions.precise import kept_single, precisely, singly
from linmaps import trees
from linmaps.numerics.eigen import cutoff, denoised

KIND = "eigendecomposition"  # the kind of solve that takes rounding for zero


def right(V: Tensor, A: Tensor) -> Tensor:
    """V A."""
    return V * A if A.ndim == 1 else V @ A


def right_t(V: Tensor, A: Tensor) -> Tensor:
    """V A'."""
    return V * A if A.ndim == 1 else V @ A.mT


def left(G: Tensor, V: Tensor) -> Tensor:
    """G V."""
    return G[:, None] * V if G.ndim == 1 else G @ V


def left_t(G: Tensor, V: Tensor) -> Tensor:
    """G' V."""
    return G[:, None] * V if G.ndim == 1 else G.mT @ V


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
    invertible: ClassVar[bool] = True

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

    @property
    def noise(self) -> float:
        """What rounding leaves on a null direction of a product X'X, relative."""
        return cutoff(self.D.numel(), self.D.dtype)

    @singly
    def mv(self, V: Tensor) -> Tensor:
        return self.from_diag(self.D * self.to_diag(V)).reshape(V.shape)

    def solve(self, V: Tensor, regul: Scalar, kind: str, cut: Cut = NO_CUT) -> Tensor:
        if kind == "lstsq":
            return self.pinv(cut).mv(V)
        return self._powered(V, -1, regul, self.noise if kind == KIND else 0.0)

    def sample(self, Z: Tensor, regul: Scalar) -> Tensor:
        return self._powered(Z, -0.5, regul, 0.0)

    @singly
    def _powered(self, V: Tensor, p: float, regul: Scalar, noise: float) -> Tensor:
        return self._with(denoised(self.D.flatten(), noise).reshape(self.D.shape)).pow(p, regul).mv(V)

    @kept_single
    def inverted(self, regul: Scalar) -> Any:
        """(block + regul I)^-1 in the same basis, in the dtype that solves compute in."""
        return self._with(1 / (self.D + regul))

    def pow(self, p: float, regul: Scalar) -> Any:
        return self._with(spectra.entrywise_power(self.D, p, regul))

    def pinv(self, cut: Cut = NO_CUT) -> Any:
        """Second moments in a null direction are rounding squared."""
        return self._with(singly(spectra.pseudo)(self.D, *cut.of(self.noise**2)))

    @singly
    def logdet(self, regul: Scalar) -> Tensor:
        return spectra.log_abs(self.D + regul)

    def dense(self) -> Tensor:
        B = self.basis()
        return (B * self.D.flatten()) @ B.mT

    @singly
    def squares(self) -> Tensor:
        return (self.D**2).sum()

    def extreme(self, largest: bool) -> Tensor:
        return spectra.extremes(self.D, largest)


@trees.record()
class EigenBlock(Diagonalized):
    """(W (x) U) diag(D) (W (x) U)': eigenvalues D `[O, I]` in the basis of orthogonal W `[O, O]` and U `[I, I]`; V may be one
    view `[O, I]` too."""

    D: Tensor
    U: Tensor
    W: Tensor
    one: ClassVar[bool] = True

    def to_diag(self, V: Tensor) -> Tensor:
        return left_t(self.W, right(V, self.U))

    def from_diag(self, Z: Tensor) -> Tensor:
        return left(self.W, right_t(Z, self.U))

    def of_inputs(self, a: Tensor) -> Tensor:
        """U'a of each a `[..., I]`: a product g a' has the coordinates (W'g) (U'a)'."""
        return right(a, self.U)

    def of_outputs(self, g: Tensor) -> Tensor:
        """W'g of each g `[..., O]`."""
        return right(g, self.W)

    def basis(self) -> Tensor:
        return kron(full(self.W), full(self.U))

    def diag(self) -> Tensor:
        return right_t(left(self.W**2, self.D), self.U**2)


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
    return _in_basis(block if block.ndim else block.expand(n))


@precisely
def _in_basis(m: Tensor) -> BasisBlock:
    s = spectra.spectrum(m)
    return BasisBlock(s.values + diagonal(s.N), s.U)


def in_bases(blocks: Mapping[str, Tensor], sizes: Mapping[str, int], group: Any = None) -> dict[str, BasisBlock]:
    """`in_basis` of each block, of so many rows; split over the ranks of a process group by their cost."""
    jobs = {}
    for name, block in blocks.items():
        n = sizes[name]
        like = block.expand(n, n) if not block.ndim else block
        jobs[name] = Job(
            cubes(like), partial(in_basis, block, n), BasisBlock(like[..., 0], like if block.ndim else like[0])
        )
    return shared(jobs, group)


def bases_like(A: Tensor, G: Tensor, grouped: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(D `[..., O, I]`, (U, W)) with the shapes and dtypes that an eigendecomposition of G (x) A has."""
    one = lambda m: m[..., 0] if m.ndim == 2 + grouped else m
    return one(G)[..., :, None] * one(A)[..., None, :], (A, G)
