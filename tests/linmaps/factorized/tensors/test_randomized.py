"""Randomized decompositions: exact at low rank, near the deterministic ones, pure in their sketches, with derivatives."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacfwd, jacrev, vmap

from linmaps.factorized.tensors.randomized import (
    randomized_hosvd,
    randomized_svd,
    randomized_tt,
    tt_sketches,
    tucker_sketches,
)
from linmaps.factorized.tensors.ranks import tt_rank, tucker_rank
from linmaps.factorized.tensors.trains import reconstruct_tt, tt_svd
from linmaps.factorized.tensors.tucker import reconstruct_tucker, tucker_hosvd
from linmaps.numerics.singular import basis, left, svd

D, C = torch.float64, torch.complex128


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=gen(seed), dtype=dtype)


def decaying(*sizes, dtype=D):
    """Entries of a smooth kernel, whose unfoldings have singular values that decay fast."""
    grids = torch.meshgrid(*[torch.linspace(0.1, 1, s, dtype=D) for s in sizes], indexing="ij")
    t = sum((k + 1) * g for k, g in enumerate(grids))
    return (torch.polar(1 / t, 5 * t) if dtype.is_complex else 1 / t).to(dtype)


def differences(f, x, h=1e-4):
    """The Jacobian of f by central differences of the fourth order."""
    steps = h * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    columns = [(8 * (f(x + e) - f(x - e)) - (f(x + 2 * e) - f(x - 2 * e))) / (12 * h) for e in steps]
    return torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


def agree(got, want, tol=1e-8):
    assert (got - want).norm() <= tol * (1 + want.norm())


def tt(ranks, sketches, **options):
    return lambda T: reconstruct_tt(randomized_tt(T, ranks, sketches, **options))


def tucker(ranks, sketches, **options):
    return lambda T: reconstruct_tucker(*randomized_hosvd(T, ranks, sketches, **options))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3), st.booleans(), st.integers(0, 3))
def test_tensors_of_low_rank_are_recovered(sizes, rank, is_complex, oversampling):
    dtype = C if is_complex else D
    draw = {"oversampling": oversampling, "dtype": dtype}
    ranks = tt_rank(rank, sizes)
    T = reconstruct_tt([randn(*shape, seed=k, dtype=dtype) for k, shape in enumerate(zip(ranks, sizes, ranks[1:]))])
    cores = randomized_tt(T, ranks, tt_sketches(gen(), sizes, ranks, **draw))
    assert [tuple(core.shape) for core in cores] == list(zip(ranks, sizes, ranks[1:]))
    assert (reconstruct_tt(cores) - T).norm() <= 1e-11 * T.norm()
    ranks = tucker_rank(rank, sizes) if len(sizes) > 1 else (1,)
    T = reconstruct_tucker(
        randn(*ranks, dtype=dtype), [randn(s, r, seed=k, dtype=dtype) for k, (s, r) in enumerate(zip(sizes, ranks))]
    )
    for n_sweeps in (0, 1):
        sketches = tucker_sketches(gen(), sizes, ranks, **draw)
        core, factors = randomized_hosvd(T, ranks, sketches, n_sweeps=n_sweeps)
        assert tuple(core.shape) == ranks
        assert (reconstruct_tucker(core, factors) - T).norm() <= 1e-11 * T.norm()
        for U, r in zip(factors, ranks):
            assert torch.allclose(U.mH @ U, torch.eye(r, dtype=dtype), atol=1e-12)


@pytest.mark.parametrize("dtype", [D, C])
def test_nearly_as_good_as_without_sketches_where_singular_values_decay(dtype):
    sizes = (6, 7, 8, 5)
    T = decaying(*sizes, dtype=dtype)
    for r in (1, 2, 3):
        ranks = tt_rank(r, sizes)
        error = (tt(ranks, tt_sketches(gen(), sizes, ranks, dtype=dtype))(T) - T).norm()
        assert error <= 1.001 * (reconstruct_tt(tt_svd(T, ranks)) - T).norm()
        ranks = tucker_rank(r, sizes)
        sketches = tucker_sketches(gen(), sizes, ranks, dtype=dtype)
        for n_sweeps in (0, 1, 2):
            error = (tucker(ranks, sketches, n_sweeps=n_sweeps)(T) - T).norm()
            assert error <= 1.001 * (reconstruct_tucker(*tucker_hosvd(T, ranks, n_sweeps=n_sweeps)) - T).norm()


def test_power_iteration_helps_where_they_do_not_and_sweeps_never_hurt():
    T, ranks = randn(8, 9, 10), (4, 4, 4)
    small = {"oversampling": 0, "dtype": D}
    errors = [
        sum(
            (tucker(ranks, tucker_sketches(gen(s), T.shape, ranks, **small), n_power=p)(T) - T).norm() for s in range(8)
        )
        for p in (0, 1, 4)
    ]
    assert errors[0] > 1.02 * errors[1] > 1.02 * errors[2]
    sketches = tucker_sketches(gen(), T.shape, ranks, **small)
    errors = [(tucker(ranks, sketches, n_sweeps=n)(T) - T).norm() for n in (0, 1, 2, 6)]
    assert all(b <= a * (1 + 1e-12) for a, b in zip(errors, errors[1:]))


def spectrum(*sizes, power, dtype=D):
    """A tensor each of whose unfoldings in order has singular values like k^-power: little structure beyond them."""
    T = randn(*sizes, dtype=dtype)
    for k in range(1, len(sizes)):
        U, s, Vh = torch.linalg.svd(T.reshape(math.prod(sizes[:k]), -1), full_matrices=False)
        T = (U * torch.arange(1, len(s) + 1, dtype=D) ** -power) @ Vh
    return T.reshape(sizes)


def tails(T, ranks):
    """Squares of the singular values beyond the ranks, of each unfolding in order."""
    sizes = T.shape
    unfolded = [T.reshape(math.prod(sizes[:k]), -1) for k in range(1, T.ndim)]
    return [torch.linalg.svdvals(M)[r:].square().sum().item() for M, r in zip(unfolded, ranks[1:-1])]


@pytest.mark.parametrize("n_power", [0, 1, 2])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_mean_error_is_within_the_bound_of_halko_et_al(n_power, power):
    """E |A - Q Q' A|^2 <= (1 + r / (l - r - 1)) tail^2, and cutting Q' A to rank r adds at most tail^2; of a train the sum."""
    T, ranks, extra = spectrum(12, 10, 11, power=power), (1, 4, 4, 1), 4
    errors = [
        (tt(ranks, tt_sketches(gen(seed), T.shape, ranks, oversampling=extra, dtype=D), n_power=n_power)(T) - T)
        .square()
        .sum()
        .item()
        for seed in range(30)
    ]
    found, parts = tails(T, ranks), [2 + r / (extra - 1) for r in ranks[1:-1]]
    mean = sum(errors) / len(errors)
    assert mean <= sum(c * t for c, t in zip(parts, found))
    assert min(errors) >= max(found) * (1 - 1e-9)  # no train of these ranks does better
    if n_power:
        best = (reconstruct_tt(tt_svd(T, ranks)) - T).square().sum().item()
        assert mean <= {1: 1.1, 2: 1.03}[n_power] * best


@pytest.mark.parametrize("q", [0, 1, 2])
def test_the_spectral_error_is_within_the_bound_of_power_iteration(q):
    """E |A - U U' A| <= s + ((1 + sqrt(r / (l - r - 1))) s^(2 q + 1) + e sqrt(l) / (l - r) |tail^(2 q + 1)|)^(1 / (2 q + 1))."""
    A, r, l = spectrum(60, 80, power=0.5), 5, 11
    values = torch.linalg.svdvals(A)
    s, odd, p = values[r].item(), 2 * q + 1, l - r
    tail = values[r:].pow(2 * odd).sum().sqrt().item()
    bound = s + ((1 + math.sqrt(r / (p - 1))) * s**odd + math.e * math.sqrt(l) / p * tail) ** (1 / odd)
    errors = []
    for seed in range(20):
        U = randomized_svd(A, r, randn(80, l, seed=seed), n_power=q)[0]
        errors.append(torch.linalg.matrix_norm(A - U @ (U.mH @ A), 2).item())
    assert sum(errors) / 20 <= bound
    assert min(errors) >= s * (1 - 1e-12)
    assert max(errors) <= {0: 2.5, 1: 1.5, 2: 1.3}[q] * s


