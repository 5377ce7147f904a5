"""Stochastic maps: distributions stay distributions; no redundant logit."""

import math

import numpy as np
import pytest
import torch

import linmaps
from linmaps.numerics.nearest import simplex
from tests.linmaps.zoo import random_params


def test_against_a_softmax_written_out():
    spec = linmaps.RightStochastic(2, 3)
    L = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=torch.float64)
    want = [[math.exp(v) / (1 + math.exp(a) + math.exp(b)) for v in (0.0, a, b)] for a, b in L.tolist()]
    assert np.allclose(spec.effective_W({"logits": L}).numpy(), want, atol=1e-15)


def test_a_distribution_stays_one():
    spec = linmaps.RightStochastic(5, 4)
    x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0], dtype=torch.float64)
    y = spec.apply(random_params(spec, 0), x)
    assert (y > 0).all()
    assert abs(y.sum() - 1) < 1e-15


def test_as_many_params_as_dimensions():
    assert linmaps.RightStochastic(5, 4).n_params == 5 * 3
    assert linmaps.RightStochastic(5, 1).n_params == 0
    assert torch.equal(linmaps.RightStochastic(2, 1).effective_W({"logits": torch.zeros(2, 0)}), torch.ones(2, 1))


def test_all_outputs_are_alike_at_init():
    spec = linmaps.RightStochastic(20000, 4)
    mean = spec.effective_W(random_params(spec, 0)).mean(0)
    assert (mean - 0.25).abs().max() < 0.01


def test_violation_sees_sums_and_signs():
    spec = linmaps.RightStochastic(2)
    assert spec.violation(torch.tensor([[0.5, 0.5], [1.0, 0.0]])) == 0
    assert abs(spec.violation(torch.tensor([[3.0, 1.0], [1.0, 0.0]])) - 3) < 1e-6
    assert abs(spec.violation(torch.tensor([[1.5, -0.5], [1.0, 0.0]])) - 0.5) < 1e-6


@pytest.mark.parametrize("n_iters", [1, 3, 20, 100])
@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0, 200.0])
def test_both_sums_are_exact_however_few_the_iterations(n_iters, scale):
    spec = linmaps.DoublyStochastic(6, n_iters=n_iters)
    params = {"logits": scale * random_params(spec, 0)["logits"]}
    W = spec.effective_W(params)
    assert (W >= 0).all()
    assert (W.sum(0) - 1).abs().max() < 1e-14
    assert (W.sum(1) - 1).abs().max() < 1e-14


def mixture(n, rng, smallest):
    """Doubly stochastic: permutations, n of them that cover all entries, with weights over many orders of magnitude."""
    weights, W = 10 ** rng.uniform(math.log10(smallest), 0, n + 3), np.zeros((n, n))
    for k, weight in enumerate(weights / weights.sum()):
        W[np.arange(n), np.roll(np.arange(n), k) if k < n else rng.permutation(n)] += weight
    return torch.tensor(W)


@pytest.mark.parametrize(("smallest", "allowed"), [(1e-3, 1e-14), (1e-9, 1e-14), (1e-12, 1e-14), (1e-15, 1e-10)])
def test_every_positive_doubly_stochastic_matrix_comes_back(smallest, allowed):
    for seed, n in enumerate((2, 3, 5, 9)):
        W = mixture(n, np.random.default_rng(seed), smallest)
        spec = linmaps.DoublyStochastic(n)
        params, distance = spec.from_matrix(W)
        assert distance <= allowed
        assert (spec.effective_W(params) - W).abs().max() <= allowed


def balanced(M):
    """M with rows and columns scaled to sums of 1, by as many iterations as it takes."""
    for _ in range(100_000):
        M = M / M.sum(1, keepdims=True)
        M = M / M.sum(0, keepdims=True)
        if np.abs(M.sum(1) - 1).max() < 1e-9:
            break
    return M


