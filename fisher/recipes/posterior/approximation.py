"""Laplace approximation: the posterior N(params, (N F / T + P)^-1), its evidence, its density and its predictions.

N examples, P the precision of the prior, T the temperature, d parameters, B examples to predict, C outputs of one example.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, cast

import torch
from torch import Tensor

from fisher.checks import doors, finiteness
from fisher.checks.arguments import DIVERGED, parameters
from fisher.collector.collection import LayerCollection
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.agreement import check_agreement
from fisher.likelihoods.held import Emptied, emptied
from fisher.likelihoods.names import LikelihoodName
from fisher.passes.fold import Mean
from fisher.pmat.contract.pmat import PMat
from fisher.recipes.posterior import bases, parts, priors
from fisher.recipes.posterior.covariances import moments
from fisher.recipes.posterior.predictions import Predictive
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision, full_precision_methods
from linmaps.numerics.dtypes import working_dtype
from linmaps.trees.printed import on_a_line
from linmaps.trees.tree import Tree

Prior = float | Tensor | Mapping[Any, Any] | Any  # a number, {layer: number}, or a tree like params
REMADE = "of the posterior (after tune_noise its noise is tuned); make F with fim(..., likelihood=posterior.likelihood)"
OTHER = "as likelihood= says; make F with fim(..., likelihood=) of the same, or leave it out here"


@trees.record(static=("f", "n_examples", "kind", "layers"))
class Laplace(Predictive, Generic[Tree]):
    """Posterior of the parameters given N examples: precision N F / T + P around `params`; from `laplace`.

    F may be of some layers alone: the others are fixed at params.  basis: F decomposed, for solves of any prior.
    Files hold it without f: `torch.load(path).on_function(f)`.

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
    prior_mean: Any = None
    temperature: Tensor | None = None
    basis: PMat | None = None
    kind: Likelihood | Emptied | None = None
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    layers: Any = None

    def __repr__(self) -> str:
        prior = f"prior_precision = {priors.shown(self.prior_precision)}"
        mean = None if self.prior_mean is None else "prior_mean"
        return on_a_line(self, [self.F, f"N = {self.n_examples:,}", prior, mean, self._warm(), self._of()])

    @property
    def matrix(self) -> PMat:
        """F, which knows its layers by name."""
        return self.F if self.F.known_layers is not None or self.layers is None else self.F.on_layers(self.layers)

    @property
    def weight(self) -> Tensor | float:
        """N / T: the precision is N / T (F + regul)."""
        return float(self.n_examples) if self.temperature is None else self.n_examples / self.temperature

    @property
    def regul(self) -> Any:
        """P T / N, in the form of the prior's precision."""
        return self._regul(self.prior_precision)

    @property
    def _space(self) -> PMat:
        return self.matrix

    def _regul(self, P: Any) -> Any:
        return trees.map(lambda r: r / self.weight, P)

    # --- evidence ----------------------------------------------------------------------------------------------------

    @typed
    def log_marginal_likelihood(self, log_likelihood: Tensor | float, prior_precision: Prior = None) -> Tensor:
        """log p(data) = log_likelihood / T - v' P v / 2 + (logdet P - logdet(N F / T + P)) / 2, v = params - prior mean.

        log_likelihood: log p(data | params), summed over the N examples.  Differentiable in the precision P of the prior, which
        may be given here in any form that `laplace` takes.  Exact for a gaussian likelihood and an f linear in params at the
        posterior mode.  MacKay (1992).

        ValueError for numbers that are none, a prior precision that is not positive, and an indefinite N F / T + P.
        """
        checks.number(log_likelihood, "log_likelihood", cure="give the sum of the log-likelihoods of all examples")
        F, P = self.matrix, self.prior_precision
        if prior_precision is not None:
            P = priors.precision(F, prior_precision, self.params)
        priors.check_positive(P)
        bases.check_definite(F, self._regul(P), "log_marginal_likelihood")
        fit = log_likelihood if self.temperature is None else log_likelihood / self.temperature
        beside = (
            priors.logdet(F, P) - self._logdet(P, "log_marginal_likelihood") - priors.quadratic(F, P, self._deviation())
        )
        return (fit + beside / 2).to(working_dtype(self.F.dtype))

    def _deviation(self) -> Any:
        """params - prior mean, a vector of F's space."""
        own = parts.part(self.matrix, self.params)
        return own if self.prior_mean is None else trees.sub(own, self.prior_mean)

    def _logdet(self, P: Any, name: str) -> Tensor:
        """logdet(N F / T + P)."""
        M, regul = self._at(P)
        bases.check_determinant(M, name)
        found = M.logdet(regul)
        bases.definite(found.isfinite(), name)
        return found + self.F.layout.numel * torch.as_tensor(self.weight, dtype=found.dtype, device=found.device).log()

    def _at(self, P: Any) -> tuple[PMat, Any]:
        """(M, r) with F + P T / N = M + r: M decomposed where that is kept."""
        regul = self._regul(P)
        if self.basis is not None and bases.constant(self.F):
            if not bases.apart(self.matrix, self.regul):
                if P is self.prior_precision:
                    return self.basis, bases.damped(self.matrix, regul)[1]
            elif bases.apart(self.matrix, regul):
                return self.basis, regul
        return bases.damped(self.matrix, regul)

    def _effective(self, of: Callable[[Any], Any], at: Any, counts: Any, name: str) -> Any:
        slope = torch.func.grad(lambda s: self._logdet(of(s), name))(at)
        return trees.map(lambda n, g: n - g, counts, slope)

    def _under(self, P: Any, name: str | None = None) -> Laplace[Tree]:
        F, made = self.matrix, dataclasses.replace(self, prior_precision=P)
        if name is not None:
            bases.check_definite(F, made.regul, name)
        now = bases.apart(F, made.regul)
        if self.basis is not None and now and bases.apart(F, self.regul):
            return made
        M, _ = bases.damped(F, made.regul)
        return dataclasses.replace(made, basis=bases.decomposed(M) if M is not F or now else None)

    def _louder(self, c: Tensor, known: Any) -> Laplace[Tree]:
        scaled = lambda M: M.scaled((1 / c).to(M.dtype))
        kind, numbers = emptied(known)
        made = dataclasses.replace(self, F=scaled(self.F), kind=kind, numbers=numbers)
        if self.basis is None or not bases.apart(self.matrix, self.regul):
            return dataclasses.replace(made, basis=None)._under(self.prior_precision)
        return dataclasses.replace(made, basis=scaled(self.basis))

    def _prior_trace(self, P: Any) -> Tensor:
        diag = zip(priors.leafwise(self.matrix, P), trees.leaves(self.matrix.get_diag()))
        return self.n_examples * sum((t.to(r.dtype) / r).sum() for r, t in diag)

    # --- the density ---------------------------------------------------------------------------------------------------

    @typed
    def log_prob(self, params: Any) -> Tensor:
        """log density of the posterior at other params, a scalar: -v'(N F / T + P)v / 2 + logdet / 2 - d/2 log 2 pi.

        It is the prior of a next task: train on sum of log p(t | f(params, x)) + posterior.log_prob(params), then `update`.
        """
        finiteness.finite(params, "params", DIVERGED)
        dtype = working_dtype(self.F.dtype)
        at, mode = (bases.cast(parts.part(self.matrix, p), dtype) for p in (params, self.params))
        v = trees.sub(at, mode)
        fit = bases.cast(self.F, dtype).vTMv(v)
        squared = self.weight * fit + priors.quadratic(self.matrix, self.prior_precision, v)
        d = self.F.layout.numel
        return (self._logdet(self.prior_precision, "log_prob") - squared - d * math.log(2 * math.pi)) / 2

    @typed
    def sample(self, generator: torch.Generator | None = None, *, noise: Any = None) -> Tree:
        """Params drawn from the posterior, by the generator or by standard normal `noise`, a tree like params."""
        noise = None if noise is None else parts.cut(self.matrix, noise, self.params)
        M, regul = self._at(self.prior_precision)
        z = None if noise is None or M is not self.basis else bases.cast(noise, M.dtype)
        drawn = M.sample(generator, regul, noise=noise if z is None else z)
        own = parts.part(self.matrix, self.params)
        near = trees.map(lambda z, t: t + (z * self.weight**-0.5).to(t.dtype), drawn, own)
        return cast(Tree, parts.whole(self.matrix, self.params, near))

    # --- predictions -----------------------------------------------------------------------------------------------------

    def _moments(self, batch: list[Any], joint: bool, layers: LayerCollection | None) -> tuple[Tensor, Tensor]:
        if self.basis is None:
            bases.check_definite(self.matrix, self.regul, "predict")
        M, regul = self._at(self.prior_precision)
        y, found = moments(
            M, regul, self.matrix, self.f, self.params, batch, joint=joint, layers=layers, watch=self.basis is None
        )
        bases.check_covariance(found, M, regul)
        return y, found / self.weight

    # --- more data -------------------------------------------------------------------------------------------------------

    @typed
    def update(self, F: PMat, n_examples: int, params: Tree | None = None) -> Laplace[Tree]:
        """The posterior after a next task: precision N F / T + N' F' / T + P around the params trained on it.

        F: of `fim` at the new params over the N' = `n_examples` examples of the task; params None: those of the posterior.
        The matrix is the mean over all examples, as `fisher.Mean` takes it: of PMatKFAC that of the factors, as over the
        batches of one `fim`; exact of all that are linear.  Where F is exact, a linear model with gaussian likelihood that is
        trained under the prior `log_prob` has then the posterior of all data at once.  ValueError for an F of another likelihood
        or another noise.

        >>> import torch, fisher
        >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}, torch.eye(2)
        >>> F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
        >>> laplace(f, p, F, 2).update(F, 2).predict(x)[1].flatten()
        tensor([0.3333, 0.3333])
        """
        _check_count(n_examples)
        check_agreement(F.likelihood, self.likelihood, "update: F", REMADE)
        known = self.matrix.known_layers
        merged: Any = Mean().add(self.matrix, self.n_examples).add(F, n_examples).value()
        new = self.params if params is None else params
        return laplace(
            self.f,
            new,
            merged if known is None else merged.on_layers(known),
            self.n_examples + n_examples,
            self.prior_precision,
            self.prior_mean,
            1.0 if self.temperature is None else self.temperature,
            likelihood=self.likelihood,
        )