def test_a_step_without_a_sketch_is_that_of_the_singular_vectors():
    T, ranks = randn(5, 6, 7), (1, 3, 4, 1)
    whole = [torch.zeros(n, 0, dtype=D) for n in (42, 7)]
    agree(tt(ranks, whole)(T), reconstruct_tt(tt_svd(T, ranks)), 1e-12)
    whole = [torch.zeros(n, 0, dtype=D) for n in (42, 21, 12)]
    agree(tucker((3, 4, 2), whole)(T), reconstruct_tucker(*tucker_hosvd(T, (3, 4, 2), n_sweeps=0)), 1e-12)
    assert [tuple(t.shape) for t in tt_sketches(gen(), (5, 6, 7), ranks)] == [(42, 0), (7, 0)]


@pytest.mark.parametrize("dtype", [D, C])
def test_left_singular_vectors_of_wide_matrices(dtype):
    M, along = randn(4, 40, dtype=dtype), randn(4, 40, seed=1, dtype=dtype)
    want = svd(M)[0]
    phases = (want.conj() * left(M)).sum(0)
    agree(left(M), want * phases, 1e-12)
    real = lambda P: torch.view_as_real(P) if P.is_complex() else P
    span = lambda f: lambda t: (lambda U: real(U @ U.mH))(f(M + t * along)[:, :2])
    zero, of_svd = torch.zeros((), dtype=D), span(lambda M: svd(M)[0])
    for order in (jacfwd, lambda f: jacfwd(jacfwd(f))):
        agree(order(span(left))(zero), order(of_svd)(zero), 1e-9)


