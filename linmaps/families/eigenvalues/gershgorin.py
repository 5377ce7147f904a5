"""Matrices W [n, n] whose eigenvalues are placed by the absolute sums of their rows: Gershgorin's discs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics import lapack
from linmaps.numerics.draws import normal, uniform
from linmaps.numerics.eigen import eigh
from linmaps.numerics.excess import modulus, spectral_excess
from linmaps.numerics.nearest import onto_l1_ball
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.packing import symmetric, unweave, weave
from linmaps.numerics.ranges import MARGIN, relu, unbetween


@register
@dataclass(frozen=True)
class Gershgorin(Map):
    """Eigenvalues in an interval or a disc, by one budget per row: with c = (sigma_min + sigma_max) / 2, R = (sigma_max
    - sigma_min) / 2 and a_i = sigmoid("budget"[i]),

        W_ii = c + R (1 - a_i) tanh("center"[i]),    W_ij = R a_i s_ij / sum_k |s_ik|,

    so that |W_ii - c| + sum_j |W_ij| <= R, and every such matrix is reached.

    * real=True: s is symmetric, from the leaf "off" [n (n - 1) / 2], its strict upper triangle row by row, and the
      smaller of the two budgets counts, W_ij = s_ij min(R a_i / sum_k |s_ik|, R a_j / sum_k |s_jk|): W is symmetric bit
      by bit and its eigenvalues are real, in [sigma_min, sigma_max].
    * real=False: the leaf "off" [n, n - 1] holds s row by row without its diagonal; eigenvalues lie in the disc
      |z - c| <= R, so they are less than sigma_max in modulus if sigma_min = -sigma_max.

    Leaves "budget" [n] and "center" [n]; "off" and "budget" are absent for n = 1.  The bounds may have any sign.

    init: s normal, a and tanh("center") uniform over the middle nine tenths of their ranges.  The bounds fix the scale:
    inputs of unit variance give outputs of variance about c^2 + R^2 / 10.  `violation(W)` is the norm of what the
    eigenvalues exceed their interval or disc by, and for real=True of W - W'.  `from_matrix` keeps members up to its
    margins; others it moves row by row to the nearest row within the budget (for real=True, of the symmetric part, then
    with the smaller of the two entries in the places ij and ji).

    ValueError for bounds that are not finite or not in order.

    >>> import torch, linmaps
    >>> spec = linmaps.Gershgorin(4, sigma_min=-0.5, sigma_max=1.0)
    >>> values = spec.eig(spec.init(torch.Generator().manual_seed(0)))
    >>> bool(values.min() >= -0.5 and values.max() <= 1.0)
    True
    """

    name: ClassVar[str] = "gershgorin"
    promise: ClassVar[str] = "eigenvalues within [sigma_min, sigma_max], or in the disc over it"
    at_zero: ClassVar[str] = "m I"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False

    sigma_min: float = 0.0
    sigma_max: float = 1.0
    real: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("sigma_min", "sigma_max"):
            self._expect_number(key)
        self._expect(
            self.sigma_min < self.sigma_max, "sigma_min", f"less than sigma_max={self.sigma_max}; exchange the bounds"
        )
        self._expect(isinstance(self.real, bool), "real", "a bool", error=TypeError)

    @property
    def _c(self) -> float:
        return (self.sigma_min + self.sigma_max) / 2

    @property
    def _R(self) -> float:
        return (self.sigma_max - self.sigma_min) / 2

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        if n == 1:
            return {"center": (1,)}
        return {"off": (n * (n - 1) // 2,) if self.real else (n, n - 1), "budget": (n,), "center": (n,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n = self.in_features
        params = {"center": uniform(generator, (n,), 0.9, dtype).atanh()}
        if n > 1:
            params["budget"] = torch.logit(0.5 + uniform(generator, (n,), 0.45, dtype))
            params["off"] = normal(generator, self._shapes()["off"], dtype)
        return params

    def _weight(self, params: Params) -> Tensor:
        n, t = self.in_features, params["center"].tanh()
        if n == 1:
            return (self._c + self._R * t)[:, None]
        # 1 - sigmoid(x) = sigmoid(-x) keeps its digits
        d = self._c + self._R * (-params["budget"]).sigmoid() * t
        r = self._R * params["budget"].sigmoid()
        if not self.real:
            return weave(d, params["off"] * (r / _sums(params["off"]))[:, None])
        s = symmetric(params["off"], n, diagonal=False)
        q = r / _sums(s)
        return s * torch.minimum(q[:, None], q) + torch.diag(d)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        if not self.real:
            return super()._eig(params, vectors)
        W = self._weight(params)
        return eigh(W) if vectors else (lapack.eigvalsh(W), None)

    def _violation(self, W: Tensor) -> Tensor:
        if not self.real:
            return spectral_excess(W, lambda values: frobenius(relu(modulus(values - self._c) - self._R)), self._c)
        values = lapack.eigvalsh((W + W.mT) / 2)
        return frobenius(relu(values - self.sigma_max), relu(self.sigma_min - values), W - W.mT)

    def _from_matrix(self, W: Tensor) -> Params:
        n, R = self.in_features, self._R
        shift = self._c * torch.eye(n, dtype=W.dtype, device=W.device)
        near = onto_l1_ball(((W + W.mT) / 2 if self.real else W) - shift, R)
        if n == 1:
            return {"center": _untanh(near[:, 0] / R)}
        if self.real:
            near = torch.where(near.abs() <= near.mT.abs(), near, near.mT)
        d, off = unweave(near)
        budget = unbetween(0.0, R, off.abs().sum(1))
        params = {"center": _untanh(d / (R * (-budget).sigmoid())), "budget": budget, "off": off}
        if self.real:
            rows, columns = torch.triu_indices(n, n, 1, device=W.device)
            params["off"] = near[rows, columns]
        return params


def _sums(s: Tensor) -> Tensor:
    """Absolute sums of rows, with 1 for a row of zeros."""
    total = s.abs().sum(1)
    return torch.where(total > torch.finfo(s.dtype).tiny ** 0.5, total, 1.0)


def _untanh(t: Tensor) -> Tensor:
    return t.clamp(2 * MARGIN - 1, 1 - 2 * MARGIN).atanh()
