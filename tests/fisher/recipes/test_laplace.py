"""Laplace: exact Bayesian linear regression in closed form; digits; the evidence and its maximum."""

import math
import pickle
from functools import cache

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.recipes.posterior import Laplace, laplace, tune_prior_precision
from linmaps import trees
from tests.fisher.digits import D, digits, linear, objective, start, trained
from tests.laws import close
from tests.oracles import fisher_matrix, jacobians

EXACT = "Dense Diag BlockDiag QuasiDiag KFAC EKFAC LowRank Mixed".split()  # noqa: SIM905
scalar = lambda value: torch.tensor(value, dtype=D)


def regression(prior):
    """The posterior of a linear-Gaussian model at its mode, and the data."""
    x, label = digits(30, features=4)
    y = torch.sin(label[:, None].to(D))
    f = lambda p, x: x @ p["w"]
    w = torch.linalg.solve(x.T @ x + prior * torch.eye(4, dtype=D), x.T @ y)
    p = {"w": w}
    return laplace(f, p, fisher.fim(f, p, x, fisher.PMatDense, "gaussian"), 30, prior), x, y


def gaussian_log_likelihood(f, p, x, y):
    return -(((f(p, x) - y) ** 2).sum() + y.numel() * math.log(2 * math.pi)) / 2


def test_the_evidence_of_a_linear_gaussian_model_is_exact():
    """y ~ N(0, I + x x'/prior)."""
    prior = 0.7
    posterior, x, y = regression(prior)
    got = posterior.log_marginal_likelihood(gaussian_log_likelihood(posterior.f, posterior.params, x, y))
    K = torch.eye(30, dtype=D) + x @ x.T / prior
    want = -(y.T @ torch.linalg.solve(K, y)).squeeze() / 2 - torch.linalg.slogdet(2 * math.pi * K)[1] / 2
    close(got, want, 1e-10, "evidence")


def test_predictions_of_a_linear_gaussian_model_are_exact():
    posterior, x, _ = regression(0.7)
    mean, covariance = posterior.predict(x[:6] * 1.3)
    x2 = x[:6] * 1.3
    inner = torch.linalg.inv(x.T @ x + 0.7 * torch.eye(4, dtype=D))
    close(mean, x2 @ posterior.params["w"], 1e-12, "mean")
    close(covariance.flatten(), ((x2 @ inner) * x2).sum(1), 1e-11, "variance")


@cache
def classifier(prior=2.0, representation=fisher.PMatDense, n=100):
    x, y = digits(n, features=5)
    p = trained(linear, start(5, 10), x, y, ridge=prior / n, steps=25)
    return laplace(linear, p, fisher.fim(linear, p, x, representation), n, prior), x, y


def test_the_covariance_of_logits_is_that_of_the_dense_formula():
    posterior, x, _ = classifier()
    J = jacobians(linear, posterior.params, x[:7])
    precision = 100 * fisher_matrix(linear, posterior.params, x, "categorical") + 2.0 * torch.eye(60, dtype=D)
    want = J @ torch.linalg.inv(precision) @ J.mT
    mean, covariance = posterior.predict(x[:7])
    close(mean, linear(posterior.params, x[:7]), 0.0, "mean")
    close(covariance, want, 1e-9, "covariance")
    layers = fisher.LayerCollection.from_function(linear, posterior.params, x)
    close(posterior.predict(x[:7], layers=layers)[1], want, 1e-9, "covariance by layers")
    probabilities = posterior.probabilities(x[:7])
    scale = (1 + math.pi / 8 * want.diagonal(dim1=1, dim2=2)).sqrt()
    close(probabilities, torch.softmax(mean / scale, -1), 1e-10, "probabilities")


