"""Natural gradient steps: the quadratic case exactly, the damping rule case by case, digits against plain gradient."""

import functools

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.recipes.natural_gradient import Damping, natural_gradient_step
from linmaps import trees
from tests.fisher.digits import D, digits, linear, mlp, objective, quadratic, start
from tests.laws import close

scalar = lambda value: torch.tensor(value, dtype=D)


def test_a_quadratic_loss_is_solved_in_one_step():
    p, loss, F = quadratic()
    step = natural_gradient_step(loss, p, F, grad(loss)(p), Damping(scalar(0.0)))
    assert trees.norm(grad(loss)(step.params)) < 1e-12
    close(step.ratio, scalar(1.0), 1e-12, "the model is the loss")
    close(step.loss, loss(step.params), 0.0, "loss")


def test_params_move_by_the_damped_solution():
    p, loss, F = quadratic()
    g = grad(loss)(p)
    step = natural_gradient_step(loss, p, F, g, Damping(scalar(0.3)))
    close(step.params, trees.sub(p, F.solve(g, 0.3)), 1e-14, "step")
    close(step.ratio, scalar(1.0), 1e-11, "the damping is no part of the model")
    close(step.damping.value, scalar(0.2), 1e-14, "a good step lowers the damping")


def test_the_damping_follows_the_ratio():
    """A curvature c times the true one gives ratio (2 - 1/c) for a step of length 1/c."""
    p, loss, F = quadratic()
    g = grad(loss)(p)
    for c, value, moves in ((1.0, 1 / 1.5, True), (0.6, 1.0, True), (0.55, 1.5, True), (0.4, 1.5, False)):
        step = natural_gradient_step(loss, p, c * F, g, Damping(scalar(1e-9)), minimum=0.0)
        close(step.ratio, scalar(2 - 1 / c), 1e-6, "ratio")
        close(step.damping.value * 1e9, scalar(value), 1e-12, f"damping at {c}")
        assert bool((step.params["w"] != p["w"]).any()) == moves
        assert step.loss <= loss(p)
    floor = natural_gradient_step(loss, p, F, g, Damping(scalar(0.1)), minimum=0.09)
    close(floor.damping.value, scalar(0.09), 0.0, "minimum")


def test_a_step_to_nowhere_is_refused():
    p, loss, F = quadratic()
    bad = lambda q: torch.where(q["w"].sum() == p["w"].sum(), loss(q), torch.nan)
    step = natural_gradient_step(bad, p, F, grad(loss)(p), Damping(scalar(0.1)))
    close(step.params, p, 0.0, "params stay")
    close(step.damping.value, scalar(0.1 * 1.5), 1e-15, "the damping grows")


@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatKFAC])
def test_digits_in_ten_steps(representation):
    x, y = digits(200, features=16)
    loss, p, damping = objective(mlp, x, y), start(16, 8, 10), Damping(scalar(1e-2))
    losses = [loss(p)]
    for _ in range(10):
        F = fisher.fim(mlp, p, x, representation)
        step = natural_gradient_step(loss, p, F, grad(loss)(p), damping)
        p, damping = step.params, step.damping
        losses.append(step.loss)
    assert all(b <= a for a, b in zip(losses, losses[1:]))
    plain = start(16, 8, 10)
    for _ in range(10):
        plain = trees.axpy(-1.0, grad(loss)(plain), plain)
    assert losses[-1] < 0.5 * loss(plain)


def test_an_ensemble_is_one_vmap():
    x, y = digits(60, features=6)
    loss = objective(linear, x, y)

    def two(p, value):
        damping = Damping(value)
        for _ in range(2):
            F = fisher.fim(linear, p, x, fisher.PMatKFAC)
            step = natural_gradient_step(loss, p, F, grad(loss)(p), damping)
            p, damping = step.params, step.damping
        return step

    members = [start(6, 10, seed=k) for k in range(3)]
    values = torch.tensor([1e-3, 1e-1, 1e-9], dtype=D)
    got = vmap(two)(trees.stack(members), values)
    close(got, trees.stack([two(p, v) for p, v in zip(members, values)]), 1e-9, "ensemble")


def test_a_ready_solve():
    """Of a decomposition that is kept, of another matrix, of one argument or two."""
    p, loss, F = quadratic()
    g, damping = grad(loss)(p), Damping(scalar(0.3))
    want, E = natural_gradient_step(loss, p, F, g, damping), F.eigendecomposition()
    for solve in (
        E.solve,
        lambda v, regul: F.solve(v, regul),
        functools.partial(E.solve, regul=0.3),
        E.inverse(0.3).mv,
    ):
        close(natural_gradient_step(loss, p, F, g, damping, solve=solve), want, 1e-12, "the same solve")
    half = natural_gradient_step(loss, p, F, g, damping, solve=lambda v: trees.scale(0.5, F.solve(v, 0.3)))
    close(half.params, trees.axpy(0.5, trees.sub(want.params, p), p), 1e-12, "another")
    with pytest.raises(ValueError, match=r"solve: got it with options \['kind'\]"):
        natural_gradient_step(loss, p, F, g, damping, solve=E.solve, kind="lstsq")
    with pytest.raises(ValueError, match="solve"):
        natural_gradient_step(loss, p, F, g, damping, solve=lambda v: {"u": v["w"]})


def test_errors():
    p, loss, F = quadratic()
    with pytest.raises(ValueError, match="expected factor > 1"):
        natural_gradient_step(loss, p, F, grad(loss)(p), Damping(scalar(0.1)), factor=1.0)
    for damping in (scalar(-0.1), scalar(float("nan")), torch.ones(2, dtype=D)):
        with pytest.raises(ValueError, match="damping: got"):
            natural_gradient_step(loss, p, F, grad(loss)(p), Damping(damping))
    with pytest.raises(ValueError, match="minimum: got -1"):
        natural_gradient_step(loss, p, F, grad(loss)(p), Damping(scalar(0.1)), minimum=-1.0)
