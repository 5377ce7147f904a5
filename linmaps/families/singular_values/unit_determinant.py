"""Matrices W [n, n] of determinant one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.singular_values.factors import Factors, signed
from linmaps.numerics import lapack
from linmaps.numerics.draws import uniform
from linmaps.numerics.nearest import logs_of_product_one, onto_product_one
from linmaps.numerics.numeric import frobenius

FAR = 20.0  # a logarithm of a singular value whose exponential float32 squares with ease


@register
@dataclass(frozen=True)
class UnitDeterminant(Factors):
    """Determinant one, `W = Q1 diag(s) Q2'` with Q1, Q2 rotations, `log s = asinh(p) - mean(asinh(p))`.

    So the product of the singular values s is 1 for any leaf "p" [n], which is absent for n = 1.  Q1 and Q2 are products
    of reflections as in `Orthogonal`, along e_i + U[i] and e_i + V[i] for the leaves "U" and "V" [n - 1, n].  Every matrix of
    determinant 1 is reached.  As exp(asinh(p)) = p + sqrt(1 + p^2) lies within 2 |p| + 1 and its inverse, params of size P leave
    W a condition number, and entries, of at most (2 P + 1)^2; rounding W moves its determinant by n eps times that.

    `solve` and `inverse` use the factors, and `logabsdet` is 0.  init: Q1, Q2 Haar, p uniform over [-1/2, 1/2].  The promise
    bounds the scale: inputs of unit variance give outputs of variance at least 1, here about 7/6.  `from_matrix` takes
    members back to rounding and moves the singular values of others, the smallest being negative if the determinant is,
    to a stationary point of the distance: s' of product 1 with s' (s' - s) the same for all.  `violation(W)` is the
    Frobenius distance to it.

    >>> import torch, linmaps
    >>> spec = linmaps.UnitDeterminant(3)
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0), dtype=torch.float64))
    >>> torch.linalg.det(W)
    tensor(1.0000, dtype=torch.float64)
    """

    name: ClassVar[str] = "unit_determinant"
    promise: ClassVar[str] = "det W = 1"
    at_zero: ClassVar[str] = "I"
    square: ClassVar[bool] = True
    det: ClassVar[int] = 1

    @property
    def _bounds(self) -> tuple[float, float | None]:
        return 0.0, None

    def _value_shapes(self) -> dict[str, Shape]:
        return {"p": (self._k,)} if self._k > 1 else {}

    def _draw_values(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"p": uniform(generator, (self._k,), 0.5, dtype)} if self._k > 1 else {}

    def _sigma(self, params: Params) -> Tensor:
        if self._k == 1:
            return self._like(params).new_ones(1)
        logs = params["p"].asinh()
        return (logs - logs.mean()).exp()

    def _values_of(self, s: Tensor) -> dict[str, Tensor]:
        if self._k == 1:
            return {}
        logs, most = logs_of_product_one(s), math.log(torch.finfo(s.dtype).max) - 1
        middle = (logs.amax() + logs.amin()) / 2  # logarithms may be shifted, so those too far from 0 lie about it
        logs = logs - torch.where(logs.abs().amax() > FAR, middle, 0.0)
        return {"p": logs.clamp(-most, most).sinh().to(s.dtype)}

    def _logabsdet(self, params: Params) -> Tensor:
        return self._like(params).new_zeros(())

    def _violation(self, W: Tensor) -> Tensor:
        s = signed(lapack.svdvals(W), W, 1)
        return frobenius(onto_product_one(s) - s)
