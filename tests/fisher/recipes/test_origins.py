"""A matrix has the likelihood it was made of: what takes both refuses two that differ, whatever takes them."""

import pytest
import torch

import fisher
from fisher.recipes import laplace, leave_one_out, tune_noise
from tests.laws import close

D = torch.float64
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=D)
P = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=D)}
Y = torch.randn(12, 2, generator=torch.Generator().manual_seed(2), dtype=D)
APART = [
    ("gaussian", "categorical"),
    ("gaussian", fisher.Gaussian(2.0)),
    (fisher.Gaussian((1.0, 2.0)), "gaussian"),
    (fisher.Gaussian(covariance=[[2.0, 1.0], [1.0, 1.0]]), fisher.Gaussian((2.0, 1.0))),
    ("bernoulli", "poisson"),
    ("categorical", fisher.Categorical(weight=(1.0, 2.0))),
    ("categorical", fisher.Categorical(class_axis=-1)),
]
ALIKE = [
    ("gaussian", "regression"),
    (fisher.Gaussian(torch.tensor(0.3)), fisher.Gaussian(0.3)),
    (fisher.Gaussian((2.0, 2.0)), fisher.Gaussian(2.0)),
    ("categorical", fisher.Categorical(ignore_index=0, label_smoothing=0.1)),
]


def f(p, x):
    return x @ p["w"]


def fim(likelihood, kind=fisher.PMatDense):
    return fisher.fim(f, P, X, kind, likelihood)


def by_laplace(one, other):
    return laplace(f, P, fim(one), 12, likelihood=other)


def by_update(one, other):
    return laplace(f, P, fim(other), 12).update(fim(one), 12)


def by_update_diag(one, other):
    return fim(one, fisher.PMatEKFAC).update_diag(f, P, X, other)


def by_leave_one_out(one, other):
    data = (X, Y) if "aussian" in repr(other) or other == "regression" else (X, torch.arange(12) % 2)
    loss = "squared_error" if data[1] is Y else "cross_entropy"
    return leave_one_out(f, P, data, fim(one), n_examples=12, loss=loss, likelihood=other, regul=0.1)


@pytest.mark.parametrize("take", [by_laplace, by_update, by_update_diag, by_leave_one_out])
def test_another_likelihood_is_refused_and_the_same_is_not(take):
    for one, other in APART:
        names = [type(fisher.likelihoods.likelihood(which)).__name__ for which in (one, other)]
        with pytest.raises(ValueError, match=rf"F: is of {names[0]}\(.*expected {names[1]}\(.*likelihood"):
            take(one, other)
    for one, other in ALIKE:
        take(one, other)


def test_a_tuned_noise_is_that_of_the_next_matrix():
    posterior = tune_noise(laplace(f, P, fim("gaussian"), 12), (X, Y))
    with pytest.raises(ValueError, match=r"update: F: is of Gaussian.*likelihood=posterior\.likelihood"):
        posterior.update(fim("gaussian"), 12)
    after = posterior.update(fim(posterior.likelihood), 12)
    close(after.F.to_torch(), posterior.F.to_torch(), 1e-12, "the same examples twice")
    assert after.n_examples == 24


def test_members_of_an_ensemble_have_noises_of_their_own():
    def variance(s):
        F = fisher.fim(f, P, X, fisher.PMatDense, fisher.Gaussian(s))
        return laplace(f, P, F, 12).update(F, 12).predict(X)[1].sum()

    noises = torch.tensor([0.5, 2.0], dtype=D)
    close(torch.func.vmap(variance)(noises), torch.stack([variance(s) for s in noises]), 1e-10, "vmap")


def test_the_evidence_is_that_of_the_examples_of_the_matrix():
    posterior = laplace(f, P, fim("gaussian"), 12)
    for n in (7, 0):
        with pytest.raises(ValueError, match=rf"tune_noise: data has {n} examples, expected the n_examples=12"):
            tune_noise(posterior, (X[:n], Y[:n]))
    with pytest.raises(ValueError, match="data has 24 examples"):
        tune_noise(posterior, [(X, Y), (X, Y)])
    weighted = tune_noise(posterior, (X, Y, torch.ones(12, dtype=D)))
    close(
        weighted.likelihood.variance,
        tune_noise(posterior, [(X[:5], Y[:5]), (X[5:], Y[5:])]).likelihood.variance,
        1e-9,
        "",
    )


def test_a_singular_precision_is_named_by_its_argument():
    blind = X[:1] * torch.tensor([0.0, 1.0, 1.0], dtype=D)
    for kind in ("dense", "kfac", "ekfac", "diag", "blockdiag", "lowrank"):
        posterior = laplace(f, P, fisher.fim(f, P, blind, kind, "gaussian"), 1, prior_precision=0.0)
        with pytest.raises(ValueError, match=r"predict: N F .* is singular.*prior_precision"):
            posterior.predict(X)
        with pytest.raises(ValueError, match=r"sample: .*prior_precision"):
            posterior.sample(torch.Generator().manual_seed(0))


def test_a_matrix_of_products_has_no_determinant_and_the_way_is_named():
    posterior = laplace(f, P, fim("gaussian", fisher.PMatImplicit), 12)
    calls = {
        "log_marginal_likelihood": lambda: posterior.log_marginal_likelihood(0.0),
        "log_prob": lambda: posterior.log_prob(P),
        "tune_prior_precision": lambda: fisher.recipes.tune_prior_precision(posterior),
        "tune_noise": lambda: tune_noise(posterior, (X, Y)),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"{name}: PMatImplicit has products alone.*PMatDense"):
            call()


def test_a_count_that_is_a_tensor_is_told_how_to_become_a_number():
    for call in (
        lambda n: laplace(f, P, fim("gaussian"), n),
        lambda n: laplace(f, P, fim("gaussian"), 12).update(fim("gaussian"), n),
    ):
        with pytest.raises(TypeError, match=r"n_examples: got Tensor, expected .*t\.item\(\)"):
            call(torch.tensor(12))
