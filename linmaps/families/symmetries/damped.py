"""Rotations with a known rate of decay: skew-symmetric matrices [n, n], damped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.interval import check_bounds
from linmaps.families.symmetries.skew import SkewSymmetric
from linmaps.numerics.numeric import eye_like, frobenius, positive_root
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.orthogonal.rotations import log_rotation, polar, rotation
from linmaps.numerics.packing import pack_upper, skew
from linmaps.numerics.ranges import between, unbetween

Time = Literal["continuous", "discrete"]


@register
@dataclass(frozen=True)
class DampedSkewSymmetric(Map):
    """Rotation with a known rate of decay, gamma in [sigma_min, sigma_max].

    * time="continuous": `W = S - gamma I`: every eigenvalue has the real part -gamma, so solutions of dx/dt = x W shrink as
      exp(-gamma t).
    * time="discrete": `W = gamma exp(S)`: every eigenvalue has the modulus gamma, |x W| = gamma |x|.

    S is skew with the leaf "upper" [n (n - 1) / 2], its strict upper triangle row by row; the leaf "gamma", of shape (), is
    free, `gamma = sigma_min + (sigma_max - sigma_min) sigmoid(params["gamma"])`, and absent when the bounds are equal.

    init: S as `SkewSymmetric`, gamma in the middle of its bounds; inputs of unit variance give outputs of variance 1/3 +
    gamma^2 (discrete: gamma^2).  `violation(W)` is the distance of W from the set (discrete: the norm of W'W - g^2 I, g^2 =
    |W|^2 / n, of what g exceeds the bounds by, and of 2 if det W < 0); `from_matrix` goes to the nearest one: skew part and mean
    of the diagonal (discrete: polar factor of determinant 1, by its logarithm).

    ValueError for bounds that are negative or out of order, or an unknown time.

    Source: Haber and Ruthotto, arXiv:1705.03341; Chang et al., arXiv:1902.09689.

    >>> import torch, linmaps
    >>> spec = linmaps.DampedSkewSymmetric(3)
    >>> spec.eig(spec.init(torch.Generator().manual_seed(0))).real
    tensor([-0.3000, -0.3000, -0.3000])
    """

    name: ClassVar[str] = "damped_skew_symmetric"
    promise: ClassVar[str] = "Re eigenvalues = -gamma (discrete: modulus gamma), gamma in [sigma_min, sigma_max]"
    at_zero: ClassVar[str] = "-m I (discrete: m I)"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False

    sigma_min: float = 0.1
    sigma_max: float = 0.5
    time: Time = field(default="continuous", kw_only=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)
        self._expect(self.time in get_args(Time), "time", "'continuous' or 'discrete'")

    def _shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"upper": (self.in_features * (self.in_features - 1) // 2,)}
        return shapes | ({"gamma": ()} if self.sigma_min < self.sigma_max else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        params = SkewSymmetric(self.in_features)._init(generator, dtype)
        return params | {k: params["upper"].new_zeros(()) for k in self._shapes() if k == "gamma"}

    def _gamma(self, params: Params) -> Tensor:
        if self.sigma_min == self.sigma_max:
            return params["upper"].new_full((), self.sigma_max)
        return between(self.sigma_min, self.sigma_max, params["gamma"])

    def _weight(self, params: Params) -> Tensor:
        gamma = self._gamma(params)
        if self.time == "discrete":
            return gamma * rotation(skew(params["upper"], self.in_features))
        return skew(params["upper"], self.in_features, diagonal=-gamma)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        values, right = SkewSymmetric(self.in_features)._eig({"upper": params["upper"]}, vectors)
        gamma = self._gamma(params)
        return (gamma * values.exp() if self.time == "discrete" else values - gamma), right

    def _singular_values(self, params: Params) -> Tensor:
        return self._eig(params, False)[0].abs().sort(descending=True).values

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return y @ self._inverse(params) if self.time == "discrete" else super()._solve(params, y)

    def _inverse(self, params: Params) -> Tensor:
        if self.time == "continuous":
            return super()._inverse(params)
        return rotation(skew(params["upper"], self.in_features)).mT / self._gamma(params)

    def _logabsdet(self, params: Params) -> Tensor:
        if self.time == "discrete":
            return self.in_features * self._gamma(params).log()
        return super()._logabsdet(params)

    def _nearest(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and the skew part, or gamma and the rotation, of the nearest matrix of the set."""
        if self.time == "continuous":
            gamma, rest = -W.diagonal().mean(), (W - W.mT) / 2
        else:
            rest = polar(W, 1)
            gamma = (W * rest).sum() / self.in_features
        return gamma.clamp(self.sigma_min, self.sigma_max), rest

    def _violation(self, W: Tensor) -> Tensor:
        n = self.in_features
        if self.time == "continuous":
            gamma, rest = self._nearest(W)
            return frobenius(W - rest + gamma * eye_like(W, n))
        squared = W.square().sum() / n
        size = positive_root(squared)
        wrong = 2 * householder.wrong_component(W, 1).to(W.dtype)
        off = W.mT @ W - squared * eye_like(W, n)
        return frobenius(off, (size - self.sigma_max).clamp(min=0), (self.sigma_min - size).clamp(min=0), wrong)

    def _from_matrix(self, W: Tensor) -> Params:
        gamma, rest = self._nearest(W)
        S = rest if self.time == "continuous" else log_rotation(rest)
        params = {"upper": pack_upper(S, diagonal=1)}
        if self.sigma_min < self.sigma_max:
            params["gamma"] = unbetween(self.sigma_min, self.sigma_max, gamma)
        return params