@pytest.mark.parametrize("representation", [getattr(fisher.pmat, f"PMat{name}") for name in EXACT])
def test_the_evidence_and_its_slope_on_digits(representation):
    posterior, x, y = classifier(2.0, representation)
    fit = -100 * objective(linear, x, y)(posterior.params)
    precision = 100 * posterior.F.to_torch() + 2.0 * torch.eye(60, dtype=D)
    squared = trees.dot(posterior.params, posterior.params)
    want = fit - squared + 30 * math.log(2.0) - torch.linalg.slogdet(precision)[1] / 2
    close(posterior.log_marginal_likelihood(fit), want, 1e-9, "evidence")
    slope = grad(lambda prior: posterior.log_marginal_likelihood(fit, prior))(scalar(2.0))
    close(slope, -squared / 2 + 15 - torch.linalg.inv(precision).trace() / 2, 1e-9, "d evidence / d prior")


@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatKFAC, fisher.PMatDiag])
@pytest.mark.parametrize("start_at", [1e-6, 2.0, 1e6])
def test_tuning_finds_the_maximum_of_the_evidence(representation, start_at):
    found, _, _ = classifier(2.0, representation)
    posterior = laplace(linear, found.params, found.F, 100, start_at)
    tuned = tune_prior_precision(posterior)
    evidence = lambda s: tuned.log_marginal_likelihood(0.0, s.exp())
    s = tuned.prior_precision.log()
    assert abs(grad(evidence)(s)) < 1e-8
    assert all(evidence(s + step) < evidence(s) for step in (-5.0, -0.5, -0.01, 0.01, 0.5, 5.0))
    assert posterior.prior_precision == start_at


def test_samples_have_the_posterior_covariance():
    posterior, _, _ = classifier()
    noise = posterior.F.layout.unravel(torch.zeros(60, dtype=D))
    flat = lambda e: posterior.sample(noise=trees.unravel(e, noise))
    columns = vmap(lambda e: trees.ravel(flat(e))[0])(torch.eye(60, dtype=D)) - trees.ravel(posterior.params)[0]
    precision = 100 * posterior.F.to_torch() + 2.0 * torch.eye(60, dtype=D)
    close(columns.T @ columns, torch.linalg.inv(precision), 1e-9, "R R' of the samples R z")
    one, same, other = (posterior.sample(torch.Generator().manual_seed(k)) for k in (0, 0, 1))
    close(one, same, 0.0, "the generator decides")
    assert (one["bias"] != other["bias"]).all()


def test_the_variance_is_larger_away_from_the_data():
    posterior, x, _ = classifier()
    near, far = (posterior.predict(t)[1].diagonal(dim1=1, dim2=2).mean() for t in (x, 5 * x))
    assert far > 4 * near
    confident = lambda q: q.amax(-1).mean()
    assert confident(posterior.probabilities(5 * x)) < confident(torch.softmax(linear(posterior.params, 5 * x), -1))


def test_an_ensemble_is_one_vmap():
    x, _ = digits(20, features=3)
    members = [start(3, 4, seed=k) for k in range(3)]

    def run(p):
        tuned = tune_prior_precision(laplace(linear, p, fisher.fim(linear, p, x, fisher.PMatKFAC), 20), steps=10)
        return tuned.prior_precision, tuned.predict(x[:5])

    close(vmap(run)(trees.stack(members)), trees.stack([run(p) for p in members]), 1e-8, "ensemble")


# --- the predictive of each likelihood ---------------------------------------------------------------------------------

_w = torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=D)
_x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=D)
OUTPUTS = {  # likelihood, shape of the output of one example, class axis of the batch (None: each entry by itself)
    "[B]": ("bernoulli", (), None),
    "[B, 1]": ("bernoulli", (1,), None),
    "labels": ("bernoulli", (4,), None),
    "labels of tokens": (fisher.Bernoulli(), (3, 2), None),
    "classes": ("categorical", (4,), 1),
    "tokens": (fisher.Categorical(class_axis=-1), (3, 4), 2),
    "positions": ("categorical", (4, 3), 1),
    "pixels": ("segmentation", (3, 2, 2), 1),
}


