"""Symmetric matrices from the packed upper triangle.  n rows and columns."""

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
from linmaps.numerics.eigen import eigh
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.packing import pack_upper, symmetric


class SymmetricMap(Map):
    """What symmetric matrices share: a real spectrum, in ascending order, from the symmetric solvers."""

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        W = self._weight(params)
        if not vectors:
            return lapack.eigvalsh(W), None
        return eigh(W)

    def _singular_values(self, params: Params) -> Tensor:
        return lapack.eigvalsh(self._weight(params)).abs().sort(descending=True).values


@register
@dataclass(frozen=True)
class Symmetric(SymmetricMap):
    """A symmetric matrix, `W = U + striu(U)'` with U upper triangular: `W == W.T` bit by bit.

    The leaf "upper" [n (n + 1) / 2] is the triangle of U row by row, so that no parameter is redundant.  init:
    U(-1/sqrt(n), 1/sqrt(n)), which gives outputs of variance 1/3 for inputs of unit variance.  `eig` is real and
    ascending; `violation(W)` is the Frobenius norm of W - W'; `from_matrix` takes the symmetric part.

    >>> import torch, linmaps
    >>> spec = linmaps.Symmetric(4)
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0)))
    >>> torch.equal(W, W.T)
    True
    """

    name: ClassVar[str] = "symmetric"
    promise: ClassVar[str] = "W = W'"
    at_zero: ClassVar[str] = "0"
    square: ClassVar[bool] = True

    def _shapes(self) -> dict[str, Shape]:
        return {"upper": (self.in_features * (self.in_features + 1) // 2,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"upper": uniform(generator, self._shapes()["upper"], self.in_features**-0.5, dtype)}

    def _weight(self, params: Params) -> Tensor:
        return symmetric(params["upper"], self.in_features)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W - W.mT)

    def _from_matrix(self, W: Tensor) -> Params:
        return {"upper": pack_upper((W + W.mT) / 2)}
