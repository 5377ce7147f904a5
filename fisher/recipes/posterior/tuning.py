"""Priors and noise that maximize the evidence, params held fixed: fixed points and bisection on the eigenvalues kept.

d parameters, g(P) = d - d logdet(N F / T + P) / d log P their effective number (of a group of entries with one precision: its
own share); n numbers among the targets.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from fisher.checks.data import weighted_batches
from fisher.likelihoods import Gaussian
from fisher.likelihoods.arrays import check_target
from fisher.likelihoods.held import array
from fisher.recipes.posterior import bases, priors
from fisher.recipes.posterior.approximation import Laplace
from fisher.recipes.posterior.functional import FunctionalLaplace
from fisher.recipes.posterior.predictions import weighed
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.numerics.dtypes import working
from linmaps.trees import path_str

By = Literal["number", "layer", "entry"]
Posterior = TypeVar("Posterior", bound=Laplace[Any] | FunctionalLaplace[Any])
MOST, ENOUGH = 10_000, "each step halves the distance to the maximum at least: 40 reach it to rounding"


@typed
@full_precision()
def tune_prior_precision(posterior: Posterior, *, steps: int = 40, by: By | None = None) -> Posterior:
    """The posterior with the prior precision that maximizes the evidence, params held fixed.

    by: "number": one for all entries; "layer": one for each layer of F (each leaf where F knows no layers); "entry": one for
    each entry (automatic relevance determination); None: as the prior of the posterior is.  posterior: of `laplace` or of
    `functional_laplace`, where one number needs no other kernel, and each step by layer or entry one.  With v = params - prior
    mean, at the maximum P_k |v_k|^2 = g_k(P), the effective number of parameters of group k.  In log P the Jacobian of log g has
    rows with entries >= 0 beside a diagonal in [-1, 0] and a sum <= 0, for every F, so that the steps

        log P_k <- log P_k + (log g_k(P) - log P_k - log |v_k|^2) / 2

    contract by at least a factor 2 from any start; of one number, divided by 1.5, by 3.  MacKay (1992) for the fixed point.
    ValueError where there is no maximum: params that are all zero, an F that is zero or indefinite.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.full((2, 1), 0.5)}, 10 * torch.eye(2)
    >>> posterior = fisher.recipes.laplace(f, p, fisher.fim(f, p, x, fisher.PMatDense, "gaussian"), n_examples=2)
    >>> round(tune_prior_precision(posterior).prior_precision.item(), 2)
    3.85
    """
    checks.size(steps, "steps", 1, MOST, cure=ENOUGH)
    priors.check_positive(posterior.prior_precision, cure="start from a positive one")
    P = grouped(posterior, by)
    groups = counted(posterior, P), sizes(posterior, P)
    for _ in range(steps):
        P = stepped(posterior, P, *groups)
        _check_maximum(P)
    return posterior._under(P, "tune_prior_precision")  # type: ignore[return-value]


def grouped(posterior: Any, by: By | None) -> Any:
    """The prior's precision by number, layer or entry: of each group the mean of what it was."""
    F, P = posterior._space, posterior.prior_precision
    if by is None:
        return P
    if not isinstance(by, str) or by not in get_args(By):
        raise ValueError(f"by: got {by!r}, expected one of {list(get_args(By))}, or None")
    amounts = [t.expand(s) for t, s in zip(priors.leafwise(F, P), F.layout.shapes)]
    if by == "entry":
        return F.layout.unflatten([t.clone() for t in amounts])
    if by == "number":
        return sum(t.sum() for t in amounts) / max(1, F.layout.numel)
    return trees.map(lambda t: t.mean(), by_layer(F, F.layout.unflatten(amounts)))


def by_layer(F: Any, v: Any) -> dict[str, Tensor]:
    """A vector by layer; by leaf where F knows no layers."""
    if F.known_layers is not None:
        return F.known_layers.views(v)
    return dict(zip(map(path_str, F.layout.paths), trees.leaves(v)))


def stepped(posterior: Any, P: Any, counts: Any, squared: Any) -> Any:
    """P after one step towards P_k |v_k|^2 = g_k(P), of groups of so many entries and of these |v_k|^2."""
    logs = trees.map(lambda t: t.log(), P)
    exp = lambda s: trees.map(lambda t: t.exp(), s)
    numbers = posterior._effective(exp, logs, counts, "tune_prior_precision")
    rate = 1.5 if isinstance(P, Tensor) else 2.0
    return exp(trees.map(lambda s, g, v: s + (g.log() - s - v.log()) / rate, logs, numbers, squared))


def sizes(posterior: Any, P: Any) -> Any:
    """|v_k|^2 of each group of P, in its form."""
    own = priors.like(posterior._space).dtype
    squared = trees.map(lambda t: t.to(own) ** 2, posterior._deviation())
    return summed(posterior, P, squared)


def counted(posterior: Any, P: Any) -> Any:
    """The number of entries of each group of P, in its form."""
    own = priors.like(posterior._space).dtype
    return summed(posterior, P, trees.map(lambda t: torch.ones_like(t, dtype=own), posterior._deviation()))


def summed(posterior: Any, P: Any, v: Any) -> Any:
    """The sums of a vector over the groups of P: its derivative at P of <v, P spread out>."""
    F = posterior._space
    spread = lambda P: sum((r * t).sum() for r, t in zip(priors.leafwise(F, P), trees.leaves(v)))
    return torch.func.grad(spread)(P)


