"""Solves by Cholesky or eigh: the same pseudo-inverse, also in derivatives; the fast way only where it is safe."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacfwd, jacrev, vmap

from growth.moments import solvers
from growth.moments.solvers import pseudo_form, pseudo_root, pseudo_solve
from linmaps.numerics.eigen import pinv, rounding
from tests.growth.oracle import close

ZERO = torch.zeros((), dtype=torch.float64)


def spectral(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64)).Q
    m = (q * torch.as_tensor(values, dtype=torch.float64)) @ q.mT
    return (m + m.mT) / 2


def with_dead(m, at):
    keep = torch.ones(len(m) + len(at), dtype=torch.bool)
    keep[list(at)] = False
    out = torch.zeros(len(keep), len(keep), dtype=m.dtype)
    out[keep[:, None] & keep] = m.flatten()
    return out


def columns(d, k=3, seed=5):
    return torch.randn(d, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def no_eigh(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("took the way of eigenvectors")

    monkeypatch.setattr(solvers, "pinv", forbidden)


@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(0, 3),
    st.floats(0, 6),
    st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_agrees_with_the_pseudo_inverse(seed, d, null, digits, scale):
    values = scale * torch.cat([torch.logspace(0, -digits, d, dtype=torch.float64), torch.zeros(null)])
    a, b = spectral(values, seed), columns(d + null)
    close(scale * pseudo_solve(a, b), scale * pinv(a) @ b, 1e-13 * 10**digits)
    close(scale * pseudo_solve(a, b, 0.5 * scale), scale * pinv(a, 0.5 * scale) @ b, 1e-12)
    close(scale * pseudo_solve(a, b, rtol=1e-3), scale * pinv(a, rtol=1e-3) @ b, 1e-12)


@given(
    st.integers(0, 10**6),
    st.integers(2, 40),
    st.floats(0, 20),
    st.sampled_from(["one", "many", "half", "one large"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_fast_way_never_keeps_what_the_pseudo_inverse_cuts(seed, d, digits, shape, dtype):
    low = 10.0**-digits
    values = {
        "one": [low] + [1.0] * (d - 1),
        "many": torch.logspace(0, -digits, d).tolist(),
        "half": [low] * (d // 2) + [1.0] * (d - d // 2),
        "one large": [1.0] + [low] * (d - 1),
    }[shape]
    a = spectral(values, seed).to(dtype)
    if solvers._factor(a, None, rounding(a[0])) is None:
        assert low < 1e-6 if dtype == torch.float64 else low < 1e-4  # it is taken wherever there is no doubt
    else:
        e = torch.linalg.eigvalsh(a.double())
        assert e[0] > 2 * rounding(a[0]) * e[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dead", [(), (0, 3, 7)])
def test_well_conditioned_matrices_need_no_eigenvectors(no_eigh, dtype, dead):
    a = with_dead(spectral(torch.linspace(0.01, 10, 6)), dead)
    b = columns(len(a))
    want = torch.linalg.pinv(a, hermitian=True) @ b
    single = pseudo_solve(a.to(dtype), b.to(dtype))
    assert single.dtype == dtype
    tol = 1e-12 if dtype == torch.float64 else 1e-5
    close(single.double(), want, tol)
    assert (single[list(dead)] == 0).all()
    together = vmap(pseudo_solve)(torch.stack([a, 2 * a]).to(dtype), torch.stack([b, b]).to(dtype))
    close(together.double(), torch.stack([want, want / 2]), tol)


def test_an_ensemble_with_one_singular_member_equals_the_loop():
    singular = spectral([2.0, 1.0, 0.0, 3.0])
    members = torch.stack([spectral([2.0, 1.0, 1e-3, 3.0]), singular, with_dead(spectral([1.0, 2.0, 1e-3]), (1,))])
    b = columns(4)
    close(vmap(lambda a: pseudo_solve(a, b))(members), torch.stack([pseudo_solve(a, b) for a in members]), 1e-10)


def test_float32_is_solved_to_its_own_accuracy():
    """The factorization is in float64, so the answer is that of the matrix given, whatever its condition number."""
    a = spectral(torch.logspace(0, -3, 30)).float()
    b = columns(30).float()
    close(pseudo_solve(a, b).double(), torch.linalg.solve(a.double(), b.double()), 1e-7)


@pytest.mark.parametrize("digits", [1, 2, 3, 4, 4.6])
@pytest.mark.parametrize("k", [2, 50])
def test_rounding_of_float32_costs_little_beside_that_of_the_moments(digits, k):
    """Whatever way is taken: sums of products in float32 are off by so much, and the solve adds a few times that at most."""
    d, g = 60, torch.Generator().manual_seed(int(10 * digits))
    turn = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    X = (torch.randn(4000, d, generator=g, dtype=torch.float64) * torch.logspace(0, -digits / 2, d) @ turn).float()
    a, b = X.mT @ X / 4000, columns(d, k).float()
    exact = lambda m: torch.linalg.pinv((m + m.mT) / 2, hermitian=True, rtol=rounding(a[0])) @ b.double()
    want = exact(a.double())
    noise = (exact(X.mT.double() @ X.double() / 4000) - want).norm()
    form, back = pseudo_form(a, b)
    for got in (pseudo_solve(a, b), pinv(a) @ b, pseudo_solve(a, b, rtol=rounding(a[0])), back(torch.eye(k))):
        assert (got.double() - want).norm() < 6 * noise
    assert (form.double() - b.mT.double() @ want).norm() < 6 * noise * b.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("digits", [2, 4, 6, 8, 20])
@pytest.mark.parametrize("null", [1, 20])
@pytest.mark.parametrize("dead", [(), (0, 9)])
def test_what_is_cut_is_cut_at_every_condition_number(dtype, digits, null, dead):
    """20 eigenvalues of order 1 and others below, on one side of the threshold or the other by far: the exact pseudo-inverse."""
    low = 10.0**-digits
    a = with_dead(spectral([low] * null + torch.linspace(1, 2, 20).tolist()), dead).to(dtype)
    b, limit = columns(len(a), 4).to(dtype), rounding(a[0])
    want = torch.linalg.pinv(a.double(), hermitian=True, rtol=limit) @ b.double()
    size = torch.finfo(dtype).eps / (low if low > limit else 1.0)
    form, back = pseudo_form(a, b)
    for got in (
        pseudo_solve(a, b),
        pseudo_solve(a, b.repeat(1, 20))[:, :4],
        pinv(a) @ b,
        back(torch.eye(4, dtype=dtype)),
    ):
        close(got.double(), want, 100 * size)
    close(form.double(), b.mT.double() @ want, 100 * size)


@pytest.mark.parametrize("low", [0.5, 0.0])
@pytest.mark.parametrize("dead", [(), (0, 3)])
def test_a_form_is_that_of_the_solve_also_in_derivatives_and_under_vmap(low, dead):
    a, b, Z = with_dead(spectral([low, 1.0, 2.0, 3.0]), dead), columns(4 + len(dead)), columns(3, 2)
    both = lambda a, b: (lambda form, back: (form, back(Z)))(*pseudo_form(a, b))
    plain = lambda a, b: (lambda c: (b.mT @ c, c @ Z))(pseudo_solve(a, b))
    for one, other in zip(both(a, b), plain(a, b), strict=True):
        close(one, other, 1e-12)
    for mode in (jacrev, jacfwd):
        for one, other in zip(mode(both, 1)(a, b), mode(plain, 1)(a, b), strict=True):
            close(one, other, 1e-12)
    many = torch.stack([a, 2 * a]), torch.stack([b, b + 1])
    for one, other in zip(vmap(both)(*many), vmap(plain)(*many), strict=True):
        close(one, other, 1e-12)
    empty, back = pseudo_form(torch.zeros(0, 0), torch.zeros(0, 2))
    assert empty.shape == (2, 2)
    assert back(torch.ones(2, 1)).shape == (0, 1)


def test_a_difference_of_larger_terms():
    a, b = spectral([1.0, 1e-3, 1e-9]), columns(3)
    size = torch.tensor(1e5, dtype=torch.float64)
    close(pseudo_solve(a, b, size=size), pinv(a, size=size) @ b, 1e-8)
    assert pseudo_solve(spectral([1e-14, 1e-14]), b[:2], size=size).abs().max() == 0


def test_nothing_and_zero():
    empty = torch.zeros(0, 0)
    assert pseudo_solve(empty, torch.zeros(0, 2)).shape == (0, 2)
    assert pseudo_root(empty).shape == (0, 0)
    assert (pseudo_solve(torch.zeros(3, 3), torch.ones(3, 2)) == 0).all()
    assert (pseudo_root(torch.zeros(3, 3)) == 0).all()


def test_no_negative_curvature_is_taken_for_safe():
    a = spectral([1.0, 0.5, -1e-3])
    close(pseudo_solve(a, columns(3)), pinv(a) @ columns(3), 1e-12)


@pytest.mark.parametrize("dead", [0, 2])
@pytest.mark.parametrize("null", [0, 1])
def test_derivatives(dead, null):
    """Along a family of constant rank, in every mode and to the second order; compared with torch.linalg.lstsq."""
    g = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)
    X, turn, B, W = normal(12, 6), 0.3 * normal(6, 6), normal(12, 2), normal(6, 2)
    X[:, :dead] = 0
    X[:, 5] = X[:, 4] if null else X[:, 5]
    rows = lambda t: X @ torch.matrix_exp(t * turn)

    def solved(t):
        return (pseudo_solve(rows(t).mT @ rows(t), rows(t).mT @ B) * W).sum()

    def rooted(t):
        R = pseudo_root(rows(t).mT @ rows(t))
        return (R @ R.mT @ rows(t).mT @ B * W).sum()

    value = lambda t: (torch.linalg.lstsq(rows(t), B, driver="gelsd", rcond=1e-10).solution * W).sum()
    h = 1e-3
    v = {i: value(ZERO + i * h) for i in range(-2, 3)}
    first = (8 * (v[1] - v[-1]) - (v[2] - v[-2])) / (12 * h)
    second = (16 * (v[1] + v[-1]) - (v[2] + v[-2]) - 30 * v[0]) / (12 * h * h)
    for fn in (solved, rooted):
        close(fn(ZERO), v[0], 1e-10)
        for outer in (jacfwd, jacrev):
            close(outer(fn)(ZERO), first, 1e-7)
            for inner in (jacfwd, jacrev):
                close(outer(inner(fn))(ZERO), second, 1e-5)


def test_derivatives_of_the_right_hand_side_and_under_vmap():
    a, b = with_dead(spectral([1.0, 2.0, 0.1]), (1,)), columns(4)
    total = lambda t: pseudo_solve(a, t).square().sum()
    inverse = torch.linalg.pinv(a, hermitian=True)
    close(jacrev(total)(b), 2 * inverse @ inverse @ b, 1e-12)
    many = torch.stack([b, 2 * b])
    close(vmap(jacrev(total))(many), torch.stack([jacrev(total)(t) for t in many]), 1e-12)
    leaf = b.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    close(gradient, 2 * inverse @ inverse @ b, 1e-12)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 3), st.sampled_from([1e-12, 1.0, 1e12]))
def test_root(seed, d, null, scale):
    g = torch.Generator().manual_seed(seed)
    a = spectral(scale * torch.cat([0.1 + torch.rand(d, generator=g, dtype=torch.float64), torch.zeros(null)]), seed)
    R = pseudo_root(a)
    close(scale * R @ R.mT, scale * pinv(a), 1e-12)
    assert torch.linalg.matrix_rank(R) == d
