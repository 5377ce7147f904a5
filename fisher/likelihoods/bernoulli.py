"""Bernoulli: independent yes-or-no targets with logits y, of any shape `[B, *out]`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.likelihoods.arrays import Independent, check_range, check_target, moderated, per_example, uniform
from linmaps import trees
from linmaps.checks.annotations import typed


@trees.static
@dataclasses.dataclass(frozen=True)
class Bernoulli(Independent):
    """P(t = 1) = p = sigmoid(y) for each coordinate of the output, all independent: H = diag(p (1 - p)).

    Targets: numbers in [0, 1] like y.  Noise: uniform in (0, 1).

    >>> import torch
    >>> Bernoulli().root(torch.zeros(1, 2))[:, 0]
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """

    uniform_noise: ClassVar[bool] = True

    @typed
    def deviation(self, y: Tensor) -> Tensor:
        """sqrt(p (1 - p)) = 1 / (2 cosh(y / 2))."""
        return torch.exp(0.5 * y - _softplus(y))

    @typed
    def product(self, y: Tensor, u: Tensor) -> Tensor:
        """H u `[B, *out]`."""
        return torch.sigmoid(y) * torch.sigmoid(-y) * u

    @typed
    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Uniform noise in (0, 1)."""
        return uniform(shape, generator, like)

    @typed
    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        """Scores `[n, *y.shape]` at t = 1 where noise < p."""
        sign = 2 * (noise < torch.sigmoid(y)).to(y.dtype) - 1
        return sign * torch.sigmoid(-sign * y)

    @typed
    def score(self, y: Tensor, target: Any) -> Tensor:
        """t - p, as t (1 - p) - (1 - t) p: accurate where p is close to 0 or 1."""
        t = self._target(y, target)
        return t * torch.sigmoid(-y) - (1 - t) * torch.sigmoid(y)

    @typed
    def log_prob(self, y: Tensor, target: Any) -> Tensor:
        """Sum `[B]` of t log p + (1 - t) log(1 - p)."""
        t = self._target(y, target)
        return per_example(t * y - _softplus(y))

    @typed
    def probabilities(self, mean: Tensor, variance: Tensor) -> Tensor:
        """sigmoid(m / sqrt(1 + pi/8 v)) of each coordinate, for logits of mean m and variance v (MacKay, 1992)."""
        return torch.sigmoid(moderated(mean, variance))

    @staticmethod
    def _target(y: Tensor, target: Any) -> Tensor:
        t = check_target("bernoulli", target, tuple(y.shape))
        check_range("bernoulli", t, 0, 1, "numbers from 0 to 1; of targets -1 and 1 give (t + 1) / 2")
        return t.to(y.dtype)


def _softplus(y: Tensor) -> Tensor:
    """log(1 + exp(y)), right in float64 too: beyond 40 it is y to its last digit."""
    return torch.nn.functional.softplus(y, threshold=40.0)
