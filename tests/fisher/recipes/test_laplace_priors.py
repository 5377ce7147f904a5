"""Laplace with priors by number, layer and entry, a prior mean, a temperature, noise: against dense formulas and closed forms."""

import math

import pytest
import torch
from torch.func import grad, jacrev, vmap

import fisher
from fisher.recipes import functional_laplace, laplace, tune_noise, tune_prior_precision
from fisher.recipes.posterior.bases import cast
from linmaps import trees
from tests.fisher.digits import D
from tests.laws import close

_r = torch.Generator().manual_seed(5)
randn = lambda *shape: torch.randn(shape, generator=_r, dtype=D)
P = {"a": {"weight": randn(4, 3), "bias": randn(4)}, "b": {"weight": randn(2, 4), "bias": randn(2)}}
X, T, TEST = randn(12, 3), torch.arange(12) % 2, randn(5, 3)
MEAN = trees.map(lambda t: 0.3 * t + 0.1, P)
ENTRIES = trees.map(lambda t: t.abs() + 0.2, P)
PRIORS = {
    "number": 0.7,
    "layers": {"a": 0.5, "b": torch.tensor(2.0, dtype=D)},
    "leaves": {"a": {"weight": 0.5, "bias": 0.1}, "b": {"weight": 2.0, "bias": 0.3}},
    "entries": ENTRIES,
}
N, WARM = 12, 0.6


def f(p, x):
    return torch.nn.functional.linear(torch.tanh(torch.nn.functional.linear(x, **p["a"])), **p["b"])


def spread(prior, params=P):
    """The diagonal of a prior in the flat order, by hand."""
    if isinstance(prior, (int, float)):
        return torch.full((trees.ravel(params)[0].numel(),), float(prior), dtype=D)
    pairs = [(path, t) for path, t in zip(trees.paths(params), trees.leaves(params))]
    found = []
    for path, t in pairs:
        node = prior
        for key in path:
            node = node[key] if isinstance(node, dict) else node
        found.append((torch.as_tensor(node, dtype=D) * torch.ones_like(t)).flatten())
    return torch.cat(found)


REPRESENTATIONS = ["Dense", "Diag", "BlockDiag", "QuasiDiag", "KFAC", "EKFAC", "LowRank", "Mixed", "Implicit"]


def made(name, prior, **options):
    F = fisher.fim(f, P, X, getattr(fisher, f"PMat{name}"))
    return laplace(f, P, F, N, prior, MEAN, WARM, **options), F.to_torch()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_every_matrix_under_every_prior_is_the_dense_formula(name, prior):
    posterior, F = made(name, PRIORS[prior])
    precision = N * F / WARM + torch.diag(spread(PRIORS[prior]))
    want = torch.linalg.inv(precision)
    J = jacrev(lambda p: f(p, TEST))(P)
    J = torch.cat([t.reshape(5, 2, -1) for t in trees.leaves(J)], -1)
    mean, covariance = posterior.predict(TEST)
    close(mean, f(P, TEST), 1e-12, "mean")
    close(covariance, J @ want @ J.mT, 1e-8, "covariance")
    joint_mean, joint = posterior.predict(TEST, joint=True)
    flat = J.flatten(0, 1)
    close((joint_mean, joint), (mean.flatten(), flat @ want @ flat.T), 1e-8, "joint")
    if name == "Implicit":
        return
    v = trees.ravel(trees.sub(P, MEAN))[0]
    diag = spread(PRIORS[prior])
    evidence = -3.0 / WARM - (diag * v**2).sum() / 2 + diag.log().sum() / 2 - torch.linalg.slogdet(precision)[1] / 2
    close(posterior.log_marginal_likelihood(-3.0), evidence, 1e-8, "evidence")
    z = vmap(posterior.F.layout.unravel)(torch.eye(len(F), dtype=D))
    R = vmap(lambda t: trees.ravel(t)[0])(posterior.sample(noise=z)) - trees.ravel(P)[0]
    close(R.T @ R, want, 1e-8, "samples")
    q = trees.map(lambda t: t + 0.1, P)
    u = trees.ravel(trees.sub(q, P))[0]
    log = -(u @ precision @ u) / 2 + torch.linalg.slogdet(precision)[1] / 2 - len(u) / 2 * math.log(2 * math.pi)
    close(posterior.log_prob(q), log, 1e-8, "density")


