"""Poisson: independent counts with log-rates y, of any shape `[B, *out]`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.likelihoods.arrays import Independent, check_range, check_target, per_example, uniform
from linmaps import trees
from linmaps.checks.annotations import typed


@trees.static
@dataclasses.dataclass(frozen=True)
class Poisson(Independent):
    """Counts with rate exp(y) for each coordinate of the output, all independent: H = diag(exp(y)).

    Targets: counts like y.  Noise: uniform in (0, 1).

    >>> import torch
    >>> Poisson().root(torch.tensor([[4.0]]).log())
    tensor([[[2.]]])
    """

    uniform_noise: ClassVar[bool] = True

    @typed
    def deviation(self, y: Tensor) -> Tensor:
        """exp(y / 2)."""
        return torch.exp(0.5 * y)

    @typed
    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Uniform noise in (0, 1)."""
        return uniform(shape, generator, like)

    @typed
    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        """Scores `[n, *y.shape]` at the quantiles `noise` of the counts."""
        rate = torch.exp(y)
        return quantile(rate, noise).to(y.dtype) - rate

    @typed
    def score(self, y: Tensor, target: Any) -> Tensor:
        """t - exp(y)."""
        return self._target(y, target) - torch.exp(y)

    @typed
    def log_prob(self, y: Tensor, target: Any) -> Tensor:
        """Sum `[B]` of t y - exp(y) - log t!."""
        t = self._target(y, target)
        return per_example(t * y - torch.exp(y) - torch.lgamma(t + 1))

    @staticmethod
    def _target(y: Tensor, target: Any) -> Tensor:
        t = check_target("poisson", target, tuple(y.shape))
        check_range("poisson", t, 0, math.inf, "counts >= 0")
        return t.to(y.dtype)


BISECTIONS = 24  # exact up to rates of 1e11, above to 1e-6 standard deviations


def quantile(rate: Tensor, u: Tensor) -> Tensor:
    """The smallest count t with P(T <= t) >= u, float64, constant in both, by bisection.

    It lies within 14 sqrt(rate) + 30 of the rate: outside the probability is below that of rounding in u.

    >>> import torch
    >>> quantile(torch.tensor(2.0), torch.tensor([0.1, 0.5, 0.9]))
    tensor([0., 2., 4.], dtype=torch.float64)
    """
    rate, u = rate.detach().double(), u.detach().double()
    width = 14 * rate.sqrt() + 30
    low = (rate - width).floor().clamp_min(-1) + torch.zeros_like(u)  # P(T <= low) < u <= P(T <= high)
    high = (rate + width).ceil() + torch.zeros_like(u)
    for _ in range(BISECTIONS):
        middle = ((low + high) / 2).floor()
        enough = torch.special.gammaincc(middle + 1, rate) >= u
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high
