"""Estimators of trace and diagonal: unbiased by enumeration, exact where the theory says, small errors, derivatives."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from fisher.iterative import traces
from tests.laws import close

D = torch.float64
METHODS = ["hutchinson", "hutch++", "xtrace"]


def psd(d, rank, seed, decay=1.0):
    g = torch.Generator().manual_seed(seed)
    L = torch.randn(rank, d, generator=g, dtype=D) * decay ** torch.arange(rank, dtype=D)[:, None]
    return L.T @ L


def gaussian(m, d, seed=0):
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=D)


def test_hutchinson_and_diagonal_are_unbiased_over_all_signs():
    A = psd(4, 4, 0)
    probes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=D)
    product = lambda Z: Z @ A
    close(traces.hutchinson(product, probes), A.trace(), 1e-12, "trace")
    close(traces.diagonal(product, probes), A.diagonal(), 1e-12, "diagonal")


@pytest.mark.parametrize("method", METHODS)
def test_unbiased(method):
    A = psd(12, 12, 1) - 0.5 * psd(12, 12, 2)
    found = vmap(lambda Z: traces.trace(lambda Z: Z @ A, Z, method))(gaussian(9 * 4000, 12).reshape(4000, 9, 12))
    assert (found.mean() - A.trace()).abs() < 4 * found.std() / 4000**0.5


@given(st.integers(0, 99), st.integers(0, 2))
def test_low_rank_matrices_are_exact(seed, rank):
    A = psd(10, rank, seed)
    for method in ("hutch++", "xtrace"):
        close(traces.trace(lambda Z: Z @ A, gaussian(12, 10, seed), method), A.trace(), 1e-9, method)


def test_accuracy_where_eigenvalues_fall():
    """At equal cost: xtrace below hutch++ below hutchinson."""
    A = psd(60, 60, 0, 0.8)
    error = {}
    for method in METHODS:
        found = vmap(lambda Z, method=method: traces.trace(lambda Z: Z @ A, Z, method))(
            gaussian(30 * 200, 60).reshape(200, 30, 60)
        )
        error[method] = ((found - A.trace()) ** 2).mean().sqrt() / A.trace()
    assert error["xtrace"] < 0.7 * error["hutch++"]
    assert error["hutch++"] < 0.2 * error["hutchinson"]


@pytest.mark.parametrize("method", METHODS)
def test_number_of_products(method):
    A, count = psd(20, 20, 0), []

    def product(Z):
        count.append(len(Z))
        return Z @ A

    traces.trace(product, gaussian(12, 20), method)
    assert sum(count) == 12


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_are_unbiased_estimates_too(method):
    A, B = psd(6, 6, 1), psd(6, 6, 2)
    slope = lambda Z: grad(lambda t: traces.trace(lambda Z: Z @ (A + t * B), Z, method))(torch.zeros((), dtype=D))
    found = vmap(slope)(gaussian(9 * 3000, 6).reshape(3000, 9, 6))
    assert found.isfinite().all()
    assert (found.mean() - B.trace()).abs() < 4 * found.std() / 3000**0.5
    flat = grad(lambda A: traces.trace(lambda Z: Z @ A, gaussian(9, 6), method))(psd(6, 1, 0))
    assert flat.isfinite().all()


def test_more_probes_than_dimensions_are_exact():
    A = psd(3, 3, 0)
    close(traces.trace(lambda Z: Z @ A, gaussian(12, 3), "hutch++"), A.trace(), 1e-10, "hutch++")


def test_signs():
    g = torch.Generator().manual_seed(0)
    z = traces.signs(g, 400, 5, dtype=torch.float32)
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert z.mean(0).abs().max() < 0.2
    assert traces.signs(g, 1, 0, dtype=D).shape == (1, 0)


def test_errors():
    with pytest.raises(ValueError, match="method='exactly'"):
        traces.trace(lambda Z: Z, torch.ones(9, 2), "exactly")
    with pytest.raises(ValueError, match="probes: got 2, expected at least 3 for method='hutch\\+\\+'"):
        traces.trace(lambda Z: Z, torch.ones(2, 2), "hutch++")
    with pytest.raises(ValueError, match="n_probes: got 0"):
        traces.signs(torch.Generator(), 0, 2, dtype=D)