MATRICES = {
    "flat": lambda rng, n: rng.random((n, n)) + 0.1,
    "orders of magnitude": lambda rng, n: np.exp(rng.uniform(-14, 0, (n, n))),
    "nearly the identity": lambda rng, n: 0.99 * np.eye(n) + 0.01 / n,
    "nearly a permutation": lambda rng, n: np.eye(n)[rng.permutation(n)] + 1e-5 * (rng.random((n, n)) + 0.1),
    "a chain": lambda rng, n: np.eye(n) + 1e-3 * np.eye(n, k=1) + 1e-6,
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("n", [2, 3, 7])
def test_every_positive_doubly_stochastic_matrix_is_reached(kind, n):
    M = torch.tensor(balanced(MATRICES[kind](np.random.default_rng(n), n)))
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        spec = linmaps.DoublyStochastic(n)
        params, distance = spec.from_matrix(M.to(dtype))
        assert distance < 2 * tolerance
        assert (spec.effective_W(params).double() - M).abs().max() < tolerance


def test_the_derivative_of_the_scaling_is_that_of_the_limit():
    """Against finite differences of plain iterations until nothing changes, in the first and the second order."""
    spec, h = linmaps.DoublyStochastic(4), 1e-4
    start, way = (random_params(spec, seed)["logits"] for seed in (0, 1))

    def limit(t):
        L = np.pad((start + t * way).numpy(), ((1, 0), (1, 0)))
        M = np.exp(L)
        for _ in range(3000):
            M = M / M.sum(1, keepdims=True)
            M = M / M.sum(0, keepdims=True)
        return torch.tensor(M)

    fn, zero = lambda t: spec.effective_W({"logits": start + t * way}), torch.zeros((), dtype=torch.float64)
    first, second = torch.func.jacfwd(fn)(zero), torch.func.jacfwd(torch.func.jacrev(fn))(zero)
    assert torch.allclose(torch.func.jacrev(fn)(zero), first, atol=1e-10)
    assert torch.allclose(first, (limit(h) - limit(-h)) / (2 * h), atol=1e-7)
    assert torch.allclose(second, (limit(h) - 2 * limit(0) + limit(-h)) / h**2, atol=1e-5)


def test_rounding_moves_little_once_sinkhorn_has_converged():
    spec = linmaps.DoublyStochastic(5)
    params = random_params(spec, 0)
    W = spec.effective_W(params)
    # diagonal scalings keep cross ratios: W[i, j] W[0, 0] / (W[i, 0] W[0, j]) = exp(logits)
    ratios = W[1:, 1:] * W[0, 0] / (W[1:, :1] * W[:1, 1:])
    assert torch.allclose(ratios.log(), params["logits"], atol=1e-12)


def test_orthostochastic_is_a_square_of_an_orthogonal_matrix():
    spec = linmaps.DoublyStochastic(4, method="orthostochastic")
    params = random_params(spec, 0)
    Q = linmaps.Orthogonal(4).effective_W(params)
    assert torch.allclose(spec.effective_W(params), Q.square(), atol=1e-14)
    with pytest.raises(ValueError, match="no closed form"):
        spec.from_matrix(torch.eye(4))


def test_left_is_the_transpose_of_right():
    left, right = linmaps.LeftStochastic(3, 5), linmaps.RightStochastic(5, 3)
    L = random_params(left, 0)["logits"]
    assert torch.allclose(left.effective_W({"logits": L}), right.effective_W({"logits": L.T}).T, atol=1e-15)


def test_nearest_row_of_probabilities_by_its_optimality_conditions():
    W = 3 * torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    P = simplex(W)
    assert torch.allclose(P.sum(1), torch.ones(40, dtype=torch.float64))
    shift = W - P  # constant on the support, not larger off it
    on = torch.where(P > 0, shift, torch.nan)
    top = on.nan_to_num(-torch.inf).amax(1)
    assert torch.allclose(top, on.nan_to_num(torch.inf).amin(1), atol=1e-12)
    assert (torch.where(P > 0, -torch.inf, W).amax(1) <= top + 1e-12).all()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"method": "birkhoff"}, ValueError, r"method: got 'birkhoff', expected 'sinkhorn' or 'orthostochastic'"),
        ({"n_iters": 0}, ValueError, r"n_iters: got 0, expected a positive int"),
        ({"n_iters": 2.0}, TypeError, r"n_iters: got 2.0, expected a positive int"),
        ({"n_iters": 5, "method": "orthostochastic"}, ValueError, r"n_iters: got 5, expected None unless"),
    ],
)
def test_errors_of_doubly_stochastic(options, error, text):
    with pytest.raises(error, match=text):
        linmaps.DoublyStochastic(3, **options)
