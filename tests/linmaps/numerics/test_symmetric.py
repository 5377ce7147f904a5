"""Laws of solves with symmetric matrices, definite or not, and of eigen-decompositions of a known rank."""

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

from linmaps.numerics import eigen
from linmaps.numerics.eigen import eigh
from linmaps.numerics.linalg import solve
from tests.laws import close


def system(n, k=2, definite=False, seed=0):
    r = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=r, dtype=torch.float64)
    A = A @ A.mT / n + torch.eye(n, dtype=A.dtype) if definite else A + A.mT
    return A, torch.randn(n, k, generator=r, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 7, 200])
@pytest.mark.parametrize("definite", [True, False])
def test_it_solves_and_so_does_a_batch(n, definite):
    A, b = (torch.stack(ts) for ts in zip(*(system(n, definite=definite, seed=s) for s in range(3))))
    x = vmap(lambda A, b: solve(A, b, symmetric=True))(A, b)
    residual = (A @ x - b).norm() / (A.norm() * x.norm())
    assert residual < 1e-14 * n
    close(x[0], solve(A[0], b[0], symmetric=True), 1e-9, "a batch is its members")
    shared = vmap(lambda b: solve(A[0], b, symmetric=True))(b)
    close(A[0] @ shared, b, 1e-8, "one matrix for several right-hand sides")


def test_only_the_lower_triangle_is_read():
    A, b = system(5)
    close(solve(A.tril(), b, symmetric=True), solve(A, b), 1e-10, "lower")


def test_derivatives_of_both_arguments():
    A, b = system(4, 1)
    vector, direction = b[:, 0], torch.linspace(-1, 1, 4, dtype=b.dtype)
    curve = lambda t, way: solve(
        A + t * torch.outer(direction, direction), vector + t**2 * direction, symmetric=way
    ).sum()
    t = torch.tensor(0.3, dtype=b.dtype)
    for make in (lambda f: grad(f)(t), lambda f: hessian(f)(t), lambda f: jvp(f, (t,), (torch.ones_like(t),))[1]):
        close(make(lambda t: curve(t, True)), make(lambda t: curve(t, False)), 1e-9, "as by QR")
    close(
        vmap(grad(lambda t: curve(t, True)))(torch.stack([t, 2 * t]))[0],
        grad(lambda t: curve(t, False))(t),
        1e-9,
        "vmap",
    )


def test_what_is_singular_or_not_finite_says_so():
    one = torch.ones(2, 1, dtype=torch.float64)
    assert not solve(torch.diag(torch.tensor([0.0, 1.0], dtype=one.dtype)), one, symmetric=True).isfinite().all()
    assert solve(torch.full((2, 2), torch.nan, dtype=one.dtype), one, symmetric=True).isnan().all()


def of_rank(n, rank, digits=0.0, dtype=torch.float64, seed=0):
    """X'X / rank of so many rows, whose columns fall off by this."""
    X = torch.randn(rank, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    X = X * torch.logspace(0, -digits / 2, n, dtype=torch.float64)
    return (X.mT @ X / max(1, rank)).to(dtype)


@pytest.fixture
def ranked(monkeypatch):
    """The way of a known rank, which fails where it is not taken."""
    monkeypatch.setattr(eigen, "plain_eigh", lambda m: _small(m, plain=eigen.lapack.eigh))


def _small(m, plain):
    assert m.shape[-1] <= 25, "a decomposition of the whole matrix"
    return plain(m)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("digits", [0.0, 4.0, 12.0])
@pytest.mark.parametrize(("rank", "bound"), [(12, 12), (3, 12), (0, 12), (1, 1), (0, 0)])
def test_a_known_rank_gives_the_same_decomposition(ranked, dtype, digits, rank, bound):
    m = of_rank(60, rank, digits, dtype)
    values, U = eigh(m, bound)
    eps = torch.finfo(dtype).eps
    size = m.double().norm().clamp_min(1e-30)
    want = torch.linalg.eigvalsh(m.double())
    assert (values.double() - want).abs().max() <= 16 * eps * size
    assert (values[1:] >= values[:-1]).all()
    assert (U.double().mT @ U.double() - torch.eye(60)).abs().max() < 32 * eps
    assert ((U.double() * values.double()) @ U.double().mT - m.double()).norm() <= 32 * eps * size


def test_a_known_rank_maps_over_an_ensemble_and_has_the_same_derivatives(ranked):
    t = torch.tensor(0.2, dtype=torch.float64)
    members = torch.stack([of_rank(40, 5, seed=s) for s in range(2)])
    for m, U in zip(members, vmap(lambda m: eigh(m, 5)[1])(members)):
        close(U.mT @ m @ U, torch.diag(eigh(m, 5)[0]), 1e-12, "ensemble")
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at = lambda t: (lambda X: X.mT @ X)(rows + t * rows.flip(1).sin())

    def seen(t, way):
        values, U = way(at(t))
        top = U[:, -5:]
        return (values**2).sum() + ((top * values[-5:] ** 0.5) @ top.mT)[0, 1]

    plain = lambda m: torch.linalg.eigh(m)
    close(
        grad(lambda t: seen(t, lambda m: eigh(m, 5)))(t), jvp(lambda t: seen(t, plain), (t,), (t / t,))[1], 1e-6, "grad"
    )


def test_a_rank_that_is_no_less_work_is_not_used():
    m = of_rank(20, 10)
    assert torch.equal(eigh(m, 10)[1], eigh(m)[1])