@typed
@full_precision()
def tune_noise(posterior: Posterior, data: Any, *, steps: int = 40, prior: bool = False) -> Posterior:
    """The posterior with the noise of a gaussian likelihood that maximizes the evidence, params held fixed.

    data: `(x, target)` or batches of these, the N examples that F is a mean over.  The variance (or covariance) S that F was
    made with becomes c S, and F becomes F / c.  With q = sum of r' S^-1 r over the residuals r, the evidence is concave in
    log c, and at its maximum

        q / c = n - T g(c),

    g the effective number of parameters (MacKay, 1992); found by Newton steps inside of a bracket, log(q / n) and
    log((q + tr(N F P^-1)) / n).  prior: tune the prior precision too, in turn, in the groups that it has.
    ValueError for another likelihood, for another number of examples, for residuals that are all zero, and as in
    `tune_prior_precision`.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.ones(1, 1)}, torch.ones(4, 1)
    >>> posterior = fisher.recipes.laplace(f, p, fisher.fim(f, p, x, fisher.PMatDense, "gaussian"), n_examples=4)
    >>> tuned = tune_noise(posterior, (x, torch.tensor([[0.0], [1.0], [1.0], [2.0]])))
    >>> round(tuned.likelihood.variance.item(), 3)
    0.637
    """
    checks.size(steps, "steps", 1, MOST, cure=ENOUGH)
    known = posterior._known("tune_noise")
    if not isinstance(known, Gaussian):
        raise ValueError(
            f"tune_noise: got a posterior of {type(known).__name__}, expected one of a gaussian likelihood"
        )
    priors.check_positive(posterior.prior_precision)
    q, n = residuals(posterior, known, data)
    _check_noise(q)
    P, c = posterior.prior_precision, torch.ones_like(q)
    groups = (counted(posterior, P), sizes(posterior, P)) if prior else ()
    for _ in range(steps if prior else 1):
        P = stepped(with_noise(posterior, c), P, *groups) if prior else P
        _check_maximum(P)
        c = _noise(posterior, P, q, n, c, min(steps, 4) if prior else steps)
        _check_noise(c)
    return with_noise(posterior, c)._under(P)


def _check_noise(c: Tensor) -> None:
    if bases.untrue(c.isfinite() & (c > 0)):
        raise ValueError(
            "tune_noise: the evidence has no maximum at a positive noise, expected residuals that are not all zero and a Fisher "
            "matrix that is not indefinite"
        )


def residuals(posterior: Any, known: Gaussian, data: Any) -> tuple[Tensor, Tensor]:
    """(q, n): the sum of r' S^-1 r over all residuals, and of how many numbers."""
    total = priors.number(0.0, posterior._space)
    n, examples = total, 0
    for x, target, weight in weighted_batches(data):
        y = working(posterior.f(posterior.params, x))
        r = check_target("tune_noise", target, tuple(y.shape)).to(y.dtype) - y
        total = total + weighed((r * known.product(y, r)).to(total.dtype).flatten(1).sum(1), weight)
        n = n + weighed(torch.full_like(r, 1.0, dtype=total.dtype).flatten(1).sum(1), weight)
        examples += len(y)
    if examples != posterior.n_examples:
        raise ValueError(
            f"tune_noise: data has {examples} examples, expected the n_examples={posterior.n_examples} of the posterior: the "
            "evidence is that of the examples that F is a mean over, all of them"
        )
    return total, n


def _noise(posterior: Any, P: Any, q: Tensor, n: Tensor, start: Tensor, steps: int) -> Tensor:
    """c with q / c = n - T g(c)."""
    d, T = posterior._space.layout.numel, 1.0 if posterior.temperature is None else posterior.temperature
    lifted = lambda s: trees.map(lambda t: t * s.exp(), P)  # det(N F / (c T) + P) = c^-d det(N F / T + c P)
    g = lambda s: posterior._effective(lifted, s, d, "tune_noise")
    trace = posterior._prior_trace(P)
    excess = lambda s: q * (-s).exp() - n + T * g(s)
    low, high = (q / n).log(), ((q + trace.clamp_min(0)) / n).log()
    s = torch.minimum(torch.maximum(start.log(), low), high)
    for _ in range(steps):
        slope, value = torch.func.grad_and_value(excess)(s)
        low, high = torch.where(value > 0, s, low), torch.where(value > 0, high, s)
        new = s - value / slope
        s = torch.where((new >= low) & (new <= high), new, (low + high) / 2)
    return s.exp()


def with_noise(posterior: Any, c: Tensor) -> Any:
    """The posterior with c times the noise: F / c."""
    known: Any = posterior.likelihood
    name = "variance" if known.covariance is None else "covariance"
    return posterior._louder(c, dataclasses.replace(known, **{name: array(getattr(known, name), c) * c}))


def _check_maximum(P: Any) -> None:
    for path, t in zip(trees.paths(P), trees.leaves(P)):
        if bases.untrue(t.isfinite() & (t > 0)):
            where = f" of {path_str(path)}" if path else ""
            raise ValueError(
                f"prior_precision: the evidence has no maximum at a positive number{where}, expected params that are not all "
                "zero and a Fisher matrix that is neither zero nor indefinite; give a prior_precision of your own"
            )