@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatKFAC, fisher.PMatImplicit])
@pytest.mark.parametrize("name", OUTPUTS)
def test_probabilities_are_those_of_the_likelihood(name, representation):
    """softmax(m / sqrt(1 + pi/8 v)) over the class axis, or the sigmoid of it, in the shape of the output."""
    likelihood, shape, axis = OUTPUTS[name]
    f = lambda p, x: (x @ p["w"]).reshape(len(x), *shape)
    p = {"w": _w[:, : math.prod(shape)]}
    F = fisher.fim(f, p, _x, representation, likelihood)
    for posterior in (laplace(f, p, F, 4), laplace(f, p, 1.0 * F, 4, likelihood=likelihood)):
        mean, covariance = posterior.predict(_x)
        assert mean.shape == (4, math.prod(shape))
        z = (mean / (1 + math.pi / 8 * covariance.diagonal(dim1=1, dim2=2)).sqrt()).reshape(4, *shape)
        want = torch.sigmoid(z) if axis is None else torch.softmax(z, axis)
        got = posterior.probabilities(_x)
        close(got, want, 1e-12, "probabilities")
        if axis is not None:
            close(got.sum(axis), torch.ones_like(got.sum(axis)), 1e-13, "sum")
    certain = laplace(f, p, F, 4, 1e12)
    y = f(p, _x)
    close(certain.probabilities(_x), torch.sigmoid(y) if axis is None else torch.softmax(y, axis), 1e-9, "certain")


def test_likelihoods_without_classes_and_unknown_ones_are_refused_by_name():
    f, p = lambda p, x: x @ p["w"], {"w": _w}
    for likelihood in ("gaussian", "poisson"):
        posterior = laplace(f, p, fisher.fim(f, p, _x, fisher.PMatDiag, likelihood), 4)
        with pytest.raises(ValueError, match=rf"likelihood: {likelihood.title()} has no classes.*predict\(x\)"):
            posterior.probabilities(_x)
    F = fisher.fim(f, p, _x, fisher.PMatDiag) + fisher.fim(f, p, _x, fisher.PMatDiag)
    with pytest.raises(ValueError, match=r"likelihood of these outputs is not known.*laplace\(\.\.\., likelihood="):
        laplace(f, p, F, 4).probabilities(_x)
    with pytest.warns(UserWarning, match="one class"):
        one = fisher.fim(f, {"w": _w[:, :1]}, _x, fisher.PMatDiag)
    with pytest.raises(ValueError, match=r"one class, whose probability is 1.*bernoulli"):
        laplace(f, {"w": _w[:, :1]}, one, 4).probabilities(_x)


def test_what_fim_knows_of_its_likelihood_is_no_part_of_the_tree():
    f, p = lambda p, x: x @ p["w"], {"w": _w}
    F = fisher.fim(f, p, _x, fisher.PMatDiag, "bernoulli")
    assert F.likelihood == fisher.Bernoulli()
    assert trees.flatten(F)[1] == trees.flatten(fisher.fim(f, p, _x, fisher.PMatDiag))[1]
    assert pickle.loads(pickle.dumps(F)).likelihood == fisher.Bernoulli()
    assert trees.map(lambda t: t, F).likelihood is None


def test_indefinite_matrices_are_refused():
    f, p = lambda p, x: x @ p["w"], {"w": _w[:, :2]}
    M = torch.diag(torch.tensor([3.0, 1.0, -2.0, 1.0, 1.0, 1.0], dtype=D))
    F = fisher.PMatDense(M, trees.Layout.of(p))
    for G in (F, fisher.PMatDiag(F.layout.unravel(M.diagonal()), F.layout)):
        with pytest.raises(ValueError, match=r"laplace: N F \+ prior_precision I is not positive definite"):
            laplace(f, p, G, 4, 7.9)
        posterior = laplace(f, p, G, 4, 8.1)
        assert all(t.isfinite().all() for t in posterior.predict(_x))
        under = Laplace(f, 4, p, G, scalar(1.0))
        with pytest.raises(ValueError, match=r"predict: N F .* is not positive definite"):
            under.predict(_x)
        with pytest.raises(ValueError, match=r"sample: .* expected finite noise and F \+ regul I positive definite"):
            under.sample(torch.Generator().manual_seed(0))
        with pytest.raises(ValueError, match=r"log_marginal_likelihood: N F .* is not positive definite"):
            under.log_marginal_likelihood(0.0)
        with pytest.raises(ValueError, match=r"evidence has no maximum|tune_prior_precision: N F .* is not positive"):
            tune_prior_precision(posterior)
    singular = torch.ones(6, 6, dtype=torch.float32)
    q = {"w": _w[:, :2].float()}
    laplace(f, q, fisher.PMatDense(singular, trees.Layout.of(q)), 4, 1e-9)  # zero up to rounding is not negative


