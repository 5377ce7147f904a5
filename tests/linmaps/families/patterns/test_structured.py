"""Low rank, circulant, block-diagonal and Kronecker maps: against dense numpy, without W, at sizes where W would not fit."""

import math

import numpy as np
import pytest
import torch

import linmaps
from tests.linmaps.zoo import generator, random_params

D = torch.float64


def x_of(spec, rows=3, seed=9):
    return torch.randn(rows, spec.in_features, generator=generator(seed), dtype=D)


@pytest.mark.parametrize(
    "spec",
    [
        linmaps.LowRank(100_000, 90_000, 3),
        linmaps.Circulant(100_000),
        linmaps.BlockDiagonal(99_000, 66_000, 3300),
        linmaps.Kronecker((50, 40, 50), (40, 50, 60)),
    ],
    ids=repr,
)
def test_products_at_sizes_whose_matrix_would_not_fit(spec):
    y = spec.apply(random_params(spec, 0), x_of(spec))
    assert y.shape == (3, spec.out_features)
    assert y.square().mean().item() == pytest.approx(1 / 3, rel=0.6)


@pytest.mark.parametrize("spec", [linmaps.Circulant(50_000), linmaps.Kronecker((40, 30, 50))], ids=repr)
def test_solves_and_determinants_without_the_matrix(spec):
    params, x = random_params(spec, 0), x_of(spec)
    back = spec.solve(params, spec.apply(params, x))
    assert (back - x).norm() < 1e-6 * x.norm()
    assert math.isfinite(spec.logabsdet(params).item())
    assert spec.singular_values(params).shape == (spec.in_features,)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_circulant_is_a_convolution(n):
    spec = linmaps.Circulant(n)
    params, x = random_params(spec, 0), x_of(spec)
    c = params["first"].numpy()
    want = np.array([[sum(row[i] * c[(j - i) % n] for i in range(n)) for j in range(n)] for row in x.numpy()])
    assert np.allclose(spec.apply(params, x).numpy(), want, atol=1e-14)


def test_blocks_by_hand():
    spec = linmaps.BlockDiagonal(6, 4, 2)
    params = random_params(spec, 0)
    want = torch.block_diag(*params["blocks"])
    assert torch.equal(spec.effective_W(params), want)


@pytest.mark.parametrize(
    ("sizes", "want"), [((16, 16), 4), ((12, 18), 3), ((7, 7), 1), ((6, 4), 2), ((64, 8), 2), ((1, 5), 1)]
)
def test_default_number_of_blocks(sizes, want):
    assert linmaps.BlockDiagonal(*sizes).n_blocks == want


def test_nearest_low_rank_is_the_truncated_svd():
    W = torch.randn(5, 7, generator=generator(0), dtype=D)
    s = torch.linalg.svdvals(W)
    for k in (1, 3, 5):
        _, distance = linmaps.LowRank(5, 7, k).from_matrix(W)
        assert distance.item() == pytest.approx(s[k:].square().sum().sqrt().item(), abs=1e-12)


def test_nearest_kronecker_product_of_two_is_optimal():
    """No descent from it finds a nearer one."""
    spec = linmaps.Kronecker((2, 3), (3, 2))
    W = torch.randn(6, 6, generator=generator(0), dtype=D)
    params, distance = spec.from_matrix(W)
    slopes = torch.func.grad(lambda p: (spec.effective_W(p) - W).square().sum())(params)
    assert max(t.abs().max() for t in slopes.values()) < 1e-12
    others = [spec.effective_W(random_params(spec, s)) for s in range(50)]
    best = min((W - W2 * (W * W2).sum() / W2.square().sum()).norm() for W2 in others)
    assert distance < best


def test_kronecker_signature():
    spec = linmaps.Kronecker((2, 3), (4, 5), bias=True)
    assert (spec.in_features, spec.out_features, spec.n_params) == (6, 20, 8 + 15 + 20)
    assert linmaps.Kronecker([2, 3]) == linmaps.Kronecker((2, 3), (2, 3))
    assert linmaps.Kronecker(12, 7) == linmaps.Kronecker((3, 4), (1, 7))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: linmaps.Kronecker((2, 3), (4,)), ValueError, r"out_shape: got \(4,\), expected 2 sizes, as in_shape"),
        (lambda: linmaps.Kronecker(6.0), TypeError, r"in_shape: got 6.0, expected a tuple of ints"),
        (lambda: linmaps.Kronecker((2, 0)), ValueError, r"in_shape: got \(2, 0\), expected at least one axis"),
        (lambda: linmaps.BlockDiagonal(6, 4, 3), ValueError, r"n_blocks: got 3, expected a divisor .* \[1, 2\]"),
        (lambda: linmaps.LowRank(4, 3, 4), ValueError, r"rank: got 4, expected an int from 1 to 3"),
        (lambda: linmaps.LowRank(4, 3, 1.5), TypeError, r"rank: got 1.5, expected a positive int"),
        (
            lambda: linmaps.Circulant(4, 3),
            ValueError,
            r"out_features: got 3, expected in_features=4, since this map is sq",
        ),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_singular_values_have_finite_derivatives_where_factors_lose_rank():
    """At V = 0, where adapters start, at U = 0, at repeated columns, at both 0."""
    spec = linmaps.LowRank(6, 5, 3)
    U, V = random_params(spec, 0)["U"], random_params(spec, 0)["V"]
    repeated = U[:, :1].expand(6, 3)
    for params in ({"U": U, "V": 0 * V}, {"U": 0 * U, "V": V}, {"U": repeated, "V": V}, {"U": 0 * U, "V": 0 * V}):
        slope = torch.func.grad(lambda p: spec.singular_values(p).sum())(params)
        assert all(t.isfinite().all() for t in slope.values())
    slope = torch.func.grad(lambda p: spec.singular_values(p).square().sum())({"U": repeated, "V": V})
    want = torch.func.grad(lambda p: spec.effective_W(p).square().sum())({"U": repeated, "V": V})
    assert torch.allclose(slope["V"], want["V"])


def test_a_matrix_of_lower_rank_gives_params_that_can_reach_the_whole_rank():
    spec, target = linmaps.LowRank(6, 6, 3), torch.randn(6, 6, generator=generator(0), dtype=torch.float64)
    corner = torch.zeros_like(target)
    corner[0, 0] = 2.0
    for start in (corner, 0 * corner):
        params, distance = spec.from_matrix(start)
        assert distance < 1e-14
        for _ in range(600):
            slope = torch.func.grad(lambda p: (spec.effective_W(p) - target).square().sum())(params)
            params = {k: t - 0.02 * slope[k] for k, t in params.items()}
        assert torch.linalg.matrix_rank(spec.effective_W(params), atol=1e-3) == 3
