"""Decompositions: exact at full rank, near the optimum below it, pure, mapped by vmap, complex and half precision."""

import math

import pytest
import torch
from torch.func import vmap

from linmaps.factorized import cp_als, reconstruct_cp, reconstruct_tt, reconstruct_tucker, tt_svd, tucker_hosvd

D = torch.float64


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tail(T, k, r):
    """The least error of any tensor whose unfolding into the first k modes has rank r."""
    s = torch.linalg.svdvals(T.reshape(math.prod(T.shape[:k]), -1))
    return s[r:].norm()


@pytest.mark.parametrize("dtype", [D, torch.complex128])
@pytest.mark.parametrize("shape", [(5,), (4, 6), (3, 4, 5), (2, 3, 2, 4)])
def test_exact_at_full_rank(shape, dtype):
    T = randn(*shape, dtype=dtype)
    full = tuple(min(math.prod(shape[:k]), math.prod(shape[k:])) for k in range(len(shape) + 1))
    assert (reconstruct_tt(tt_svd(T, full)) - T).norm() < 1e-13 * T.norm()
    if len(shape) > 1:
        ranks = tuple(min(s, math.prod(shape) // s) for s in shape)
        assert (reconstruct_tucker(*tucker_hosvd(T, ranks)) - T).norm() < 1e-13 * T.norm()


def test_tensor_train_within_its_bound_of_the_optimum():
    T, ranks = randn(4, 5, 6, 3), (1, 2, 4, 2, 1)
    error = (reconstruct_tt(tt_svd(T, ranks)) - T).norm()
    bounds = [tail(T, k, ranks[k]) for k in (1, 2, 3)]
    assert max(bounds) <= error * (1 + 1e-12)
    assert error <= torch.stack(bounds).norm() * (1 + 1e-12)


def test_matrices_get_the_truncated_decomposition():
    T = randn(6, 8)
    want = tail(T, 1, 3)
    assert (reconstruct_tt(tt_svd(T, (1, 3, 1))) - T).norm().item() == pytest.approx(want.item())
    assert (reconstruct_tucker(*tucker_hosvd(T, (3, 3))) - T).norm().item() == pytest.approx(want.item())
    weights, factors = cp_als(T, [randn(6, 3, seed=1), randn(8, 3, seed=2)], n_sweeps=300)
    assert (reconstruct_cp(weights, factors) - T).norm().item() == pytest.approx(want.item(), rel=1e-6)


def test_tucker_within_its_bound_and_sweeps_never_hurt():
    T, ranks = randn(5, 6, 7), (2, 3, 3)
    errors = [(reconstruct_tucker(*tucker_hosvd(T, ranks, n_sweeps=n)) - T).norm() for n in (0, 1, 2, 10)]
    bounds = [torch.linalg.svdvals(T.movedim(k, 0).reshape(T.shape[k], -1))[r:].norm() for k, r in enumerate(ranks)]
    assert max(bounds) <= errors[-1] * (1 + 1e-12)
    assert errors[0] <= torch.stack(bounds).norm() * (1 + 1e-12)
    assert all(b <= a * (1 + 1e-12) for a, b in zip(errors, errors[1:]))
    core, factors = tucker_hosvd(T, ranks)
    assert core.shape == ranks
    assert all(torch.allclose(U.T @ U, torch.eye(r, dtype=D), atol=1e-13) for U, r in zip(factors, ranks))


def test_tucker_ranks_that_grow_from_mode_to_mode():
    """Sequential truncation leaves fewer columns than the later ranks ask for; they are still orthonormal."""
    T = randn(2, 6, 6)
    core, factors = tucker_hosvd(T, (1, 5, 5), n_sweeps=3)
    assert core.shape == (1, 5, 5)
    assert all(torch.allclose(U.T @ U, torch.eye(U.shape[1], dtype=D), atol=1e-12) for U in factors)


@pytest.mark.parametrize("dtype", [D, torch.complex128])
def test_alternating_least_squares_recovers_a_sum_of_rank_one_terms(dtype):
    terms = [randn(s, 3, seed=s, dtype=dtype) for s in (5, 6, 7)]
    T = reconstruct_cp(torch.ones(3, dtype=dtype), terms)
    best = 1.0
    for seed in range(4):
        start = [randn(s, 3, seed=10 * seed + s, dtype=dtype) for s in (5, 6, 7)]
        weights, factors = cp_als(T, start, n_sweeps=500, ridge=1e-14)
        best = min(best, ((reconstruct_cp(weights, factors) - T).norm() / T.norm()).item())
        assert all(torch.allclose(U.norm(dim=0), torch.ones(3, dtype=D)) for U in factors[2:])
    assert best < 1e-6


def test_more_sweeps_never_hurt_cp():
    T, start = randn(4, 5, 6), [randn(s, 4, seed=s) for s in (4, 5, 6)]
    errors = [(reconstruct_cp(*cp_als(T, start, n_sweeps=n)) - T).norm() for n in (1, 5, 20, 60)]
    assert all(b <= a * (1 + 1e-9) for a, b in zip(errors, errors[1:]))


def test_reconstructions_by_index():
    cores = [randn(1, 2, 3), randn(3, 4, 2, seed=1), randn(2, 3, 1, seed=2)]
    T = reconstruct_tt(cores)
    assert torch.allclose(T[1, 2, 0], (cores[0][:, 1] @ cores[1][:, 2] @ cores[2][:, 0]).squeeze())
    weights, factors = randn(5), [randn(s, 5, seed=s) for s in (2, 3, 4)]
    T = reconstruct_cp(weights, factors)
    assert torch.allclose(T[1, 2, 3], (weights * factors[0][1] * factors[1][2] * factors[2][3]).sum())
    core = randn(2, 3)
    T = reconstruct_tucker(core, [randn(4, 2), randn(5, 3, seed=1)])
    assert torch.allclose(T, randn(4, 2) @ core @ randn(5, 3, seed=1).T)


def test_vmap_equals_the_loop():
    Ts, starts = randn(3, 4, 3, 5), [randn(3, s, 2, seed=s) for s in (4, 3, 5)]
    pairs = {
        "tt": (
            vmap(lambda T: reconstruct_tt(tt_svd(T, (1, 2, 3, 1))))(Ts),
            lambda i: reconstruct_tt(tt_svd(Ts[i], (1, 2, 3, 1))),
        ),
        "tucker": (
            vmap(lambda T: reconstruct_tucker(*tucker_hosvd(T, (2, 2, 3))))(Ts),
            lambda i: reconstruct_tucker(*tucker_hosvd(Ts[i], (2, 2, 3))),
        ),
        "cp": (
            vmap(lambda T, a, b, c: reconstruct_cp(*cp_als(T, [a, b, c], n_sweeps=10)))(Ts, *starts),
            lambda i: reconstruct_cp(*cp_als(Ts[i], [s[i] for s in starts], n_sweeps=10)),
        ),
    }
    for name, (got, one) in pairs.items():
        assert torch.allclose(got, torch.stack([one(i) for i in range(3)]), atol=1e-9), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    T = randn(3, 4, 2).to(dtype)
    leaves = [
        *tt_svd(T, (1, 3, 2, 1)),
        *tucker_hosvd(T, (2, 3, 2))[1],
        *cp_als(T, [T[:, 0], T[0], T[:2, 0].mT[:, :2] + 1])[1],
    ]
    assert {t.dtype for t in leaves} == {dtype}
    assert (reconstruct_tt(tt_svd(T, (1, 3, 2, 1))) - T).float().norm() < 0.05 * T.float().norm()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda T: tt_svd(T, (1, 2, 1)), r"ranks are \(1, 2, 1\), expected 4 of them with 1 at both ends"),
        (lambda T: tt_svd(T, (1, 2, 9, 1)), r"rank 2 is 9, expected at most"),
        (lambda T: tucker_hosvd(T, (2, 2)), r"ranks are \(2, 2\), expected 3 from 1 to \(2, 3, 4\)"),
        (lambda T: tucker_hosvd(T, (1, 3, 1)), r"rank 1 is 3, expected at most 1, the product of the others"),
        (lambda T: cp_als(T, [T[0]]), r"start has shapes \[\(3, 4\)\], expected \[\(s, R\) for s in \(2, 3, 4\)\]"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call(randn(2, 3, 4))
