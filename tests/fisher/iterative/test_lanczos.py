"""Lanczos: eigenpairs with multiplicities, norms, quadrature of log det, derivatives, ensembles."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from fisher.iterative import lanczos
from tests.laws import close

D = torch.float64


def symmetric(values, seed=0):
    g = torch.Generator().manual_seed(seed)
    d = len(values)
    q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=D)).Q
    return q @ torch.diag(torch.as_tensor(values, dtype=D)) @ q.T, torch.randn(d, generator=g, dtype=D)


@given(
    st.lists(st.sampled_from([-2.0, 0.0, 1.0, 1.0, 3.0]), min_size=1, max_size=9),
    st.integers(0, 99),
    st.integers(1, 12),
)
def test_rows_are_orthonormal_and_reduce_the_operator(values, seed, steps):
    A, start = symmetric(values, seed)
    T, Q = lanczos.tridiagonal(lambda v: A @ v, start, steps)
    m = min(steps, len(values))
    assert T.shape == (m, m)
    close(Q @ Q.T, torch.eye(m, dtype=D), 1e-12, "orthonormal")
    close(Q @ A @ Q.T, T, 1e-12, "Q A Q' = T")


@given(st.lists(st.sampled_from([-2.0, 0.0, 1.0, 1.0, 3.0]), min_size=1, max_size=9), st.integers(0, 99))
def test_all_steps_find_all_multiplicities(values, seed):
    A, start = symmetric(values, seed)
    found, vectors, residuals = lanczos.eigenpairs(lambda v: A @ v, start, len(values))
    close(found, torch.linalg.eigvalsh(A), 1e-11, "values")
    close(vectors.T @ torch.diag(found) @ vectors, A, 1e-11, "vectors")
    assert residuals.max() < 1e-11


def test_top_pairs_of_a_large_operator():
    values = torch.cat([torch.linspace(0, 1, 295, dtype=D), torch.tensor([5.0, 7.0, 11.0, 13.0, 17.0], dtype=D)])
    A, start = symmetric(values)
    calls = []

    def operator(v):
        calls.append(1)
        return A @ v

    found, vectors, residuals = lanczos.eigenpairs(operator, start, 3)
    close(found, values[-3:], 1e-10, "values")
    close(vectors @ A, found[:, None] * vectors, 1e-9, "pairs")
    assert len(calls) == 2 * 3 + 30 + 1  # the last for all Ritz vectors at once
    close(residuals, torch.linalg.vector_norm(vectors @ A - found[:, None] * vectors, dim=1), 1e-12, "residuals")
    close(lanczos.extreme(lambda v: -(A @ v), start), torch.tensor(17.0, dtype=D), 1e-10, "norm")


def test_quadrature_with_all_steps_and_complete_probes_is_exact():
    A, _ = symmetric([0.5, 1.0, 1.0, 4.0])
    probes = 2 * torch.eye(4, dtype=D)
    estimate = lambda A: lanczos.log_quadrature(lambda v: A @ v, probes)
    close(estimate(A), torch.linalg.slogdet(A).logabsdet, 1e-12, "logdet")
    close(grad(estimate)(A), torch.linalg.inv(A), 1e-11, "gradient")


def test_quadrature_is_unbiased():
    A, _ = symmetric(torch.linspace(0.1, 3, 20, dtype=D))
    probes = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0), dtype=D)
    want = torch.linalg.slogdet(A).logabsdet
    deviation = (2.0 * torch.linalg.eigvalsh(A).log().square().sum() / 4000).sqrt()
    assert (lanczos.log_quadrature(lambda v: A @ v, probes) - want).abs() < 4 * deviation


def test_eigenvalues_have_the_derivatives_of_hellmann_and_feynman():
    A, start = symmetric([0.5, 1.0, 2.0, 4.0])
    B, _ = symmetric([1.0, -1.0, 2.0, 0.0], 1)
    at = lambda t: A + t * B
    zero = torch.zeros((), dtype=D)
    got = grad(lambda t: lanczos.eigenpairs(lambda v: at(t) @ v, start, 4)[0] @ torch.arange(4.0, dtype=D))(zero)
    close(got, grad(lambda t: torch.linalg.eigvalsh(at(t)) @ torch.arange(4.0, dtype=D))(zero), 1e-10, "values")
    got = grad(lambda t: lanczos.extreme(lambda v: -(at(t) @ v), start))(zero)
    close(got, grad(lambda t: torch.linalg.eigvalsh(at(t))[-1])(zero), 1e-10, "norm")


def test_ensemble_equals_the_loop():
    pairs = [symmetric([1.0, 2.0, 3.0, 5.0], 0), symmetric([0.0, 0.0, 1.0, 1.0], 1)]
    run = lambda A, s: (lanczos.eigenpairs(lambda v: A @ v, s, 2)[0], lanczos.extreme(lambda v: A @ v, s))
    got = vmap(run)(torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]))
    for k, p in enumerate(pairs):
        close((got[0][k], got[1][k]), run(*p), 1e-10, "ensemble")


def test_zero_start_single_precision_and_errors():
    A, _ = symmetric([1.0, 2.0])
    close(
        lanczos.eigenpairs(lambda v: A @ v, torch.zeros(2, dtype=D), 2)[0],
        torch.tensor([1.0, 2.0], dtype=D),
        1e-12,
        "zero",
    )
    single = lanczos.eigenpairs(lambda v: A.float() @ v, torch.ones(2), 2)[0]
    assert single.dtype == torch.float32
    close(single.double(), torch.tensor([1.0, 2.0], dtype=D), 1e-5, "float32")
    for options, message in (((0,), "k: got 0"), ((2, 1), "steps: got 1, expected at least k = 2")):
        with pytest.raises(ValueError, match=message):
            lanczos.eigenpairs(lambda v: v, torch.ones(3), *options)
    with pytest.raises(ValueError, match="steps: got 0"):
        lanczos.tridiagonal(lambda v: v, torch.ones(3), 0)
