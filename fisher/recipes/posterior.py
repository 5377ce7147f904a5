"""Laplace approximation: the posterior N(params, (N F + prior I)^-1), its evidence and its predictions.

N examples, d parameters, B examples to predict, C outputs of one example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, cast

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.collector.collection import LayerCollection
from fisher.function_space.jacobians import jacobian
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods import probabilities as predictive
from fisher.likelihoods.names import LikelihoodName
from fisher.pmat.contract.damping import Amounts, Regul, flat, times
from fisher.pmat.contract.pmat import PMat
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision, full_precision_methods
from linmaps.numerics.dtypes import working
from linmaps.trees.printed import cell, on_a_line
from linmaps.trees.seals import sealed
from linmaps.trees.tree import Tree

INDEFINITE = (
    "N F + prior_precision I is not positive definite, so it is no precision; take the Fisher or Gauss-Newton matrix in place "
    "of an indefinite Hessian, or a larger prior_precision"
)


@trees.record(static=("f", "n_examples", "likelihood"))
class Laplace(Generic[Tree]):
    """Posterior of the parameters given N examples: precision N F + prior_precision I around `params`; from `laplace`.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> p, x = {"w": torch.ones(2, 1)}, torch.eye(2)
    >>> posterior = laplace(f, p, fisher.fim(f, p, x, fisher.PMatDense, "gaussian"), n_examples=2)
    >>> posterior
    Laplace(PMatDense(d = 2, 4 numbers stored, float32, cpu), N = 2, prior_precision = 1, Gaussian)
    >>> mean, covariance = posterior.predict(x)
    >>> mean.T, covariance.flatten()
    (tensor([[1., 1.]]), tensor([0.5000, 0.5000]))
    """

    f: Callable[..., Tensor]
    n_examples: int
    params: Tree
    F: PMat
    prior_precision: Any
    likelihood: Likelihood | None = None

    def __repr__(self) -> str:
        known = "no likelihood" if self.likelihood is None else repr(self.likelihood).partition("(")[0]
        prior = cell(self.prior_precision) if isinstance(self.prior_precision, Tensor) else "a diagonal"
        return on_a_line(self, [self.F, f"N = {self.n_examples:,}", f"prior_precision = {prior}", known])

    @property
    def regul(self) -> Any:
        """prior_precision / N, a number, a mapping or a tree as it is: the precision is N (F + regul)."""
        return trees.map(lambda r: r / self.n_examples, self.prior_precision)

    @typed
    def log_marginal_likelihood(self, log_likelihood: Tensor | float, prior_precision: Regul | None = None) -> Tensor:
        """log p(data) = log_likelihood - prior |params|^2 / 2 + d/2 log prior - logdet(N F + prior I) / 2, a scalar.

        log_likelihood: log p(data | params), summed over the N examples.  Differentiable in the prior precision, which may
        be given here; of one by layer or by entry prior |params|^2 and d log prior are sums over parameters.  Exact for a
        gaussian likelihood and an f linear in params at the posterior mode.  MacKay (1992).

        ValueError for numbers that are none, a prior precision that is not positive, and an indefinite N F + prior I.
        """
        checks.number(log_likelihood, "log_likelihood", cure="give the sum of the log-likelihoods of all examples")
        given = self.prior_precision if prior_precision is None else prior_precision
        amounts, n, d = self.F._damping(given, "prior_precision"), self.n_examples, self.F.layout.numel
        like = trees.leaves(self.params)[0]
        if isinstance(amounts, Amounts):
            prior = flat(amounts, like)
            several: Any = amounts.map(lambda r: r / n)
            if _false((prior > 0).all()):
                raise ValueError(
                    "prior_precision: got 0 for some parameters, expected numbers > 0; without a prior there is no evidence"
                )
            logs = prior.log().sum()
        else:
            checks.number(given, "prior_precision", low=0, above=True, cure="without a prior there is no evidence")
            prior = torch.as_tensor(given, dtype=like.dtype, device=like.device)
            several, logs = prior / n, d * prior.log()
        _check_definite(self.F, prior.amax() / n if d else prior, "log_marginal_likelihood")
        logdet = d * math.log(n) + self.F.logdet(several)
        _definite(logdet.isfinite(), "log_marginal_likelihood")
        size = trees.dot(self.params, times(amounts if prior.ndim else prior, self.params))
        return log_likelihood - size / 2 + (logs - logdet) / 2

    @typed
    def predict(self, x: Any, *, layers: LayerCollection | None = None) -> tuple[Tensor, Tensor]:
        """Mean `[B, C]` and covariance `[B, C, C]` of f's flattened outputs: f(x_b) and J_b (N F + prior I)^-1 J_b'.

        That of the model linearized at params (Khan et al., 2019; Immer, Korzepa and Bauer, 2021); the noise of a
        gaussian likelihood is to be added.  x: one batch, a tuple or a mapping where f takes several inputs.  layers: makes
        the Jacobian faster.
        """
        y, covariance = self._moments(x, layers)
        return y.reshape(covariance.shape[:2]), covariance

    @typed
    def probabilities(self, x: Any, *, layers: LayerCollection | None = None) -> Tensor:
        """Predictive probabilities, in the shape of f's output `[B, *out]`, of logits of this mean m and variance v.

        categorical: softmax(m / sqrt(1 + pi/8 v)) over the class axis, apart for each position; bernoulli: sigmoid of the
        same at each coordinate (MacKay, 1992).  ValueError for a likelihood without probabilities (gaussian, poisson: see
        `predict`), and for a posterior that knows no likelihood.
        """
        if self.likelihood is None:
            raise ValueError(
                "probabilities: the likelihood of these outputs is not known, expected it of fisher.fim's matrix or by name; "
                "make the posterior with laplace(..., likelihood='categorical') or another"
            )
        mean, covariance = self._moments(x, layers)
        return predictive(self.likelihood, mean, covariance.diagonal(dim1=1, dim2=2).reshape(mean.shape))

    @typed
    def sample(self, generator: torch.Generator | None = None, *, noise: Any = None) -> Tree:
        """Params drawn from the posterior, by the generator or by standard normal `noise`, a tree like params."""
        drawn = self.F.sample(generator, self.regul, noise=noise)
        return cast(Tree, trees.axpy(self.n_examples**-0.5, drawn, self.params))

    def _moments(self, x: Any, layers: LayerCollection | None) -> tuple[Tensor, Tensor]:
        _check_definite(self.F, _largest(self.F, self.regul), "predict")
        x = sealed(x)
        J = jacobian(self.f, self.params, (x,), layers=layers)
        rows, solved = J.to_torch(), self.F.solve(J, self.regul).to_torch()
        covariance = torch.einsum("bcn,bkn->bck", rows, solved) / self.n_examples
        # rounding of the sum is of the size of its terms
        least = -100 * torch.finfo(rows.dtype).eps * (rows * solved).abs().sum(-1) / self.n_examples
        _definite(covariance.diagonal(dim1=1, dim2=2) >= least, "predict")
        return self.f(self.params, x), covariance


@typed
@full_precision("f")
def laplace(
    f: Callable[..., Tensor],
    params: Tree,
    F: PMat,
    n_examples: int,
    prior_precision: Regul = 1.0,
    *,
    likelihood: LikelihoodName | Likelihood | None = None,
) -> Laplace[Tree]:
    """The Gaussian posterior of params under the prior N(0, I / prior_precision), from the Fisher matrix at the mode.

    F: of fim(f, params, data), a mean over N = `n_examples` examples.  prior_precision: a number or a scalar tensor >= 0,
    to be tuned by `tune_prior_precision`; by layer a mapping {name: number}, by entry a tree like params, as regul of
    `F.solve`.  likelihood: for `probabilities`; that of `fim` if F comes from there.
    ValueError for N < 1, F of other params, and an F that is seen to be indefinite.

    Daxberger et al. (2021).

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(2, 3)}
    >>> posterior = laplace(f, p, fisher.fim(f, p, torch.eye(2), fisher.PMatKFAC), n_examples=2)
    >>> posterior.sample(torch.Generator().manual_seed(0))["w"].shape
    torch.Size([2, 3])
    """
    checks.number(
        n_examples, "n_examples", low=1, tensor=False, cure="give the number of examples that F is a mean over"
    )
    amounts = F._damping(prior_precision, "prior_precision")
    f, params = doors.function(f), F.check_space(params, "params")
    like = trees.leaves(params)[0]
    made = lambda r: torch.as_tensor(r, dtype=like.dtype, device=like.device)
    prior = trees.map(made, prior_precision) if isinstance(amounts, Amounts) else made(prior_precision)
    _check_definite(F, _largest(F, prior) / n_examples, "laplace")
    known = F.likelihood if likelihood is None else find_likelihood(likelihood)
    return Laplace(f, n_examples, params, F, prior, known)


@typed
@full_precision()
def tune_prior_precision(posterior: Laplace[Tree], *, steps: int = 40) -> Laplace[Tree]:
    """The posterior with the prior precision that maximizes the evidence, params held fixed.

    At the maximum prior |params|^2 = g(prior), the effective number of parameters g(prior) = d - d logdet / d log prior.
    The slope of log g - log prior in log prior lies in [-2, -1] for every F, so that the steps

        log prior <- log prior + (log g(prior) - log prior - log |params|^2) / 1.5

    contract by at least a factor 3 from any start.  MacKay (1992) for the fixed point.  ValueError where there is no
    maximum: params that are all zero, an F that is zero or indefinite.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.full((2, 1), 0.5)}, 10 * torch.eye(2)
    >>> posterior = laplace(f, p, fisher.fim(f, p, x, fisher.PMatDense, "gaussian"), n_examples=2)
    >>> round(tune_prior_precision(posterior).prior_precision.item(), 2)
    3.85
    """
    checks.size(steps, "steps", 1)
    checks.number(
        posterior.prior_precision,
        "prior_precision",
        low=0,
        above=True,
        cure="start from a positive number, which is tuned",
    )
    F, n, d = posterior.F, posterior.n_examples, posterior.F.layout.numel
    size = trees.dot(posterior.params, posterior.params).log()
    slope = torch.func.grad(lambda s: F._logdet(s.exp() / n))  # looked at below: steps may leave the numbers
    s = posterior.prior_precision.log()
    for _ in range(steps):
        s = s + ((d - slope(s)).log() - s - size) / 1.5
    if _false(s.isfinite() & s.exp().isfinite()):
        raise ValueError(
            "tune_prior_precision: the evidence has no maximum at a positive number, expected params that are not all zero and "
            "a Fisher matrix that is neither zero nor indefinite; give a prior_precision of your own"
        )
    _check_definite(F, s.exp() / n, "tune_prior_precision")
    return Laplace(posterior.f, n, posterior.params, F, s.exp(), posterior.likelihood)


def _largest(F: PMat, prior: Any) -> Tensor:
    """The largest number of a prior: what is not definite with it is not with less."""
    found = flat(F._damping(prior), trees.leaves(prior)[0])
    return found.amax() if found.numel() else found.new_zeros(())


def _check_definite(F: PMat, regul: Tensor, name: str) -> None:
    """Raise if N F + prior I has an eigenvalue that is negative beyond rounding, where that costs less than a solve."""
    for part in F._at_hand():
        m = working(part.detach())
        slack = 100 * torch.finfo(m.dtype).eps * m.abs().sum(-1).amax() + regul.detach() if m.numel() else regul
        if m.ndim == 2:
            eye = torch.eye(len(m), dtype=m.dtype, device=m.device)
            _definite(torch.linalg.cholesky_ex(m + slack * eye).info == 0, name)
        elif m.ndim == 1:
            _definite(m + slack >= 0, name)


def _definite(fine: Tensor, name: str) -> None:
    if _false(fine):
        raise ValueError(f"{name}: {INDEFINITE}")


def _false(fine: Tensor) -> bool:
    """Whether a value under the transforms is False; looked at only to raise."""
    seen = checks.values(fine)
    return seen is not None and not bool(seen.all())


full_precision_methods(Laplace)
