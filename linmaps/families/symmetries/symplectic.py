"""Symplectic matrices of phase space, W [n, n] with W'JW = J."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.symmetries.phase_space import Even, times_J
from linmaps.numerics.draws import normal
from linmaps.numerics.numeric import eye_like, frobenius
from linmaps.numerics.packing import symmetric
from linmaps.numerics.ranges import squashed


@register
@dataclass(frozen=True)
class Symplectic(Even):
    """A symplectic matrix, W'JW = J with J = [[0, I], [-I, 0]]: W keeps areas in phase space, and |det W| = 1.

        W = F_0 F_1 ... F_{k-1},    F_i = [[I, 0], [A_i, I]] for even i, [[I, A_i], [0, I]] for odd i,

    A_i = S_i asinh(|S_i|) / |S_i| (Frobenius norm) symmetric [m, m], which reaches every A but keeps a product of
    factors with outlying params within reach of floating point.  The leaf "factors" [n_factors, m (m + 1) / 2] holds the
    upper triangles of the S_i row by row.  Zero params give W = I.  Five factors reach every symplectic matrix.

    `apply` and `solve` go through the factors without forming W unless x has many rows, `inverse` is -J W'J, and
    `logabsdet` is 0.  init: entries of S_i from N(0, 1 / n^2), which is near the identity: inputs of unit variance
    give outputs of variance between 1 and 1 + 2 / n, as |det W| = 1 allows no less than 1.

    `violation(W)` is |W'JW - J| / max(1, |W|^2), in Frobenius norms: rounding the entries of W alone gives |W'JW - J| of
    about eps |W|^2, however W came about.

    ValueError for an odd number of features, or n_factors that is not a positive int.

    Source: Jin, Lin and Xiao, "Optimal unit triangular factorization of symplectic matrices".

    >>> import torch, linmaps
    >>> spec = linmaps.Symplectic(4)
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0), dtype=torch.float64))
    >>> J = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1], [-1, 0, 0, 0], [0, -1, 0, 0]], dtype=torch.float64)
    >>> torch.allclose(W.T @ J @ W, J)
    True
    """

    name: ClassVar[str] = "symplectic"
    promise: ClassVar[str] = "W'JW = J"
    at_zero: ClassVar[str] = "I"
    half_ready: ClassVar[bool] = False

    n_factors: int = field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_int("n_factors", 1, None)

    def _shapes(self) -> dict[str, Shape]:
        return {"factors": (self.n_factors, self._m * (self._m + 1) // 2)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"factors": normal(generator, self._shapes()["factors"], dtype) / (2 * self._m)}

    def _factors(self, params: Params) -> list[Tensor]:
        """The A_i [m, m]."""
        m, packed = self._m, params["factors"]
        return [squashed(S, frobenius(S)) for S in (symmetric(row, m) for row in packed.unbind())]

    @staticmethod
    def _through(x: Tensor, factors: list[Tensor], first: int, sign: int) -> Tensor:
        """x times the factors, the first of which turns q by p if `first` is 0, p by q if it is 1."""
        q, p = x.chunk(2, dim=-1)
        for i, A in enumerate(factors):
            if (i + first) % 2 == 0:
                q = q + sign * (p @ A)
            else:
                p = p + sign * (q @ A)
        return torch.cat([q, p], dim=-1)

    def _weight(self, params: Params) -> Tensor:
        return self._through(eye_like(params["factors"], self.in_features), self._factors(params), 0, 1)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        # k factors cost k m^2 per row, W costs 4 m^2 per row once k factors were applied to its n rows
        n, k, rows = self.in_features, self.n_factors, x.numel() // self.in_features
        if k * n + 4 * rows < k * rows:
            return x @ self._weight(params)
        return self._through(x, self._factors(params), 0, 1)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return self._through(y, self._factors(params)[::-1], (self.n_factors - 1) % 2, -1)

    def _inverse(self, params: Params) -> Tensor:
        (a, b), (c, d) = (half.chunk(2, dim=1) for half in self._weight(params).chunk(2))
        return torch.cat([torch.cat([d.mT, -b.mT], dim=1), torch.cat([-c.mT, a.mT], dim=1)])

    def _logabsdet(self, params: Params) -> Tensor:
        return params["factors"].new_zeros(())

    def _violation(self, W: Tensor) -> Tensor:
        residual = frobenius(W.mT @ times_J(W) - times_J(eye_like(W, len(W))))
        return residual / W.square().sum().clamp(min=1)