@pytest.mark.parametrize("prior", ["number", "layers", "entries"])
def test_derivatives_of_predictions_go_through_all_that_a_posterior_is_of(prior):
    """By the params (F's repeated eigenvalues among them), the prior, its mean and T: against finite differences."""
    P0 = laplace(f, P, fisher.fim(f, P, X, fisher.PMatKFAC), N, PRIORS[prior]).prior_precision

    def run(p, prior, warm, mean):
        posterior = laplace(f, p, fisher.fim(f, p, X, fisher.PMatDense), N, prior, mean, warm)
        return posterior.predict(TEST)[1].sum() + posterior.log_marginal_likelihood(1.0)

    args = (P, P0, torch.tensor(WARM, dtype=D), MEAN)
    way = trees.map(lambda t: torch.cos(7 * t), args)
    slope = trees.dot(grad(lambda args: run(*args))(args), way)
    at = lambda h: run(*trees.axpy(h, way, args))
    h = 1e-4
    close(slope, (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h), 1e-7, "slope")


def test_one_decomposition_serves_all_priors(monkeypatch):
    """Of KFAC, as of the dense matrix, in `laplace`: none in predictions, samples, evidence, tuning."""
    for name in ("KFAC", "Dense", "BlockDiag"):
        F = fisher.fim(f, P, X, getattr(fisher, f"PMat{name}"), "gaussian")
        calls = []
        for fn in ("eigh", "qr", "ldl_factor", "ldl_factor_ex", "inv", "solve", "svd"):
            real = getattr(torch.linalg, fn)
            monkeypatch.setattr(
                torch.linalg,
                fn,
                lambda *a, real=real, fn=fn, calls=calls, **k: (calls.append((fn, len(a[0]))), real(*a, **k))[1],
            )
        posterior = laplace(f, P, F, N, 0.7)
        made_here = len(calls)
        assert made_here >= 1
        posterior.predict(TEST)
        posterior.sample(torch.Generator().manual_seed(0))
        posterior.log_marginal_likelihood(0.0, 2.0)
        tuned = tune_noise(tune_prior_precision(posterior), (X, f(P, X) + 0.3), prior=True, steps=5)
        tuned.predict(TEST)
        assert len(calls) == made_here, calls[made_here:]
        if name != "Dense":
            layered = laplace(f, P, F, N, {"a": 1.0, "b": 2.0})
            made_here = len(calls)
            tune_prior_precision(layered).predict(TEST)
            tune_prior_precision(posterior, by="layer").predict(TEST)
            assert len(calls) == made_here, calls[made_here:]
        monkeypatch.undo()


# --- Bayesian linear regression in closed form ---------------------------------------------------------------------------


def linear(p, x):
    more = torch.nn.functional.linear(torch.cat([x, x[:, :1] ** 2], 1), **p["b"])
    return torch.nn.functional.linear(x, **p["a"]).sum(1, keepdim=True) + more.sum(1, keepdim=True)