@pytest.mark.parametrize("dtype", [D, C])
@pytest.mark.parametrize("shape", [(9, 30), (30, 9), (9, 9), (1, 5), (5, 1)])
def test_singular_triples(shape, dtype):
    r = min(3, *shape)
    l = min(r + 4, *shape)
    A = randn(shape[0], r, dtype=dtype) @ randn(r, shape[1], seed=1, dtype=dtype)
    U, s, Vh = randomized_svd(A, r, randn(shape[1], l, seed=2, dtype=dtype))
    assert (U.shape, s.shape, Vh.shape) == ((shape[0], r), (r,), (r, shape[1]))
    assert torch.allclose(s, torch.linalg.svdvals(A)[:r], rtol=1e-12)
    assert ((U * s) @ Vh - A).norm() < 1e-12 * A.norm()
    positive = Vh @ randn(shape[1], l, seed=2, dtype=dtype)[:, 0]
    assert torch.allclose(positive, positive.abs().to(dtype), atol=1e-12)
    for Q in (U, Vh.mH):
        assert torch.allclose(Q.mH @ Q, torch.eye(r, dtype=dtype), atol=1e-12)


def test_sketches_come_from_the_generator_alone():
    before = torch.get_rng_state()
    for draw, ranks in ((tt_sketches, (1, 2, 2, 1)), (tucker_sketches, (2, 2, 2))):
        one, two, other = (draw(gen(seed), (6, 7, 8), ranks, oversampling=1) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(one, two))
        assert not torch.equal(one[0], other[0])
    assert torch.equal(before, torch.get_rng_state())
    sketches = tt_sketches(gen(), (60, 70, 80), (1, 20, 20, 1), dtype=D)
    assert [tuple(t.shape) for t in sketches] == [(5600, 28), (80, 28)]
    assert abs(sketches[0].std().item() - 1) < 0.01
    shapes = [tuple(t.shape) for t in tucker_sketches(gen(), (60, 70, 80), (20, 20, 20), oversampling=3)]
    assert shapes == [(5600, 23), (1600, 23), (400, 23)]


SIZES, TT, TUCKER = (3, 4, 2), (1, 2, 2, 1), (2, 3, 2)


