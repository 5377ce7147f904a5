"""Skew-symmetric matrices W [n, n] from the packed strict upper triangle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics import lapack
from linmaps.numerics.draws import uniform
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.packing import pack_upper, skew


@register
@dataclass(frozen=True)
class SkewSymmetric(Map):
    """A skew-symmetric matrix, `W = U - U'` with U strictly upper triangular: `W == -W.T` bit by bit.

    The leaf "upper" [n (n - 1) / 2] is U row by row.  Eigenvalues are imaginary, and x exp(W t) keeps its length.  init:
    U(-b, b), b = 1/sqrt(n - 1), which gives outputs of variance 1/3 for inputs of unit variance.  `eig` is exactly
    imaginary, ascending, with orthonormal vectors.  `violation(W)` is the Frobenius norm of W + W'; `from_matrix` takes the
    skew part.  For odd n, W is singular.

    >>> import torch, linmaps
    >>> linmaps.SkewSymmetric(2).effective_W({"upper": torch.tensor([3.0])})
    tensor([[ 0.,  3.],
            [-3.,  0.]])
    """

    name: ClassVar[str] = "skew_symmetric"
    promise: ClassVar[str] = "W = -W'"
    at_zero: ClassVar[str] = "0"
    square: ClassVar[bool] = True
    time: ClassVar[str] = "continuous"

    def _shapes(self) -> dict[str, Shape]:
        return {"upper": (self.in_features * (self.in_features - 1) // 2,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"upper": uniform(generator, self._shapes()["upper"], max(1, self.in_features - 1) ** -0.5, dtype)}

    def _weight(self, params: Params) -> Tensor:
        return skew(params["upper"], self.in_features)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        hermitian = self._weight(params) / 1j
        if not vectors:
            return 1j * lapack.eigvalsh(hermitian), None
        values, right = lapack.eigh(hermitian)
        return 1j * values, right

    def _singular_values(self, params: Params) -> Tensor:
        return self._eig(params, False)[0].imag.abs().sort(descending=True).values

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W + W.mT)

    def _from_matrix(self, W: Tensor) -> Params:
        return {"upper": pack_upper((W - W.mT) / 2, diagonal=1)}