@typed
@full_precision("f")
def laplace(
    f: Callable[..., Tensor],
    params: Tree,
    F: PMat,
    n_examples: int,
    prior_precision: Prior = 1.0,
    prior_mean: Any = None,
    temperature: float | Tensor = 1.0,
    likelihood: LikelihoodName | Likelihood | None = None,
) -> Laplace[Tree]:
    """The Gaussian posterior of params under the prior N(prior_mean, P^-1), from the Fisher matrix at the mode.

    F: of fim(f, params, data), a mean over N = `n_examples` examples; of some layers alone (`fim(..., layers=
    layers.select(...))`) the posterior is of their leaves, the others stay as they are.  It is decomposed here, once.
    prior_precision: a number >= 0, a mapping {layer: number}, or a tree like params of numbers or tensors, to be tuned by
    `tune_prior_precision`.  prior_mean: a tree like params, a number, or None for zero.  temperature: T > 0 of the likelihood,
    precision N F / T + P; below 1 a cold posterior.  likelihood: for `probabilities`; that of `fim` if F comes from there.
    ValueError for N < 1, F of other params or of another likelihood, and an F that is seen to be indefinite.

    Daxberger et al. (2021).

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(2, 3)}
    >>> posterior = laplace(f, p, fisher.fim(f, p, torch.eye(2), fisher.PMatKFAC), n_examples=2)
    >>> posterior.sample(torch.Generator().manual_seed(0))["w"].shape
    torch.Size([2, 3])
    """
    _check_count(n_examples)
    checks.number(temperature, "temperature", low=0, above=True, cure="1 for the posterior of the data as they are")
    f, params = doors.function(f), parameters(params, True)
    own = parts.part(F, params)
    params = own if parts.leaves_of(F, params) is None else params
    P = priors.precision(F, prior_precision, params)
    T = priors.number(temperature, F)
    regul = trees.map(lambda r: r * T / n_examples, P)
    bases.check_definite(F, regul, "laplace")
    known = F.likelihood if likelihood is None else find_likelihood(likelihood)
    check_agreement(F.likelihood, known, "laplace: F", OTHER)
    kind, numbers = (None, {}) if known is None else emptied(known)
    mean = priors.mean_of(F, prior_mean, params)
    return Laplace(f, n_examples, params, F, P, mean, T, None, kind, numbers, F.known_layers)._under(P)


def _check_count(n: Any) -> None:
    checks.number(n, "n_examples", low=1, tensor=False, cure="give the number of examples that F is a mean over")


full_precision_methods(Laplace)
