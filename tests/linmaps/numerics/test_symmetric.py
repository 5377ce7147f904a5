"""Laws of solves with symmetric matrices, definite or not."""

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

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