def kinds(dtype=D):
    draw = {"oversampling": 0, "dtype": dtype}
    return {
        "tt": tt(TT, tt_sketches(gen(), SIZES, TT, **draw)),
        "tt, steps taken whole": tt(TT, tt_sketches(gen(), SIZES, TT, oversampling=8, dtype=dtype)),
        "tucker": tucker(TUCKER, tucker_sketches(gen(), SIZES, TUCKER, **draw)),
        "tucker swept": tucker((2, 2, 1), tucker_sketches(gen(), SIZES, (2, 2, 1), **draw), n_sweeps=1),
        "tt of rank 1": tt((1, 1, 1, 1), tt_sketches(gen(), SIZES, (1, 1, 1, 1), oversampling=3, dtype=dtype)),
        "tucker of rank 1": tucker((1, 1, 1), tucker_sketches(gen(), SIZES, (1, 1, 1), oversampling=3, dtype=dtype)),
    }


@pytest.mark.parametrize("dtype", [D, C])
@pytest.mark.parametrize("name", kinds())
def test_vmap_equals_the_loop(name, dtype):
    f, Ts = kinds(dtype)[name], randn(4, *SIZES, dtype=dtype)
    agree(vmap(f)(Ts), torch.stack([f(T) for T in Ts]), 1e-10)
    assert vmap(f)(Ts[:0]).shape == (0, *SIZES)


def test_vmap_over_sketches():
    T, stacks = randn(*SIZES), [randn(5, 8, 2), randn(5, 2, 2, seed=1)]
    got = vmap(lambda *sketches: tt(TT, sketches)(T))(*stacks)
    agree(got, torch.stack([tt(TT, sketches)(T) for sketches in zip(*stacks)]), 1e-10)


@pytest.mark.parametrize("name", kinds())
def test_derivatives_agree_with_differences(name):
    f, T = kinds()[name], randn(*SIZES, seed=3)
    J = differences(f, T)
    agree(jacrev(f)(T), J)
    agree(jacfwd(f)(T), J)
    bumps = lambda T: f(T).pow(2).cos().sum()
    along = lambda h: jacrev(bumps)(T + h * T.cos())
    agree(jacfwd(along)(torch.zeros((), dtype=D)), differences(along, torch.zeros((), dtype=D)), 1e-7)


@pytest.mark.parametrize("name", ["tt", "tucker swept"])
def test_derivatives_of_complex_tensors(name):
    T, f = torch.view_as_real(randn(*SIZES, seed=1, dtype=C)), kinds(C)[name]
    parts = lambda t: torch.view_as_real(f(torch.view_as_complex(t)).contiguous())
    J = differences(parts, T)
    agree(jacrev(parts)(T), J)
    agree(jacfwd(parts)(T), J)


@pytest.mark.parametrize("name", ["tt of rank 1", "tucker of rank 1"])
def test_derivatives_at_tensors_of_lower_rank_than_the_sketches(name):
    f = kinds()[name]
    for T in (torch.ones(SIZES, dtype=D), reconstruct_tt([randn(1, s, 1, seed=s) for s in SIZES])):
        J = differences(f, T)
        agree(jacrev(f)(T), J)
        agree(jacfwd(f)(T), J)


@pytest.mark.parametrize("name", kinds())
@pytest.mark.parametrize("T", [torch.zeros(SIZES, dtype=D), torch.ones(SIZES, dtype=D)], ids=["zeros", "ones"])
def test_derivatives_are_finite_at_special_tensors(name, T):
    f = kinds()[name]
    for J in (jacrev(f)(T), jacfwd(f)(T)):
        assert J.isfinite().all()


def test_the_identity():
    eye, sketch = torch.eye(4, dtype=D), randn(4, 4)
    cut = lambda r: lambda M: (lambda U: U @ (U.mT @ M))(randomized_svd(M, r, sketch)[0])
    agree(jacrev(cut(4))(eye), torch.eye(16, dtype=D).reshape(4, 4, 4, 4), 1e-11)
    assert jacrev(cut(2))(eye).isfinite().all()


