"""Posteriors beside laplace-torch, where it is installed: the same numbers."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fisher
from fisher.recipes import laplace
from tests.fisher.digits import D
from tests.fisher.recipes import peer
from tests.laws import close

pytestmark = pytest.mark.skipif(peer.laplace_torch() is None, reason=peer.ABSENT)
N, TESTS, C = 20, 6, 3


def problem(kind):
    g = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C)).to(D)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=D)
    x = torch.randn(N, 4, generator=g, dtype=D)
    y = torch.arange(N) % C if kind == "classification" else torch.randn(N, C, generator=g, dtype=D)
    return module, x, y, torch.randn(TESTS, 4, generator=g, dtype=D)


def theirs(kind, module, x, y, structure, weights="all", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peer.laplace_torch().Laplace(
            module, kind, subset_of_weights=weights, hessian_structure=structure, **options
        )
        made.fit(DataLoader(TensorDataset(x, y), batch_size=N))
    return made


@pytest.mark.parametrize("structure", ["full", "diag"])
def test_classification(structure):
    """Priors by leaf, a prior mean, a temperature; probit, bridge, evidence."""
    module, x, y, test = problem("classification")
    f, params = fisher.functional(module.eval())
    prior = torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=D)
    la = theirs("classification", module, x, y, structure, prior_precision=prior, prior_mean=0.3, temperature=0.8)
    F = fisher.fim(f, params, x, {"full": fisher.PMatDense, "diag": fisher.PMatDiag}[structure])
    ours = laplace(f, params, F, N, dict(zip(params, prior)), 0.3, 0.8)
    close(ours.probabilities(test), la(test, pred_type="glm", link_approx="probit").detach(), 1e-8, "probit")
    close(
        ours.probabilities(test, link="bridge"),
        la(test, pred_type="glm", link_approx="bridge").detach(),
        1e-8,
        "bridge",
    )
    want = la.log_marginal_likelihood().detach()
    close(ours.log_marginal_likelihood(ours.log_likelihood((x, y))), want.reshape(()), 1e-8, "evidence")


def test_regression_with_noise_jointly():
    """Their matrix of a regression is 8e-9 of its largest eigenvalue from the sum of J'J, ours 1e-15: what follows differs so."""
    module, x, y, test = problem("regression")
    f, params = fisher.functional(module.eval())
    la = theirs(
        "regression",
        module,
        x,
        y,
        "full",
        prior_precision=torch.tensor([0.7], dtype=D),
        sigma_noise=torch.tensor(0.5, dtype=D),
    )
    ours = laplace(f, params, fisher.fim(f, params, x, fisher.PMatDense, fisher.Gaussian(0.25)), N, 0.7)
    close(ours.predict(test), tuple(t.detach() for t in la(test)), 1e-6, "moments")
    close(ours.predict(test, joint=True)[1], la(test, joint=True)[1].detach(), 1e-6, "joint")
    want = la.log_marginal_likelihood().detach().reshape(())
    close(ours.log_marginal_likelihood(ours.log_likelihood((x, y))), want, 1e-6, "evidence")


def test_a_last_layer_by_kronecker_factors():
    module, x, y, test = problem("classification")
    f, params = fisher.functional(module.eval())
    la = theirs("classification", module, x, y, "kron", "last_layer", prior_precision=0.7)
    layers = fisher.LayerCollection.from_function(f, params, x).select(["2"])
    F = fisher.fim(f, params, x, fisher.PMatKFAC, layers=layers)
    ours = laplace(f, params, F, N, 0.7)
    mean, covariance = ours.predict(test)
    with torch.no_grad():
        close(mean, la._glm_predictive_distribution(test)[0], 1e-8, "mean")
    assert covariance.shape == la._glm_predictive_distribution(test)[1].shape