def test_errors():
    posterior, _, _ = regression(1.0)
    for n in (0, -3, math.nan):
        with pytest.raises(ValueError, match="n_examples: got"):
            laplace(posterior.f, posterior.params, posterior.F, n)
    for prior in (-1.0, scalar(-1.0), math.inf, torch.ones(4, dtype=D), torch.ones(1, dtype=D)):
        with pytest.raises(ValueError, match="prior_precision: got"):
            laplace(posterior.f, posterior.params, posterior.F, 3, prior)
        with pytest.raises(ValueError, match="prior_precision: got"):
            posterior.log_marginal_likelihood(0.0, prior)
    with pytest.raises(ValueError, match=r"prior_precision: got 0.0, expected a finite number > 0"):
        posterior.log_marginal_likelihood(0.0, 0.0)
    with pytest.raises(ValueError, match="log_likelihood: got a tensor of shape"):
        posterior.log_marginal_likelihood(torch.ones(3))
    zero = laplace(posterior.f, trees.zeros_like(posterior.params), posterior.F, 30)
    with pytest.raises(ValueError, match="the evidence has no maximum"):
        tune_prior_precision(zero)
    with pytest.raises(ValueError, match=r"params: leaf w has shape"):
        laplace(posterior.f, {"w": torch.ones(2, 2)}, posterior.F, 3)
    with pytest.raises(ValueError, match="steps: got 0"):
        tune_prior_precision(posterior, steps=0)


@pytest.mark.parametrize(
    "kind", [fisher.PMatDense, fisher.PMatKFAC, fisher.PMatBlockDiag, fisher.PMatDiag, fisher.PMatLowRank]
)
def test_a_decomposed_matrix_knows_its_likelihood(kind):
    f, p, x = lambda p, x: torch.tanh(x @ p["w"]), {"w": torch.ones(2, 3)}, torch.eye(2)
    F = fisher.fim(f, p, x, kind)
    want = fisher.recipes.laplace(f, p, F, 2).probabilities(x)
    got = fisher.recipes.laplace(f, p, F.eigendecomposition(), 2).probabilities(x)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatKFAC, fisher.PMatDiag, fisher.PMatLowRank])
def test_a_prior_by_layer_and_by_entry(representation):
    """Evidence and predictions of the dense precision N F + diag(prior)."""
    r = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=r, dtype=torch.float64)
    net = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"]
    p, x = {"w": draw(3, 4), "v": draw(4, 2)}, draw(5, 3)
    F = fisher.fim(net, p, x, representation, "gaussian")
    entries = trees.map(lambda t: t**2 + 0.1, p)
    for prior in ({"w": 2.0, "v": torch.tensor(0.5)}, entries):
        flat = trees.ravel(trees.map(lambda s, t: torch.as_tensor(s).to(t).expand(t.shape), prior, p))[0]
        precision = 5 * F.to_torch() + torch.diag(flat)
        posterior = laplace(net, p, F, 5, prior)
        J = fisher.jacobian(net, p, x).to_torch()
        want = torch.einsum("bcn,nm,bkm->bck", J, torch.linalg.inv(precision), J)
        assert torch.allclose(posterior.predict(x)[1], want, rtol=1e-8)
        theta = trees.ravel(p)[0]
        evidence = (flat.log().sum() - torch.linalg.slogdet(precision)[1] - (flat * theta**2).sum()) / 2
        assert torch.allclose(posterior.log_marginal_likelihood(0.0), evidence)
        assert torch.allclose(laplace(net, p, F, 5).log_marginal_likelihood(0.0, prior), evidence)
        assert posterior.sample(torch.Generator().manual_seed(0))["w"].shape == (3, 4)
        assert "prior_precision = by" in repr(posterior)
    with pytest.raises(ValueError, match=r"prior_precision: w: got -1\.0"):
        laplace(net, p, F, 5, {"w": -1.0, "v": 1.0})