def regression(prior, mean, warm, variance, y):
    """The mode of the tempered posterior of a linear model, and the dense closed form of its evidence."""
    flat, unravel = trees.ravel(P)
    Phi = jacrev(lambda v: linear(unravel(v), X)[:, 0])(flat)
    m, diag = trees.ravel(mean)[0], spread(prior)
    precision = Phi.T @ Phi / (variance * warm) + torch.diag(diag)
    mode = torch.linalg.solve(precision, Phi.T @ y / (variance * warm) + diag * m)
    S = warm * variance * torch.eye(N, dtype=D) + Phi @ torch.diag(1 / diag) @ Phi.T
    r = y - Phi @ m
    gauss = -(r @ torch.linalg.solve(S, r)) / 2 - torch.linalg.slogdet(2 * math.pi * S)[1] / 2
    powers = N / 2 * math.log(2 * math.pi * variance * warm) - N / (2 * warm) * math.log(2 * math.pi * variance)
    return unravel(mode), gauss + powers, Phi, precision


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("warm", [1.0, 0.6])
def test_the_evidence_of_linear_regression_is_exact(prior, warm):
    """With prior mean, temperature, noise and priors of every kind: y ~ N(Phi m, T S + Phi P^-1 Phi'), tempered."""
    y = randn(N, 1)
    params, evidence, Phi, precision = regression(PRIORS[prior], MEAN, warm, 0.3, y[:, 0])
    for representation in (fisher.PMatDense, fisher.PMatLowRank):
        F = fisher.fim(linear, params, X, representation, fisher.Gaussian(0.3))
        posterior = laplace(linear, params, F, N, PRIORS[prior], MEAN, warm)
        close(posterior.log_marginal_likelihood(posterior.log_likelihood((X, y))), evidence, 1e-8, "evidence")
        batches = [(X[:5], y[:5]), (X[5:], y[5:])]
        close(posterior.log_likelihood(batches), posterior.log_likelihood((X, y)), 1e-12, "in batches")
        want = (Phi @ torch.linalg.solve(precision, Phi.T)).diagonal()
        close(posterior.predict(X)[1].flatten(), want, 1e-8, "variance")
        close(posterior.predict(X, noise=True)[1].flatten(), want + 0.3, 1e-8, "variance of targets")
        joint = posterior.predict(X, joint=True, noise=True)[1]
        close(joint, Phi @ torch.linalg.solve(precision, Phi.T) + 0.3 * torch.eye(N, dtype=D), 1e-8, "joint")


@pytest.mark.parametrize("prior", ["number", "layers", "entries"])
def test_tuning_noise_finds_the_maximum_of_the_evidence(prior):
    y = f(P, X) + 0.5 * randn(N, 2)
    kind = fisher.PMatKFAC if prior == "layers" else fisher.PMatDense
    base = fisher.fim(f, P, X, kind, fisher.Gaussian((0.3, 0.6)))

    def evidence(c, prior_precision):
        F = fisher.fim(f, P, X, kind, fisher.Gaussian(c * torch.tensor([0.3, 0.6], dtype=D)))
        posterior = laplace(f, P, F, N, prior_precision, MEAN, WARM)
        return posterior.log_marginal_likelihood(posterior.log_likelihood((X, y)))

    posterior = laplace(f, P, base, N, PRIORS[prior], MEAN, WARM)
    tuned = tune_noise(posterior, (X, y))
    c = tuned.likelihood.variance[0] / 0.3
    close(tuned.likelihood.variance, c * torch.tensor([0.3, 0.6], dtype=D), 1e-12, "variance")
    assert abs(grad(evidence)(c, PRIORS[prior])) < 1e-7
    assert all(evidence(c * w, PRIORS[prior]) < evidence(c, PRIORS[prior]) for w in (0.2, 0.9, 1.1, 5.0))
    close(tuned.log_marginal_likelihood(tuned.log_likelihood((X, y))), evidence(c, PRIORS[prior]), 1e-9, "evidence")
    same = fisher.fim(f, P, X, kind, tuned.likelihood)
    close(tuned.predict(TEST), laplace(f, P, same, N, PRIORS[prior], MEAN, WARM).predict(TEST), 1e-9, "predictions")
    if prior == "entries":
        return
    both = tune_noise(posterior, (X, y), prior=True)
    c = both.likelihood.variance[0] / 0.3
    slopes = grad(evidence, (0, 1))(c, both.prior_precision)
    assert all(abs(t) < 1e-6 for t in trees.leaves(slopes))


@pytest.mark.parametrize("name", ["Dense", "KFAC", "Diag", "BlockDiag", "LowRank"])
@pytest.mark.parametrize("by", ["number", "layer", "entry"])
def test_tuning_by_layer_and_entry_finds_the_maximum(name, by):
    if by == "entry" and name in ("KFAC", "LowRank"):
        return
    posterior = made(name, 1.0)[0]
    tuned = tune_prior_precision(posterior, by=by)
    found = tuned.prior_precision
    assert set(found) == {"a", "b"} if by != "number" else found.ndim == 0
    slopes = grad(lambda prior: tuned.log_marginal_likelihood(0.0, prior))(found)
    logs = trees.map(lambda g, p: g * p, slopes, found)
    assert all((t.abs() < 1e-7).all() for t in trees.leaves(logs))
    assert tuned.log_marginal_likelihood(0.0) > posterior.log_marginal_likelihood(0.0)
    again = tune_prior_precision(tuned)
    close(again.prior_precision, found, 1e-6, "kept groups")


