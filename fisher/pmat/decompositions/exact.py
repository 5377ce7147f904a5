"""Blocks without structure, and diagonal ones: the linear algebra of one layer.

V `[K, *view]`: the layer's part of K vectors; n entries per view.  Blocks of factors and of
arrowheads, on the floors above, have the same methods.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.pmat.contract.cuts import NO_CUT, Cut
from fisher.pmat.contract.damping import Scalar
from fisher.pmat.contract.limits import PRODUCTS, check_dense
from fisher.pmat.decompositions import spectra
from fisher.pmat.decompositions.precise import kept_single, precisely, singly
from linmaps import trees
from linmaps.numerics.eigen import constant_eigh, cutoff, denoised, pinv
from linmaps.numerics.linalg import damped, refined, solve


@trees.record(static=("rounding", "symmetric"))
class ExactBlock:
    """A dense matrix `[n, n]`, to which a regul is a number or a diagonal in the shape of the view.

    rounding: what it leaves on a null direction, relative (None: as of the dtype); symmetric: so are all but products of two.
    """

    matrix: Tensor
    rounding: float | None = None
    diagonals: ClassVar[bool] = True
    symmetric: bool = True

    @property
    def noise(self) -> float:
        return cutoff(len(self.matrix), self.matrix.dtype) if self.rounding is None else self.rounding

    @singly
    def mv(self, V: Tensor) -> Tensor:
        return (V.flatten(1) @ self.matrix.mT).reshape(V.shape)

    def solve(self, V: Tensor, regul: Scalar, kind: str, cut: Cut = NO_CUT) -> Tensor:
        return self._solve(V, regul, kind, self.noise, *cut.of(self.noise))

    @precisely
    def _solve(self, V: Tensor, regul: Scalar, kind: str, noise: float, rtol: float, atol: Scalar) -> Tensor:
        columns = V.flatten(1).mT
        if kind == "lstsq":
            found = pinv(self.matrix, rtol=rtol, atol=atol) @ columns
        elif kind == "eigendecomposition":
            found = by_eigh(*spectra.taken(self.matrix, regul), columns, noise)
        else:
            found = solve(damped(*spectra.taken(self.matrix, regul)), columns, symmetric=self.symmetric)
        return found.mT.reshape(V.shape)

    def sample(self, Z: Tensor, regul: Scalar) -> Tensor:
        return self._sample(Z, regul, self.noise)

    @precisely
    def _sample(self, Z: Tensor, regul: Scalar, noise: float) -> Tensor:
        return (Z.flatten(1) @ spectra.matrix_power(self.matrix, -0.5, regul, noise)).reshape(Z.shape)

    def diag(self) -> Tensor:
        return self.matrix.diagonal()

    def dense(self) -> Tensor:
        return self.matrix

    @precisely
    def squares(self) -> Tensor:
        return (self.matrix**2).sum()

    @precisely
    def extreme(self, largest: bool) -> Tensor:
        return spectra.extremes(spectra.spectrum_values(self.matrix), largest)

    @precisely
    def logdet(self, regul: Scalar) -> Tensor:
        return spectra.logdet(self.matrix, regul)


def by_eigh(m: Tensor, regul: Scalar, columns: Tensor, noise: float) -> Tensor:
    """(m + regul I)^-1 columns by the eigen-decomposition: rounding in m's null space does not swamp a small regul."""
    values, U = constant_eigh(m)
    values = denoised(values, noise) + (regul.detach() if isinstance(regul, Tensor) else regul)
    return refined(lambda b: U @ ((U.mT @ b) / values[:, None]), lambda x: m @ x + regul * x, columns, columns.detach())


