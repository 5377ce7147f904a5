"""Discrete time: a spectral radius below a bound, by a linear matrix inequality, by rescaling, or softly.

n rows and columns.  A sequence x W^t, t = 0, 1, 2, ..., dies out, whatever W does to x at first: its norm has no bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.eigenvalues.candidates import nearest_of
from linmaps.numerics.draws import uniform
from linmaps.numerics.eigen import eigh
from linmaps.numerics.excess import radius_excess
from linmaps.numerics.linalg import solve
from linmaps.numerics.lyapunov import solve_stein
from linmaps.numerics.numeric import eye_like
from linmaps.numerics.packing import skew
from linmaps.numerics.ranges import MARGIN, limited, relu
from linmaps.numerics.singular import svd

Method = Literal["lmi", "rescale", "soft"]
METHODS = get_args(Method)


@register
@dataclass(frozen=True)
class PowerBound(Map):
    """Spectral radius below a bound g = max_p, so that x W^t dies out for g <= 1.

    * lmi: every matrix with rho(W) < g and no other, from leaves "V" [2n, 2n] and "skew" [n (n - 1) / 2], the strict
      upper triangle of K row by row:

          S = V'V + e I = [[S11, S12], [S12', S22]],    W = S12 G^-1,    G = (S11 / g^2 + S22) / 2 + s (K - K').

      s = |V|^2 / 2n makes W the same for multiples of V; e = 1e-8 s (in float32 8e-6 s) keeps rounding from breaking
      the promise, and is the limit of what is reached: not rho(W) beyond about g (1 - e / s), nor matrices whose powers
      grow by more than about 0.1 (e / s)^-1/2 before they decay.  V = 0 gives W = 0.  K - K' of a norm above 1 / sqrt(eps)
      counts as shrunk to it, as rounding would leave nothing of S beside more.
    * rescale: `W = F min(1, (1 - 1e-6) g / rho(F))` for the leaf "W", a free F; the margin is for the rounding of
      eigenvalues, which grows where they meet.  There the derivative is unbounded, and the eigenvalues cost time at any
      F: prefer lmi.
    * soft: W is the leaf "W", free, and `reg_error` = relu(rho(W) - g)^2 asks for the promise.

    init: g U(-1/sqrt(n), 1/sqrt(n)), for outputs of variance g^2 / 3 for inputs of unit variance, and rho(W) about 0.6 g
    for large n; lmi shrinks it to rho(W) <= 0.9 g where it has more, which happens to small n.  `violation(W)` is
    max(0, rho(W) - g).  `from_matrix` shrinks a matrix of rho(W) > g (1 - 1e-6) to that radius (by lmi to the one of 1e-6,
    1e-4, ..., 0.1 below g whose matrix comes out nearest, as at the edge digits are lost, or its singular values above g to g);
    soft takes any.

    ValueError for max_p that is not positive and finite, or an unknown method.

    Source: a parametrization by linear matrix inequalities as in arXiv:2311.03197.

    >>> import torch, linmaps
    >>> spec = linmaps.PowerBound(2, max_p=0.9)
    >>> params, distance = spec.from_matrix(torch.tensor([[0.5, 4.0], [0.0, 0.6]]))
    >>> bool(distance < 1e-3), bool(spec.eig(params).abs().max() < 0.9)
    (True, True)
    """

    name: ClassVar[str] = "power_bound"
    promise: ClassVar[str] = "spectral radius < max_p"
    at_zero: ClassVar[str] = "0"
    square: ClassVar[bool] = True
    time: ClassVar[str] = "discrete"
    half_ready: ClassVar[bool] = False

    max_p: float = field(default=1.0, kw_only=True)
    method: Method = field(default="lmi", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("max_p")
        self._expect(self.max_p > 0, "max_p", "a positive number")
        self._expect(self.method in METHODS, "method", f"one of {METHODS}")

    @property
    def guaranteed(self) -> bool:
        """Whether the method keeps the promise at any params: all but "soft" do.

        >>> import linmaps
        >>> linmaps.PowerBound(2, method="soft").guaranteed
        False
        """
        return self.method != "soft"

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        return {"V": (2 * n, 2 * n), "skew": (n * (n - 1) // 2,)} if self.method == "lmi" else {"W": (n, n)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n = self.in_features
        W = uniform(generator, (n, n), self.max_p * n**-0.5, dtype)
        if self.method != "lmi":
            return {"W": W}
        return self._factored(self._within(W.double(), 0.9), dtype)

    def _weight(self, params: Params) -> Tensor:
        if self.method != "lmi":
            W = params["W"]
            return W if self.method == "soft" else self._within(W, 1 - MARGIN)
        n, V = self.in_features, params["V"]
        largest = V.detach().abs().amax()
        scale = torch.where(largest <= 1, 1.0, largest)  # the floor shrinks with it, so that W does not depend on it
        V, floor = V / scale, torch.finfo(V.dtype).tiny ** 0.25 / scale / scale
        size = V.square().sum() / (2 * n)
        K = limited(skew(params["skew"], n), torch.finfo(V.dtype).eps ** -0.5)  # beside more P would lose its digits
        S = V.mT @ V + (self._ridge(V.dtype) * size + floor) * eye_like(V, 2 * n)
        G = (S[:n, :n] / self.max_p**2 + S[n:, n:]) / 2 + size * K
        return solve(G.mT, S[:n, n:].mT).mT

    @staticmethod
    def _ridge(dtype: torch.dtype) -> float:
        return max(1e-8, 64 * torch.finfo(dtype).eps)

    def _within(self, W: Tensor, share: float) -> Tensor:
        """W shrunk to a spectral radius of at most `share * max_p`."""
        bound = share * self.max_p
        return W * (bound / (bound + radius_excess(W, bound)))

    def _factored(self, W: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Leaves of a stable W: K = 0 and S = [[g^2 P, W P], [P W', P]] with P - (W / g) P (W / g)' = I give G = P."""
        return self._of_gram(W, solve_stein(W / self.max_p, eye_like(W, self.in_features)), dtype)

    def _of_gram(self, W: Tensor, P: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        n = self.in_features
        S = torch.cat([torch.cat([self.max_p**2 * P, W @ P], dim=1), torch.cat([P @ W.mT, P], dim=1)])
        S = S * (2 * n / S.diagonal().sum())
        values, U = eigh((S + S.mT) / 2)
        e = self._ridge(dtype)
        V = relu(values - e / (1 + e)).sqrt()[:, None] * U.mT
        return {"V": V.to(dtype), "skew": W.new_zeros(n * (n - 1) // 2, dtype=dtype)}

    def _reg_error(self, params: Params) -> Tensor:
        return super()._reg_error(params) if self.guaranteed else radius_excess(params["W"], self.max_p).square()

    def _violation(self, W: Tensor) -> Tensor:
        return radius_excess(W, self.max_p)

    def _from_matrix(self, W: Tensor) -> Params:
        if self.method != "lmi":
            return {"W": W.clone()}
        gaps = (MARGIN, 1e-4, 1e-3, 1e-2, 1e-1)  # float32 tells no more than the second from 1
        wide = W.double()
        found = [self._factored(self._within(wide, 1 - gap), W.dtype) for gap in gaps]
        return nearest_of([*found, self._contracting(wide, W.dtype)], self._weight, W)

    def _contracting(self, W: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Leaves of the nearest matrix with singular values of at most g, P = I."""
        U, s, Vh = svd(W)
        bound = self.max_p * (1 - MARGIN)
        return self._of_gram((U * (bound - relu(bound - s))) @ Vh, eye_like(W, self.in_features), dtype)