@pytest.mark.parametrize("by", [None, "number", "layer", "entry"])
def test_tuning_in_function_space_is_that_of_the_exact_matrix(by):
    """One evidence has one slope and one maximum: the same steps towards it, from a prior of any form."""
    for likelihood, prior in (("categorical", 0.7), ("gaussian", PRIORS["layers"])):
        dense = laplace(f, P, fisher.fim(f, P, X, fisher.PMatDense, likelihood), N, prior, MEAN, WARM)
        space = functional_laplace(f, P, X, prior, MEAN, WARM, likelihood)
        want, got = (tune_prior_precision(one, by=by, steps=6) for one in (dense, space))
        close(got.prior_precision, want.prior_precision, 1e-8, "prior")
        close(got.predict(TEST)[1], want.predict(TEST)[1], 1e-8, "predictions")
        for found in (got.log_marginal_likelihood(-1.0), space.log_marginal_likelihood(-1.0, want.prior_precision)):
            close(found, want.log_marginal_likelihood(-1.0), 1e-8, "evidence")


@pytest.mark.parametrize(("prior", "both"), [("number", True), ("number", False), ("entries", False)])
def test_tuning_noise_in_function_space_is_that_of_the_exact_matrix(prior, both):
    y = torch.cos(X[:, :2])
    dense = laplace(f, P, fisher.fim(f, P, X, fisher.PMatDense, "gaussian"), N, PRIORS[prior], MEAN, WARM)
    space = functional_laplace(f, P, X, PRIORS[prior], MEAN, WARM, "gaussian")
    want, got = (tune_noise(one, (X, y), prior=both, steps=3) for one in (dense, space))
    close(got.likelihood.variance, want.likelihood.variance, 1e-8, "noise")
    close(got.predict(TEST, noise=True)[1], want.predict(TEST, noise=True)[1], 1e-8, "predictions")


def test_a_posterior_of_half_precision_and_of_float32_is_that_of_float64_nearly():
    want = made("KFAC", PRIORS["layers"])[0].predict(TEST)[1]
    for dtype, tol in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        p, x, mean = cast((P, X, MEAN), dtype)
        F = fisher.fim(f, p, x, fisher.PMatKFAC)
        posterior = laplace(f, p, F, N, {"a": 0.5, "b": 2.0}, mean, WARM)
        got = posterior.predict(TEST.to(dtype))[1]
        assert got.dtype == dtype
        close(got.to(D), want, tol, str(dtype))
        assert posterior.sample(torch.Generator().manual_seed(0))["a"]["weight"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["Dense", "KFAC", "Diag", "LowRank", "function space"])
def test_sums_over_many_examples_are_not_kept_in_half_precision(name, dtype):
    """A sum in bfloat16 stops growing after 256 terms of one size: 1,000 batches add up as one batch does."""
    p = cast(P, dtype)
    x = X[:2].to(dtype).repeat(500, 1)
    t = torch.arange(1000) % 2
    if name == "function space":
        posterior = functional_laplace(f, p, x[:8])
    else:
        posterior = laplace(f, p, fisher.fim(f, p, x[:8], getattr(fisher, f"PMat{name}")), 8)
    want = -torch.nn.functional.cross_entropy(f(p, x).to(D), t, reduction="sum")
    for batches in ((x, t), list(zip(x.split(1), t.split(1)))):
        found = posterior.log_likelihood(batches)
        assert found.dtype == torch.float32
        close(found.to(D), want, 1e-5, "log-likelihood")
    evidence = posterior.log_marginal_likelihood(found)
    assert evidence.dtype == torch.float32
    close(evidence - posterior.log_marginal_likelihood(torch.zeros(())), found, 1e-5, "evidence")
    if name != "function space":
        assert posterior.log_prob(p).dtype == torch.float32