def test_bases():
    Y = randn(6, 3, dtype=C)
    Q = basis(Y)
    assert torch.allclose(Q.mH @ Q, torch.eye(3, dtype=C), atol=1e-13)
    assert torch.allclose(Q @ (Q.mH @ Y), Y)
    project = lambda Y: basis(Y) @ basis(Y).mT
    X = randn(6, 3, seed=1)
    agree(jacrev(project)(X), differences(project, X))
    agree(jacfwd(jacrev(project))(X), differences(jacrev(project), X), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_dtypes(dtype):
    T = decaying(4, 5, 6, dtype=dtype if dtype.is_complex else D).to(dtype)
    ranks = (1, 3, 3, 1)
    cores = randomized_tt(T, ranks, tt_sketches(gen(), T.shape, ranks, dtype=dtype))
    core, factors = randomized_hosvd(T, (3, 3, 3), tucker_sketches(gen(), T.shape, (3, 3, 3), dtype=dtype))
    U, s, Vh = randomized_svd(T[0], 3, tt_sketches(gen(), (5, 6), (1, 3, 1), oversampling=1, dtype=dtype)[0])
    assert {t.dtype for t in (*cores, core, *factors, U, Vh)} == {dtype}
    assert s.dtype == (torch.float32 if dtype.is_complex else dtype)
    wide = torch.complex64 if dtype.is_complex else torch.float32
    tolerance = 10 * torch.finfo(dtype).eps + 1e-2
    assert (reconstruct_tt([c.to(wide) for c in cores]) - T.to(wide)).norm() < tolerance * T.to(wide).norm()


def test_real_sketches_do_for_complex_tensors():
    T = reconstruct_tt([randn(1, 4, 2, dtype=C), randn(2, 5, 2, dtype=C), randn(2, 3, 1, dtype=C)])
    agree(tt(TT, tt_sketches(gen(), T.shape, TT, dtype=D))(T), T, 1e-12)


T3 = randn(2, 3, 4)
A, B = torch.ones(12, 2, dtype=D), torch.ones(4, 2, dtype=D)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: randomized_tt(T3, TT, [A]),
            r"randomized_tt: got 1 sketches, expected 2; make them with tt_sketches\(",
        ),
        (
            lambda: randomized_tt(T3, TT, [A, A]),
            r"sketch 1 has shape \(12, 2\), expected \[4, 2 to 4\], or \[4, 0\] for none; make it with tt_sk",
        ),
        (lambda: randomized_tt(T3, TT, [A[:, :1], B]), r"sketch 0 has shape \(12, 1\), expected \[12, 2\]"),
        (lambda: randomized_tt(T3, (1, 2, 1), [A]), r"randomized_tt: ranks are \(1, 2, 1\), expected 4 of them"),
        (lambda: tt_sketches(gen(), (2, 3, 4), (1, 3, 2, 1)), r"tt_sketches: rank 1 is 3, expected 1 to 2 for sizes"),
        (
            lambda: randomized_hosvd(T3, (1, 2, 2), [A, A, B]),
            r"randomized_hosvd: sketch 0 .* expected \[12, 1 to 2\]|sketch 1",
        ),
        (
            lambda: randomized_hosvd(T3, (1, 3, 1), [A, A, B]),
            r"rank 1 is 3, expected at most 1, the product of the others",
        ),
        (
            lambda: tucker_sketches(gen(), (2, 3), (2, 2, 2)),
            r"tucker_sketches: ranks are \(2, 2, 2\), expected 2 from 1 to",
        ),
        (
            lambda: randomized_svd(T3[0], 4, B),
            r"randomized_svd: rank 4, expected 1 to 3, the smaller side of the matrix",
        ),
        (
            lambda: randomized_svd(T3[0], 2, A),
            r"sketch 0 has shape \(12, 2\), expected \[4, 2 to 3\]; make it with torch.randn",
        ),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_a_tensor_of_many_entries():
    """Only sketches and cores are decomposed: the sizes of the sketches do not depend on how many entries T has."""
    sizes, ranks = (24, 20, 22, 18), (1, 3, 4, 3, 1)
    T = reconstruct_tt(
        [randn(*shape, seed=k) / math.sqrt(shape[0]) for k, shape in enumerate(zip(ranks, sizes, ranks[1:]))]
    )
    noisy = T + 1e-6 * randn(*sizes, seed=9)
    assert (tt(ranks, tt_sketches(gen(), sizes, ranks, dtype=D))(noisy) - T).norm() < 1e-6 * math.sqrt(T.numel())
