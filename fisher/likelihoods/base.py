"""Likelihood: what the estimators ask of a distribution p(t | y) of the target t, given f's output y.

B batch, K columns, n samples; y is `[B, *out]`, a column or a gradient at it is `[B, *out]` too.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import grad


@runtime_checkable
class Likelihood(Protocol):
    """Any object with these three methods is a likelihood; H_b is the Fisher matrix of p(t | y_b) with respect to y_b.

    Optional methods, used where they exist: `n_columns(y)` and `root_part(y, start, stop)` (a part of the root without
    the rest), `product(y, u)` (H u), `score(y, target)` or `log_prob(y, target)` (the empirical estimators),
    `counts(y, target)` (which positions count, bool, broadcast to y, None: all), `notice(y)` (warns of outputs that it was
    not made for), `probabilities(mean, variance)` (predictive, of outputs of this mean and variance).
    """

    def root(self, y: Tensor) -> Tensor:
        """Columns `[K, *y.shape]` with sum over K of r r' = H_b for each example."""

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Noise of this shape, drawn from the generator, for `sample`."""

    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        """Gradients `[n, *y.shape]` of log p(t | y) at targets t drawn by noise `[n, *y.shape]`: mean of g g' is H_b."""


def n_columns(likelihood: Likelihood, y: Tensor) -> int:
    """K, the number of columns of the root at y.

    >>> import torch
    >>> from fisher.likelihoods import Categorical
    >>> n_columns(Categorical(), torch.zeros(5, 10))
    9
    """
    if hasattr(likelihood, "n_columns"):
        return likelihood.n_columns(y)
    return likelihood.root(y).shape[0]


def root_part(likelihood: Likelihood, y: Tensor, start: int, stop: int) -> Tensor:
    """Columns `start` to `stop` of the root, `[<= stop - start, *y.shape]`, as a slice takes them.

    A likelihood without a `root_part` of its own makes the whole root.

    >>> import torch
    >>> from fisher.likelihoods import Categorical
    >>> root_part(Categorical(), torch.zeros(5, 10), 6, 20).shape
    torch.Size([3, 5, 10])
    """
    if hasattr(likelihood, "root_part"):
        return likelihood.root_part(y, start, stop)
    return likelihood.root(y)[start:stop]


def counts(likelihood: Likelihood, y: Tensor, target: Any) -> Tensor | None:
    """Which entries of y count, bool, in a shape that expands to y's; None where all do, or no target says so.

    >>> import torch
    >>> from fisher.likelihoods import Categorical
    >>> counts(Categorical(), torch.zeros(2, 3), torch.tensor([1, -100]))
    tensor([[ True],
            [False]])
    """
    if target is None:
        return None
    return likelihood.counts(y, target) if hasattr(likelihood, "counts") else None


def noticed(likelihood: Likelihood, y: Tensor) -> None:
    """What the likelihood has to say of outputs that it was not made for, by its own method `notice`.

    >>> import torch
    >>> from fisher.likelihoods import Gaussian
    >>> noticed(Gaussian(), torch.ones(2, 2))
    """
    if hasattr(likelihood, "notice"):
        likelihood.notice(y)


def probabilities(likelihood: Likelihood, mean: Tensor, variance: Tensor) -> Tensor:
    """The predictive probabilities for outputs `[B, *out]` of this mean and variance, by the likelihood's own method.

    Raises ValueError for one that has none.

    >>> import torch
    >>> from fisher.likelihoods import Bernoulli
    >>> probabilities(Bernoulli(), torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[0.5000]])
    """
    if not hasattr(likelihood, "probabilities"):
        raise ValueError(
            f"likelihood: {type(likelihood).__name__} has no classes, expected one with a method probabilities(mean, "
            "variance), as Categorical and Bernoulli; of others take predict(x), the mean and covariance of the outputs"
        )
    return likelihood.probabilities(mean, variance)


def score(likelihood: Likelihood, y: Tensor, target: Any) -> Tensor:
    """Gradient `[*y.shape]` of log p(target | y) with respect to y: the `score` of the likelihood, or by its `log_prob`.

    Raises ValueError if the likelihood has neither.

    >>> import torch
    >>> from fisher.likelihoods import Gaussian
    >>> score(Gaussian(2.0), torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
    tensor([[0.5000, 1.5000]])
    """
    if hasattr(likelihood, "score"):
        return likelihood.score(y, target)
    if hasattr(likelihood, "log_prob"):
        return grad(lambda t: likelihood.log_prob(t, target).sum())(y)
    raise ValueError(
        f"likelihood: {type(likelihood).__name__} has no density of given targets, expected a method score(y, target) -> "
        "gradient [*y.shape] or log_prob(y, target) -> [B]; add one, or use estimator='exact' or 'mc'"
    )