def test_an_ensemble_of_posteriors_is_one_vmap():
    members = trees.stack([P, trees.map(lambda t: 1.1 * t, P)])
    make = lambda p: laplace(f, p, fisher.fim(f, p, X, fisher.PMatKFAC), N, {"a": 0.5, "b": 2.0}, MEAN, WARM)
    both = vmap(make)(members)
    run = lambda posterior: (posterior.predict(TEST), posterior.log_marginal_likelihood(1.0))
    close(vmap(run)(both), trees.stack([run(make(p)) for p in trees.unstack(members)]), 1e-10, "ensemble")
    dense = vmap(lambda p: laplace(f, p, fisher.fim(f, p, X, fisher.PMatDense), N, {"a": 0.5, "b": 2.0}))(members)
    assert vmap(lambda q: q.log_marginal_likelihood(0.0))(dense).shape == (2,)  # names of layers are still known
    loud = lambda p: tune_noise(
        laplace(f, p, fisher.fim(f, p, X, fisher.PMatKFAC, "gaussian"), N), (X, f(P, X) + 0.1 * X[:, :2]), steps=20
    )
    noisy = vmap(loud)(members)
    got = vmap(lambda q: q.likelihood.variance)(noisy)
    close(got, torch.stack([loud(p).likelihood.variance for p in trees.unstack(members)]), 1e-9, "noise of each")


def test_one_decomposition_serves_a_grid_of_priors(monkeypatch):
    """The grid by vmap, as it is chosen from on held-out data: the numbers of a loop, by one decomposition for each factor."""
    grid, F = torch.logspace(-2, 2, 7, dtype=D), fisher.fim(f, P, X, fisher.PMatKFAC)
    want = torch.stack([laplace(f, P, F, N, a).probabilities(TEST) for a in grid])
    calls, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m, *a, **k: (calls.append(m.shape), eigh(m, *a, **k))[1])
    close(vmap(lambda a: laplace(f, P, F, N, a).probabilities(TEST))(grid), want, 1e-12, "grid")
    of_one = len(calls)
    calls.clear()
    laplace(f, P, F, N, 1.0)
    assert of_one == len(calls)
    assert all(len(s) == 2 for s in calls)


def test_errors_say_what_a_prior_is():
    F = fisher.fim(f, P, X, fisher.PMatKFAC)
    with pytest.raises(ValueError, match="prior_precision: got the layer 'c', expected one of 2"):
        laplace(f, P, F, N, {"c": 1.0})
    with pytest.raises(ValueError, match="prior_precision: got no number for"):
        laplace(f, P, F, N, {"a": 1.0})
    with pytest.raises(ValueError, match=r"prior_mean: .*b.*"):
        laplace(f, P, F, N, 1.0, {"a": P["a"]})
    for T_ in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="temperature: got"):
            laplace(f, P, F, N, 1.0, None, T_)
    with pytest.raises(ValueError, match=r"by: got '\?', expected one of"):
        tune_prior_precision(laplace(f, P, F, N), by="?")
    with pytest.raises(ValueError, match=r"tune_noise: got a posterior of Categorical, expected one of a gaussian"):
        tune_noise(laplace(f, P, F, N), (X, f(P, X)))
    with pytest.raises(ValueError, match=r"noise: got True for Categorical"):
        laplace(f, P, F, N).predict(X, noise=True)
    exact = laplace(f, P, fisher.fim(f, P, X, fisher.PMatKFAC, "gaussian"), N)
    with pytest.raises(ValueError, match="no maximum at a positive noise"):
        tune_noise(exact, (X, f(P, X)))


def test_numbers_beyond_any_use_are_refused_before_anything_runs():
    F = fisher.fim(f, P, X, fisher.PMatKFAC, "gaussian")
    posterior = laplace(f, P, F, N)
    classes = laplace(f, P, fisher.fim(f, P, X, fisher.PMatKFAC), N)
    g = torch.Generator()
    for call, message in [
        (
            lambda: tune_prior_precision(posterior, steps=10**9),
            "steps: got 1000000000, expected an int from 1 to 10000",
        ),
        (lambda: tune_noise(posterior, (X, f(P, X) + 1), steps=2**70), "steps: got .*expected an int from 1 to 10000"),
        (
            lambda: classes.probabilities(X, link="mc", generator=g, n_samples=10**9),
            "n_samples: asks for .*fewer samples",
        ),
        (lambda: fisher.recipes.effective_dimension(F, 0.1, generator=g, n_samples=10**9), "n_samples: asks for"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
