"""The same posterior in function space, from kernels of the training examples: for more params than outputs of examples.

N training examples, C outputs of one, K columns of the likelihood's root, P the precision of the prior, T the temperature.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Generic, cast

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.checks.arguments import parameters
from fisher.checks.axes import OUTPUT, batch_size, together
from fisher.checks.data import NO_EXAMPLE, weighted_batches
from fisher.checks.finiteness import finite
from fisher.checks.reverse_mode import reverse
from fisher.collector.collection import LayerCollection
from fisher.derivatives.forward import jvp
from fisher.derivatives.plain import plainly
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.columns import Exact
from fisher.likelihoods.held import Emptied, emptied
from fisher.likelihoods.names import LikelihoodName
from fisher.pmat import PMatEye
from fisher.recipes.posterior import inner, parts, priors
from fisher.recipes.posterior.predictions import Predictive
from fisher.trials import modes
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision, full_precision_methods
from linmaps.numerics.dtypes import working, working_dtype
from linmaps.trees.printed import on_a_line
from linmaps.trees.tree import Tree


@trees.record(static=("f", "kind", "layers"))
class FunctionalLaplace(Predictive, Generic[Tree]):
    """Posterior of the outputs, N(f, K** - K*X R (I + R'K_XX R)^-1 R'K_X*) with K = J P^-1 J'; from `functional_laplace`.

    x: the training inputs.  roots `[K, N, C]`: of H / T of each of them.  factor: the Cholesky factor of I + R'K_XX R.
    Files hold it without f: `torch.load(path).on_function(f)`.
    """

    f: Callable[..., Tensor]
    params: Tree
    x: Any
    roots: Tensor
    factor: Tensor
    prior_precision: Any
    prior_mean: Any = None
    temperature: Tensor | None = None
    kind: Likelihood | Emptied | None = None
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    layers: LayerCollection | None = None

    def __repr__(self) -> str:
        shape = tuple(getattr(self.roots, "shape", ("?", "?", "?")))[-3:]
        prior = f"prior_precision = {priors.shown(self.prior_precision)}"
        return on_a_line(self, [f"N = {shape[1]}", f"C = {shape[2]}", prior, self._warm(), self._of()])

    @property
    def space(self) -> PMatEye:
        """The identity on the leaves that the posterior is of."""
        return inner.space_of(self.params, self.layers)

    @property
    def _space(self) -> PMatEye:
        return self.space

    @property
    def n_examples(self) -> int:
        """N, the number of training examples."""
        return self.roots.shape[-2]

    @typed
    def log_marginal_likelihood(self, log_likelihood: Tensor | float, prior_precision: Any = None) -> Tensor:
        """log p(data) = log_likelihood / T - v' P v / 2 - logdet(I + R'K_XX R) / 2 with v = params - prior mean, a scalar.

        The number that `Laplace.log_marginal_likelihood` is with the exact Gauss-Newton matrix, differentiable in the precision P
        of the prior, which may be given here in any form that `laplace` takes.
        """
        checks.number(log_likelihood, "log_likelihood", cure="give the sum of the log-likelihoods of all examples")
        F, P, factor = self.space, self.prior_precision, self.factor
        if prior_precision is not None:
            P = priors.precision(F, prior_precision, self.params)
            priors.check_positive(P)
            factor = inner.factor_of(self._inner(P))
        fit = log_likelihood if self.temperature is None else log_likelihood / self.temperature
        found = fit - priors.quadratic(F, P, self._deviation()) / 2 - factor.diagonal().log().sum()
        return found.to(working_dtype(trees.leaves(self.params)[0].dtype))

    def _deviation(self) -> Any:
        """params - prior mean, a vector of the space."""
        own = parts.part(self.space, self.params)
        return own if self.prior_mean is None else trees.sub(own, self.prior_mean)

    def _inner(self, P: Any) -> Tensor:
        """R'K_XX R with another prior: of one number in place of one number the kernel is a multiple of what it was."""
        before = self.prior_precision
        if isinstance(P, Tensor) and isinstance(before, Tensor):
            own = self.factor @ self.factor.mT - torch.eye(len(self.factor), dtype=P.dtype, device=P.device)
            return own * (before / P)
        return inner.within(self.roots, inner.kernel_of(self.f, self.params, self.space, P, self.layers)(self.x, None))

    def _effective(self, of: Callable[[Any], Any], at: Any, counts: Any, name: str) -> Any:
        halves = torch.func.grad(lambda s: inner.factor_of(self._inner(of(s))).diagonal().log().sum())(at)
        return trees.map(lambda g: -2 * g, halves)

    def _under(self, P: Any, name: str | None = None) -> FunctionalLaplace[Tree]:
        return dataclasses.replace(self, prior_precision=P, factor=inner.factor_of(self._inner(P)))

    def _louder(self, c: Tensor, known: Likelihood) -> FunctionalLaplace[Tree]:
        kind, numbers = emptied(known)
        factor = inner.factor_of(self._inner(self.prior_precision) / c)
        return dataclasses.replace(self, roots=self.roots * c.rsqrt(), factor=factor, kind=kind, numbers=numbers)

    def _prior_trace(self, P: Any) -> Tensor:
        T = 1.0 if self.temperature is None else self.temperature
        return T * self._inner(P).diagonal().sum()

    @typed
    def sample(self, generator: torch.Generator | None = None, *, noise: Any = None) -> Tree:
        """Params drawn from the posterior, a tree like params, by the generator or by standard normal `noise`.

        With d drawn from the prior, of N(0, P^-1), and e of N(0, I): params + d - P^-1 J'R (I + R'K_XX R)^-1 (R'J d + e), by one
        product with J and one with J'.  noise: a pair, a tree like params (or like its leaves that the posterior is of) and
        `[K, N]`.  Papandreou and Yuille (2010).
        """
        if (generator is None) == (noise is None):
            raise ValueError(f"sample: got {'neither' if noise is None else 'both'}, expected a generator or noise")
        F, (K, N, C) = self.space, self.roots.shape
        own = parts.part(F, self.params)
        if generator is None and not (isinstance(noise, tuple | list) and len(noise) == 2):
            got = type(noise).__name__
            raise ValueError(
                f"noise: got {got}, expected a pair: a tree like params, and {(K, N)}; or give a generator"
            )
        z, e = self._drawn(generator, F, own) if generator is not None else noise
        z = F.check_vector(parts.cut(F, z, self.params), "noise: 0")
        if tuple(e.shape) != (K, N):
            raise ValueError(f"noise: 1: got shape {tuple(e.shape)}, expected {(K, N)}: columns and training examples")
        deviations = F.layout.unflatten([r.rsqrt() for r in priors.leafwise(F, self.prior_precision)])
        d = trees.map(lambda z, r: (z * r).to(z.dtype), z, deviations)
        g = parts.on_part(F, self.f, self.params)
        modes.forward(self.f, self.params, self.x, "sample")
        Jd = jvp(lambda p: g(p, self.x), (own,), (d,))[1]
        s = torch.einsum("knc,nc->nk", self.roots, Jd.reshape(N, C).to(self.roots.dtype)) + e.mT.to(self.roots.dtype)
        u = torch.cholesky_solve(s.reshape(N * K, 1), self.factor).reshape(N, K)
        w = torch.einsum("nk,knc->nc", u, self.roots).reshape(Jd.shape).to(Jd.dtype)
        pulled = reverse(lambda p: plainly(g)(p, self.x), own)[1](w)[0]
        near = trees.map(lambda t, d, h, r: t + d - (h * r * r).to(t.dtype), own, d, pulled, deviations)
        return cast(Tree, parts.whole(F, self.params, near))

    def _drawn(self, generator: torch.Generator, F: PMatEye, own: Any) -> tuple[Any, Tensor]:
        normal = lambda shape, like: torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device)
        z = trees.map(lambda t: normal(t.shape, t).to(t.device), own)
        return z, normal(self.roots.shape[:2], self.roots).to(self.roots.device)

    def __getattr__(self, name: str) -> Any:
        if name in ELSEWHERE:
            raise AttributeError(f"FunctionalLaplace.{name}: {ELSEWHERE[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _moments(self, batch: list[Any], joint: bool, layers: LayerCollection | None) -> tuple[Tensor, Tensor]:
        y = together([self.f(self.params, part) for part in batch], OUTPUT)
        kernel = inner.kernel_of(self.f, self.params, self.space, self.prior_precision, self.layers)
        x = together(batch) if joint else None
        found = []
        for one in batch if x is None else [x]:
            n = batch_size(one)
            if n == 0:
                width = self.roots.shape[-1]
                found.append(self.roots.new_zeros(0, 0) if joint else self.roots.new_zeros(0, width, width))
                continue
            cross = kernel(self.x, one)  # [N, C, B, C]
            V = torch.einsum("knc,ncbd->nkbd", self.roots, cross).flatten(0, 1)
            V = torch.linalg.solve_triangular(self.factor, V.flatten(1), upper=False).reshape(V.shape)
            if joint:
                own, V = kernel(one, None), V.flatten(1)
                found.append(own.flatten(2).flatten(0, 1) - V.mT @ V)
            else:
                found.append(inner.own_blocks(kernel, one) - torch.einsum("mbc,mbd->bcd", V, V))
        return y, torch.cat(found).to(trees.leaves(self.params)[0].dtype)


ELSEWHERE = {
    "update": "the posterior holds its training inputs, which an F does not; make it anew of all data, functional_laplace(f, "
    "params, [*data, *more]), or laplace(f, params, F, n_examples), whose update takes an F",
    "log_prob": "the density of params is not held in function space; make laplace(f, params, F, n_examples) with F of PMatKFAC, "
    "PMatLowRank, ...",
}


@full_precision("f")
@typed
def functional_laplace(
    f: Callable[..., Tensor],
    params: Tree,
    data: Any,
    prior_precision: Any = 1.0,
    prior_mean: Any = None,
    temperature: float | Tensor = 1.0,
    likelihood: LikelihoodName | Likelihood = "categorical",
    *,
    layers: LayerCollection | None = None,
) -> FunctionalLaplace[Tree]:
    """The posterior of `laplace` with the exact Gauss-Newton matrix, in function space: no matrix of the size of params.

    With K = J P^-1 J' from `fisher.gram` and the roots R of H / T of all N training examples,

        cov[f(x*)] = K** - K*X R (I + R'K_XX R)^-1 R'K_X*,

    one Cholesky factorization of N times the columns of the likelihood, `[N K, N K]` (of C classes K = C - 1): for networks with
    many parameters and a few hundred examples.  data: the training batch x, `(x, target)`, `(x, target, weight)`, or an
    iterable of those; targets say which positions count.  Other arguments as of `laplace`; layers: found here if not given.

    Rasmussen and Williams (2006), section 3.4; Khan et al. (2019).

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}, torch.eye(2)
    >>> posterior = functional_laplace(f, p, x, likelihood="gaussian")
    >>> posterior, posterior.predict(x)[1].flatten()
    (FunctionalLaplace(N = 2, C = 1, prior_precision = 1, Gaussian), tensor([0.5000, 0.5000]))
    """
    checks.number(temperature, "temperature", low=0, above=True, cure="1 for the posterior of the data as they are")
    f, params = doors.function(f), parameters(params, True)
    doors.options(layers=layers)
    known = find_likelihood(likelihood)
    seen = [item for item in weighted_batches(data, what="functional_laplace") if batch_size(item[0])]
    if not seen:
        raise ValueError(NO_EXAMPLE)
    finite(seen, "data", "clean or drop these examples")
    x = together([item[0] for item in seen], "data")
    if layers is None:
        layers = LayerCollection.from_function(f, params, x)
    F = inner.space_of(params, layers)
    P, T = priors.precision(F, prior_precision, params), priors.number(temperature, F)
    priors.check_positive(P, cure="a kernel needs a prior")
    columns = [Exact(known)(f(params, x), target, weight) for x, target, weight in seen]
    roots = torch.cat([working(r.reshape(*r.shape[:2], math.prod(r.shape[2:]))) for r in columns], 1) * T**-0.5
    K = inner.kernel_of(f, params, F, P, layers)(x, None)
    factor, (kind, numbers) = inner.factor_of(inner.within(roots, K)), emptied(known)
    return FunctionalLaplace(
        f, params, x, roots, factor, P, priors.mean_of(F, prior_mean, params), T, kind, numbers, layers
    )


full_precision_methods(FunctionalLaplace)