@trees.record()
class DiagonalBlock:
    """A diagonal matrix, its entries in the shape of the view."""

    entries: Tensor
    diagonals: ClassVar[bool] = True
    invertible: ClassVar[bool] = True

    @property
    def noise(self) -> float:
        """As of a matrix: for the entries that a difference left."""
        return cutoff(self.entries.numel(), self.entries.dtype)

    @singly
    def mv(self, V: Tensor) -> Tensor:
        return V * self.entries

    def solve(self, V: Tensor, regul: Scalar, kind: str, cut: Cut = NO_CUT) -> Tensor:
        return self._solve(V, regul, kind, *cut.of(0.0))

    @singly
    def _solve(self, V: Tensor, regul: Scalar, kind: str, rtol: float, atol: Scalar) -> Tensor:
        return V * spectra.pseudo(self.entries, rtol, atol) if kind == "lstsq" else V / (self.entries + regul)

    @kept_single
    def inverted(self, regul: Scalar) -> DiagonalBlock:
        """(entries + regul)^-1, in the dtype that solves compute in."""
        return DiagonalBlock(1 / (self.entries + regul))

    @property
    def D(self) -> Tensor:
        return self.entries

    def to_diag(self, V: Tensor) -> Tensor:
        """V: its coordinates are its entries."""
        return V

    from_diag = of_inputs = of_outputs = to_diag

    def sample(self, Z: Tensor, regul: Scalar) -> Tensor:
        return self._sample(Z, regul, self.noise)

    @singly
    def _sample(self, Z: Tensor, regul: Scalar, noise: float) -> Tensor:
        return Z * spectra.raised(spectra.shifted(self.entries, regul, -0.5, noise), -0.5)

    def diag(self) -> Tensor:
        return self.entries

    def dense(self) -> Tensor:
        check_dense(self.entries.numel(), "a dense block of a diagonal", PRODUCTS, dtype=self.entries.dtype)
        return torch.diag(self.entries.flatten())

    @singly
    def squares(self) -> Tensor:
        return (self.entries**2).sum()

    def extreme(self, largest: bool) -> Tensor:
        return spectra.extremes(self.entries, largest)

    @singly
    def logdet(self, regul: Scalar) -> Tensor:
        return spectra.log_abs(self.entries + regul)


def exact_block(block: Tensor, shape: tuple[int, ...], symmetric: bool = True) -> Any:
    """The block of a matrix `[n, n]`, of a diagonal `[n]`, or of a scalar c that stands for c I."""
    if block.ndim == 2:
        return ExactBlock(block, symmetric=symmetric)
    return DiagonalBlock(block.reshape(shape) if block.ndim else block.expand(shape))


# functions of a matrix [n, n], of a diagonal [n], or of a scalar that stands for c I


def exact_dense(block: Tensor) -> Tensor:
    """The block as it is, a diagonal as a matrix."""
    return DiagonalBlock(block).dense() if block.ndim == 1 else block


def exact_power(block: Tensor, p: float, regul: Scalar) -> Tensor:
    """(block + regul I)^p; regul a number, or a diagonal in any shape."""
    if isinstance(regul, Tensor) and regul.ndim:
        regul = regul.reshape(regul.numel())
    return _power(
        block, spectra.real(p), regul, cutoff(max(1, block.numel() if block.ndim < 2 else len(block)), block.dtype)
    )


@precisely
def _power(block: Tensor, p: float, regul: Scalar, noise: float) -> Tensor:
    if block.ndim == 2:
        return spectra.matrix_power(block, p, regul, noise)
    return spectra.raised(spectra.shifted(block, regul, p, noise), p)


def exact_pinv(block: Tensor, cut: Cut = NO_CUT) -> Tensor:
    """The pseudo-inverse."""
    return _pinv(block, *cut.of(cutoff(len(block), block.dtype) if block.ndim == 2 else 0.0))


@precisely
def _pinv(block: Tensor, rtol: float, atol: Scalar) -> Tensor:
    return pinv(block, rtol=rtol, atol=atol) if block.ndim == 2 else spectra.pseudo(block, rtol, atol)


def exact_sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b."""
    if a.ndim == b.ndim or max(a.ndim, b.ndim) < 2:
        return a + b
    return damped(a, b) if a.ndim == 2 else damped(b, a)
