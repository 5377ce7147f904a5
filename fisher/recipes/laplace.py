"""Laplace approximation: the posterior N(params, (N F + prior I)^-1), its evidence and its predictions.

N examples, d parameters, B examples to predict, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.jacobian import jacobian
from fisher.layers import LayerCollection
from fisher.pmat.base import PMat
from linmaps import trees


@trees.record(static=("f", "n_examples"))
class Laplace:
    """Posterior of the parameters given N examples: precision N F + prior_precision I around `params`; from `laplace`.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> p, x = {"w": torch.ones(2, 1)}, torch.eye(2)
    >>> posterior = laplace(f, p, fisher.fim(f, p, x, fisher.PMatDense, "gaussian"), n_examples=2)
    >>> mean, covariance = posterior.predict(x)
    >>> mean.T, covariance.flatten()
    (tensor([[1., 1.]]), tensor([0.5000, 0.5000]))
    """

    f: Callable[..., Tensor]
    n_examples: int
    params: Any
    F: PMat
    prior_precision: Tensor

    @property
    def regul(self) -> Tensor:
        """prior_precision / N: the precision is N (F + regul I)."""
        return self.prior_precision / self.n_examples

    def log_marginal_likelihood(self, log_likelihood: Tensor | float, prior_precision: Tensor | None = None) -> Tensor:
        """log p(data) = log_likelihood - prior |params|^2 / 2 + d/2 log prior - logdet(N F + prior I) / 2, a scalar.

        log_likelihood: log p(data | params), summed over the N examples.  Differentiable in the prior precision, which
        may be given here.  Exact for a gaussian likelihood and an f linear in params at the posterior mode.  MacKay (1992).
        """
        prior = self.prior_precision if prior_precision is None else prior_precision
        d = self.F.layout.numel
        logdet = d * math.log(self.n_examples) + self.F.logdet(prior / self.n_examples)
        return log_likelihood - prior * trees.dot(self.params, self.params) / 2 + (d * prior.log() - logdet) / 2

    def predict(self, x: Any, *, layers: LayerCollection | None = None) -> tuple[Tensor, Tensor]:
        """Mean `[B, C]` and covariance `[B, C, C]` of f's outputs: f(x_b) and J_b (N F + prior I)^-1 J_b'.

        That of the model linearized at params (Khan et al., 2019; Immer, Korzepa and Bauer, 2021); the noise of a
        gaussian likelihood is to be added.  layers: makes the Jacobian faster.
        """
        J = jacobian(self.f, self.params, x, layers=layers)
        S = self.F.solve(J, self.regul)
        covariance = torch.einsum("bcn,bkn->bck", J.to_torch(), S.to_torch()) / self.n_examples
        return self.f(self.params, x).reshape(J.size()[:2]), covariance

    def probabilities(self, x: Any, *, layers: LayerCollection | None = None) -> Tensor:
        """Class probabilities `[B, C]` of logits with this covariance: softmax(z_c / sqrt(1 + pi/8 var_c)) (MacKay, 1992)."""
        mean, covariance = self.predict(x, layers=layers)
        variance = covariance.diagonal(dim1=1, dim2=2)
        return torch.softmax(mean / (1 + math.pi / 8 * variance).sqrt(), -1)

    def sample(self, generator: torch.Generator | None = None, *, noise: Any = None) -> Any:
        """Params drawn from the posterior, by the generator or by standard normal `noise`, a tree like params."""
        drawn = self.F.sample(generator, self.regul, noise=noise)
        return trees.axpy(self.n_examples**-0.5, drawn, self.params)


def laplace(
    f: Callable[..., Tensor], params: Any, F: PMat, n_examples: int, prior_precision: float | Tensor = 1.0
) -> Laplace:
    """The Gaussian posterior of params under the prior N(0, I / prior_precision), from the Fisher matrix at the mode.

    F: of fim(f, params, data), a mean over N = `n_examples` examples.  prior_precision: a number or a scalar tensor, to be
    tuned by `tune_prior_precision`.  ValueError for N < 1 or F of other params.

    Daxberger et al. (2021).

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(2, 3)}
    >>> posterior = laplace(f, p, fisher.fim(f, p, torch.eye(2), fisher.PMatKFAC), n_examples=2)
    >>> posterior.sample(torch.Generator().manual_seed(0))["w"].shape
    torch.Size([2, 3])
    """
    if n_examples < 1:
        raise ValueError(f"n_examples: got {n_examples}, expected the number of examples that F is a mean over")
    params = F.layout.check(params, "params (of the Fisher matrix)")
    like = trees.leaves(params)[0]
    return Laplace(f, n_examples, params, F, torch.as_tensor(prior_precision, dtype=like.dtype, device=like.device))


def tune_prior_precision(posterior: Laplace, *, steps: int = 40) -> Laplace:
    """The posterior with the prior precision that maximizes the evidence, params held fixed.

    At the maximum prior |params|^2 = g(prior), the effective number of parameters g(prior) = d - d logdet / d log prior.
    The slope of log g - log prior in log prior lies in [-2, -1] for every F, so that the steps

        log prior <- log prior + (log g(prior) - log prior - log |params|^2) / 1.5

    contract by at least a factor 3 from any start.  MacKay (1992) for the fixed point.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.full((2, 1), 0.5)}, 10 * torch.eye(2)
    >>> posterior = laplace(f, p, fisher.fim(f, p, x, fisher.PMatDense, "gaussian"), n_examples=2)
    >>> round(tune_prior_precision(posterior).prior_precision.item(), 2)
    3.85
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    F, n, d = posterior.F, posterior.n_examples, posterior.F.layout.numel
    size = trees.dot(posterior.params, posterior.params).log()
    slope = torch.func.grad(lambda s: F.logdet(s.exp() / n))
    s = posterior.prior_precision.log()
    for _ in range(steps):
        s = s + ((d - slope(s)).log() - s - size) / 1.5
    return Laplace(posterior.f, n, posterior.params, F, s.exp())
