"""Decompositions: exact at full rank, near the optimum below it, pure, mapped by vmap, complex and half precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacfwd, jacrev, vmap

from linmaps.factorized import cp_als, reconstruct_cp, reconstruct_tt, reconstruct_tucker, tt_svd, tucker_hosvd
from linmaps.factorized.tensors.cp import cp_start
from linmaps.factorized.tensors.ranks import tt_rank, tucker_rank
from linmaps.numerics.singular import svd

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


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.floats(0.05, 1.5), st.booleans(), st.integers(0, 99))
def test_errors_lie_between_one_tail_and_the_root_of_the_sum_of_their_squares(sizes, rank, is_complex, seed):
    T = randn(*sizes, seed=seed, dtype=torch.complex128 if is_complex else D)
    small = 1e-12 * T.norm()
    ranks = tt_rank(rank, sizes)
    error = (reconstruct_tt(tt_svd(T, ranks)) - T).norm()
    tails = torch.stack([tail(T, k, ranks[k]) for k in range(len(sizes) + 1)])
    assert tails.max() - small <= error <= tails.norm() + small
    ranks = tucker_rank(rank, sizes) if len(sizes) > 1 else (1,)
    errors = [(reconstruct_tucker(*tucker_hosvd(T, ranks, n_sweeps=n)) - T).norm() for n in (0, 1, 2, 3)]
    tails = torch.stack([tail(T.movedim(k, 0), 1, r) for k, r in enumerate(ranks)])
    assert errors[0] <= tails.norm() + small
    assert all(tails.max() - small <= b <= a + small for a, b in zip([errors[0], *errors], errors))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_tensors_of_low_rank_are_recovered(sizes, rank, is_complex, seed):
    dtype = torch.complex128 if is_complex else D
    ranks = tt_rank(rank, sizes)
    shapes = zip(ranks, sizes, ranks[1:])
    T = reconstruct_tt([randn(*shape, seed=seed + k, dtype=dtype) for k, shape in enumerate(shapes)])
    assert (reconstruct_tt(tt_svd(T, ranks)) - T).norm() <= 1e-12 * T.norm()
    ranks = tucker_rank(rank, sizes) if len(sizes) > 1 else (1,)
    T = randn(*ranks, seed=seed, dtype=dtype)
    T = reconstruct_tucker(T, [randn(s, r, seed=k, dtype=dtype) for k, (s, r) in enumerate(zip(sizes, ranks))])
    for n_sweeps in (0, 2):
        assert (reconstruct_tucker(*tucker_hosvd(T, ranks, n_sweeps=n_sweeps)) - T).norm() <= 1e-12 * T.norm()


def naive_sweep(T, factors, weights, ridge):
    """One sweep by its formula, mode by mode and column by column, in numpy."""
    factors, R = [U / np.linalg.norm(U, axis=0) for U in factors], factors[0].shape[1]
    for k in range(T.ndim):
        K = np.ones((1, R))
        for j, U in enumerate(factors):
            K = K if j == k else np.stack([np.kron(K[:, r], U[:, r]) for r in range(R)], axis=1)
        G = K.T @ K.conj()
        old, mu = factors[k] * weights, ridge * np.trace(G).real / R
        unfolding = np.moveaxis(T, k, 0).reshape(T.shape[k], -1)
        new = (unfolding @ K.conj() + mu * old) @ np.linalg.inv(G + mu * np.eye(R))
        weights = np.linalg.norm(new, axis=0)
        factors[k] = new / weights
    return weights, factors


@pytest.mark.parametrize("dtype", [D, torch.complex128])
@pytest.mark.parametrize("sizes", [(4,), (3, 5), (1, 4, 3), (2, 3, 4, 2), (3, 2, 2, 2, 3)])
def test_a_sweep_is_the_formula_on_every_unfolding(sizes, dtype):
    T, start = randn(*sizes, dtype=dtype), [randn(s, 3, seed=s + 9, dtype=dtype) for s in sizes]
    norms = np.prod([U.norm(dim=0).numpy() for U in start], axis=0)
    weights, factors = naive_sweep(T.numpy(), [U.numpy() for U in start], norms, 0.01)
    got_weights, got = cp_als(T, start, n_sweeps=1, ridge=0.01)
    np.testing.assert_allclose(got_weights.numpy(), weights, rtol=1e-10)
    for a, b in zip(got, factors):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-10)


@pytest.mark.parametrize("dtype", [D, torch.complex128])
def test_the_start_is_singular_vectors_and_independent_columns(dtype):
    T = randn(3, 4, 5, dtype=dtype)
    before = torch.get_rng_state()
    start = cp_start(T, 40)
    assert torch.equal(before, torch.get_rng_state())
    for k, U in enumerate(start):
        s = T.shape[k]
        leading = torch.linalg.svd(T.movedim(k, 0).reshape(s, -1)).U
        assert torch.allclose((leading.mH @ U[:, :s]).abs(), torch.eye(s, dtype=D), atol=1e-12)
        assert torch.allclose(torch.linalg.vector_norm(U, dim=0), torch.ones(40, dtype=D))
        for first in range(0, 40 - s, s):
            assert torch.linalg.svdvals(U[:, first : first + s])[-1] > 1e-3
    terms = torch.stack([reconstruct_cp(torch.ones(1), [U[:, r : r + 1] for U in start]).flatten() for r in range(40)])
    assert torch.linalg.svdvals(terms)[-1] > 1e-3
    phase = 1j if dtype.is_complex else -1
    for U, V in zip(start, cp_start(phase * T, 40)):
        assert torch.allclose(U, V, atol=1e-12)


@pytest.mark.parametrize("sizes", [(5, 6, 7), (4, 4, 4, 4), (10, 10, 10)])
def test_sums_of_few_terms_are_found_from_the_default_start(sizes):
    R = min(sizes) - 1
    found = 0
    for seed in range(6):
        T = reconstruct_cp(torch.ones(R, dtype=D), [randn(s, R, seed=7 * seed + k) for k, s in enumerate(sizes)])
        found += (reconstruct_cp(*cp_als(T, R, n_sweeps=400)) - T).norm().item() < 1e-10 * T.norm().item()
    assert found >= 4


@pytest.mark.parametrize(("out_shape", "in_shape"), [((4, 8, 8), (7, 8, 14)), ((4, 4, 16), (7, 7, 16))])
def test_a_large_matrix_of_low_rank_and_noise(out_shape, in_shape):
    U, V = torch.linalg.qr(randn(256, 16)).Q, torch.linalg.qr(randn(784, 16, seed=1)).Q
    signal, noise = U * torch.arange(1, 17) ** -0.7 @ V.T, randn(256, 784, seed=2)
    W = signal + 0.05 * signal.norm() * noise / noise.norm()
    T = W.reshape(*out_shape, *in_shape).float()
    R = int(0.1 * T.numel() / (1 + sum(T.shape)))
    error = (reconstruct_cp(*cp_als(T, R, n_sweeps=12)) - T).norm() / T.norm()
    assert error < 0.7


@pytest.mark.parametrize("sizes", [(3, 4, 5), (6, 8), (7,)])
def test_more_terms_than_the_tensor_needs_stay_stable_in_single_precision(sizes):
    T = randn(*sizes).float()
    weights, factors = cp_als(T, 30, n_sweeps=300)
    assert (reconstruct_cp(weights, factors) - T).norm() < 2e-6 * T.norm()
    assert weights.max() < 100 * T.norm()


def test_a_term_of_weight_zero_can_come_back():
    T = reconstruct_cp(torch.ones(2, dtype=D), [randn(s, 2, seed=s) for s in (3, 4, 5)])
    start = [randn(s, 2, seed=s + 20) for s in (3, 4, 5)]
    start[0] = start[0] * torch.tensor([1.0, 0.0])
    weights, _ = cp_als(T, start, n_sweeps=200)
    assert (weights > 0.1).all()
    weights, factors = cp_als(torch.zeros(3, 4, 5), 2)
    assert (weights == 0).all()
    assert all(U.isfinite().all() for U in factors)


# --- derivatives ---------------------------------------------------------------------------------------------------

KINDS = {
    "tt": lambda T: reconstruct_tt(tt_svd(T, (1, 2, 2, 1))),
    "tt1": lambda T: reconstruct_tt(tt_svd(T, (1, 1, 1, 1))),
    "tucker": lambda T: reconstruct_tucker(*tucker_hosvd(T, (2, 3, 2))),
    "tucker1": lambda T: reconstruct_tucker(*tucker_hosvd(T, (1, 1, 1), n_sweeps=0)),
    "cp": lambda T: reconstruct_cp(*cp_als(T, 2, n_sweeps=4)),
    "cp_wide": lambda T: reconstruct_cp(*cp_als(T, 5, n_sweeps=2)),
}


def differences(f, x, h=1e-4):
    """The Jacobian of f by central differences of the fourth order."""
    steps = h * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    columns = [(8 * (f(x + e) - f(x - e)) - (f(x + 2 * e) - f(x - 2 * e))) / (12 * h) for e in steps]
    return torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


def agree(got, want, tol=1e-8):
    assert (got - want).norm() <= tol * (1 + want.norm())


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_agree_with_differences(name):
    f, T = KINDS[name], randn(3, 4, 2, seed=3)
    J = differences(f, T)
    agree(jacrev(f)(T), J)
    agree(jacfwd(f)(T), J)
    bumps = lambda T: f(T).pow(2).cos().sum()
    along = lambda h: jacrev(bumps)(T + h * T.cos())
    agree(jacfwd(along)(torch.zeros((), dtype=D)), differences(along, torch.zeros((), dtype=D)), 1e-7)


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_of_complex_tensors(name):
    f, T = KINDS[name], torch.view_as_real(randn(3, 4, 2, seed=1, dtype=torch.complex128))
    parts = lambda t: torch.view_as_real(f(torch.view_as_complex(t)).contiguous())
    J = differences(parts, T)
    agree(jacrev(parts)(T), J)
    agree(jacfwd(parts)(T), J)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (5, 3)])
def test_derivatives_of_singular_vectors(shape):
    M = randn(*shape, seed=2)
    for i in range(3):
        want = differences(lambda M, i=i: svd(M)[i], M)
        agree(jacrev(lambda M, i=i: svd(M)[i])(M), want)
        agree(jacfwd(lambda M, i=i: svd(M)[i])(M), want)
    native = lambda M: torch.linalg.svd(M, full_matrices=False)
    second = lambda svd: jacrev(
        jacrev(lambda M: (lambda U, s, Vh: ((U[:, :2] * s[:2]) @ Vh[:2]).exp().sum())(*svd(M)))
    )(M)
    agree(second(svd), second(native), 1e-11)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (5, 3)])
def test_derivatives_of_complex_singular_triples(shape):
    """Phases are arbitrary, but the same for both vectors of a pair."""
    M = torch.view_as_real(randn(*shape, seed=2, dtype=torch.complex128))

    def pairs(M):
        U, s, Vh = svd(torch.view_as_complex(M))
        return torch.view_as_real((U[:, None, :2] * Vh[:2].mT) / s[:2])

    J = differences(pairs, M)
    agree(jacrev(pairs)(M), J)
    agree(jacfwd(pairs)(M), J)


def test_derivatives_where_singular_values_repeat():
    """Kept ones may coincide, and any at full rank; where truncation itself has no derivative it is finite."""
    cut = lambda r: lambda M: reconstruct_tt(tt_svd(M, (1, r, 1)))
    A = torch.diag(torch.tensor([2.0, 2.0, 1.0, 0.5], dtype=D))
    eye, same = torch.eye(4, dtype=D), torch.eye(16, dtype=D).reshape(4, 4, 4, 4)
    agree(jacrev(cut(2))(A), differences(cut(2), A))
    agree(jacfwd(cut(3))(A), differences(cut(3), A))
    for M in (eye, torch.zeros(4, 4, dtype=D), A):
        agree(jacrev(cut(4))(M), same, 1e-12)
    projection = jacrev(cut(2))(eye)
    assert abs(projection.norm().item() - math.sqrt(8)) < 1e-12


@pytest.mark.parametrize("name", ["tt1", "tucker1"])
def test_derivatives_at_tensors_of_exactly_these_ranks(name):
    f = KINDS[name]
    for T in (torch.ones(3, 4, 2, dtype=D), reconstruct_tt([randn(1, s, 1, seed=s) for s in (3, 4, 2)])):
        J = differences(f, T)
        agree(jacrev(f)(T), J)
        agree(jacfwd(f)(T), J)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("T", [torch.zeros(3, 4, 2, dtype=D), torch.ones(3, 4, 2, dtype=D)], ids=["zeros", "ones"])
def test_derivatives_are_finite_at_special_tensors(name, T):
    for J in (jacrev(KINDS[name])(T), jacfwd(KINDS[name])(T)):
        assert J.isfinite().all()


@pytest.mark.parametrize("dtype", [D, torch.complex128])
@pytest.mark.parametrize("name", KINDS)
def test_vmap_equals_the_loop_from_the_default_start(name, dtype):
    Ts = randn(4, 3, 4, 2, dtype=dtype)
    agree(vmap(KINDS[name])(Ts), torch.stack([KINDS[name](T) for T in Ts]), 1e-10)
    assert vmap(KINDS[name])(Ts[:0]).shape == (0, 3, 4, 2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda T: tt_svd(T, (1, 2, 1)),
            r"tt_svd: ranks are \(1, 2, 1\), expected 4 of them with 1 at both ends; .*tt_rank",
        ),
        (lambda T: tt_svd(T, (1, 2, 9, 1)), r"rank 2 is 9, expected 1 to 4 for sizes \(2, 3, 4\); .*tt_rank"),
        (lambda T: tt_svd(T, (1, 0, 1, 1)), r"rank 1 is 0, expected 1 to 2"),
        (lambda T: tucker_hosvd(T, (2, 2)), r"ranks are \(2, 2\), expected 3 from 1 to \(2, 3, 4\); .*tucker_rank"),
        (
            lambda T: tucker_hosvd(T, (1, 3, 1)),
            r"rank 1 is 3, expected at most 1, the product of the others; .*tucker_rank",
        ),
        (
            lambda T: cp_als(T, [T[0]]),
            r"start has shapes \[\(3, 4\)\], expected \[\(s, R\) for s in \(2, 3, 4\)\]; see cp_start",
        ),
        (lambda T: cp_als(T, []), r"start has shapes \[\]"),
        (lambda T: cp_als(T, 0), r"R is 0, expected a positive int"),
        (lambda T: cp_start(T, 2.0), r"R is 2.0, expected a positive int, the number of terms; convert with int"),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call(randn(2, 3, 4))
