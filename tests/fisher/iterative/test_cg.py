"""Conjugate gradients against dense solves: value, report, ensembles, derivatives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

from fisher.iterative import cg
from linmaps.numerics import linalg
from tests.laws import close

D = torch.float64


def spd(seed, d, low=1.0, high=4.0):
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=D)).Q
    return q @ torch.diag(torch.linspace(low, high, d, dtype=D)) @ q.T, torch.randn(d, generator=g, dtype=D)


@given(st.integers(0, 1000), st.integers(1, 30), st.floats(1e-3, 1.0))
def test_solves(seed, d, low):
    A, b = spd(seed, d, low)
    x, report = cg.conjugate_gradients(lambda v: A @ v, b)
    close(A @ x, b, 1e-11, "residual")
    assert report.converged
    assert report.residual <= 1e-12
    close(cg.solve(lambda A, v: A @ v, A, b)[0], x, 1e-13, "solve")


def test_perfect_preconditioner_takes_one_iteration_and_exact_start_none():
    A, b = spd(0, 12, 1e-3)
    exact = torch.linalg.inv(A)
    _, plain = cg.conjugate_gradients(lambda v: A @ v, b)
    x, report = cg.conjugate_gradients(lambda v: A @ v, b, precondition=lambda r: exact @ r, rtol=1e-11)
    assert report.iterations == 1
    assert plain.iterations > 5
    close(x, exact @ b, 1e-8, "x")
    _, report = cg.conjugate_gradients(lambda v: A @ v, b, x0=exact @ b, rtol=1e-10)
    assert report.iterations == 0
    assert report.converged
    start, report = cg.solve(lambda A, v: A @ v, A, b, x0=exact @ b, rtol=1e-10)
    assert report.iterations == 0
    close(start, exact @ b, 0.0, "x0")


def test_report_of_a_solve_cut_short():
    A, b = spd(0, 12, 1e-3)
    x, report = cg.conjugate_gradients(lambda v: A @ v, b, max_iter=3)
    assert not report.converged
    assert report.iterations == 3
    close(report.residual, (b - A @ x).norm() / b.norm(), 1e-12, "residual")
    _, none = cg.conjugate_gradients(lambda v: A @ v, b, max_iter=0)
    assert none.iterations == 0
    close(none.residual, torch.ones((), dtype=D), 1e-15, "of zero")


def test_zero_right_hand_side_and_singular_consistent_system():
    A, b = spd(0, 5)
    x, report = cg.conjugate_gradients(lambda v: A @ v, 0 * b)
    assert report.converged
    assert report.iterations == 0
    close(x, 0 * b, 0.0, "zero")
    P = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=D))
    close(
        cg.conjugate_gradients(lambda v: P @ v, torch.tensor([1.0, 1, 0], dtype=D))[0],
        torch.tensor([1, 0.5, 0], dtype=D),
        1e-14,
        "",
    )


def test_members_that_have_converged_stand_still():
    """A quick and a slow member together give the bits, or nearly, that each gives alone."""
    pairs = [spd(0, 10, 1.0, 1.0), spd(1, 10, 1e-4), spd(2, 10, 0.5)]
    A, b = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
    run = lambda A, b: cg.conjugate_gradients(lambda v: A @ v, b)
    x, report = vmap(run)(A, b)
    alone = [run(*p) for p in pairs]
    assert report.iterations.tolist() == [int(r.iterations) for _, r in alone]
    assert report.converged.all()
    close(x, torch.stack([y for y, _ in alone]), 1e-10, "x")


def test_loop_ends_early_under_vmap():
    A, b = spd(0, 4)
    calls = []

    def operator(v):
        calls.append(1)
        return A @ v

    vmap(lambda b: cg.conjugate_gradients(operator, b, max_iter=500)[0])(torch.stack([b, -b, 2 * b]))
    assert len(calls) < 10


def test_float32():
    A, b = spd(0, 20, 0.1)
    x, report = cg.conjugate_gradients(lambda v: A.float() @ v, b.float())
    assert x.dtype == torch.float32
    assert report.converged
    close(x.double(), torch.linalg.solve(A, b), 1e-4, "float32")


@pytest.mark.parametrize("preconditioned", [False, True])
def test_derivatives_are_those_of_the_solution(preconditioned):
    A0, b0 = spd(3, 6)
    B0, c0 = spd(4, 6)
    tree = lambda t: {"A": A0 + t * B0, "M": 1 / A0.diagonal()}
    precondition = (lambda s, r: s["M"] * r) if preconditioned else None
    weights = torch.linspace(-1, 1, 6, dtype=D)
    line = lambda t: (
        cg.solve(lambda s, v: s["A"] @ v, tree(t), b0 + t * t * c0 + t, precondition=precondition)[0] @ weights
    )
    dense = lambda t: linalg.solve(A0 + t * B0, b0 + t * t * c0 + t) @ weights
    t = torch.tensor(0.3, dtype=D)
    for mode in (jacfwd, jacrev):
        close(mode(line)(t), mode(dense)(t), 1e-10, f"{mode.__name__}")
        for other in (jacfwd, jacrev):
            close(mode(other(line))(t), mode(other(dense))(t), 1e-10, f"{mode.__name__}({other.__name__})")
    ts = torch.linspace(0, 1, 3, dtype=D)
    close(vmap(grad(line))(ts), vmap(grad(dense))(ts), 1e-10, "vmap(grad)")
    close(grad(lambda ts: vmap(line)(ts).sum())(ts), vmap(grad(dense))(ts), 1e-10, "grad(vmap)")
    leaf = t.clone().requires_grad_()
    line(leaf).backward()
    close(leaf.grad, grad(dense)(t), 1e-10, "backward")


def test_derivative_does_not_go_through_the_iteration():
    """An exact start takes no iteration; the derivative is right nevertheless."""
    A, b = spd(5, 6)
    run = lambda A: cg.solve(lambda A, v: A @ v, A, b, x0=torch.linalg.inv(A.detach()) @ b, rtol=1e-11)[0].sum()
    close(grad(run)(A), grad(lambda A: linalg.solve(A, b).sum())(A), 1e-9, "grad")


def test_errors():
    b = torch.ones(2)
    with pytest.raises(ValueError, match="rtol: got -1"):
        cg.conjugate_gradients(lambda v: v, b, rtol=-1.0)
    with pytest.raises(ValueError, match="max_iter: got -1"):
        cg.conjugate_gradients(lambda v: v, b, max_iter=-1)
