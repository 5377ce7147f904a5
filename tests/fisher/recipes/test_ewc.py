"""Elastic weight consolidation: the quadratic form, its exact case, the divergence it stands for, two tasks of digits."""

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.recipes.ewc import ewc_penalty, ewc_total
from linmaps import trees
from tests.fisher.digits import D, digits, linear, mlp, objective, start, trained
from tests.laws import close, noise_like

KINDS = [fisher.PMatDense, fisher.PMatKFAC, fisher.PMatDiag]


@pytest.mark.parametrize("representation", KINDS)
def test_is_half_the_quadratic_form(representation):
    x, _ = digits(40, features=6)
    anchor = start(6, 4, 10)
    F = fisher.fim(mlp, anchor, x, representation)
    p = trees.add(anchor, noise_like(anchor, 0))
    step, _ = trees.ravel(trees.sub(p, anchor))
    close(ewc_penalty(F, anchor, p, 3.0), 1.5 * step @ F.to_torch() @ step, 1e-11, "penalty")
    close(grad(lambda p: ewc_penalty(F, anchor, p))(p), F.mv(trees.sub(p, anchor)), 1e-11, "gradient")
    close(ewc_penalty(F, anchor, anchor), torch.zeros((), dtype=D), 0.0, "at the anchor")
    other = trees.add(anchor, noise_like(anchor, 1))
    tasks = [(F, anchor), (2.0 * F, other)]
    want = ewc_penalty(F, anchor, p, 0.3) + ewc_penalty(2.0 * F, other, p, 0.3)
    close(ewc_total(iter(tasks), p, 0.3), want, 1e-11, "sum")


def test_is_the_divergence_of_the_outputs_to_the_second_order():
    x, _ = digits(40, features=6)
    anchor = start(6, 4, 10)
    F = fisher.fim(mlp, anchor, x, fisher.PMatDense)
    p = trees.axpy(1e-4, noise_like(anchor, 0), anchor)
    before, after = (torch.log_softmax(mlp(q, x), -1) for q in (anchor, p))
    divergence = (before.exp() * (before - after)).sum(-1).mean()
    assert abs(ewc_penalty(F, anchor, p) / divergence - 1) < 1e-3


def test_two_quadratic_tasks_in_sequence_are_both_at_once():
    """For a linear-Gaussian model the penalty is the earlier loss itself, up to a constant."""
    f = lambda p, x: x @ p["w"]
    x, label = digits(80, features=5)
    y = torch.cos(label[:, None].to(D))
    zero = {"w": torch.zeros(5, 1, dtype=D)}
    first = trained(f, zero, x[:40], y[:40], steps=1)
    F = fisher.fim(f, first, x[:40], fisher.PMatDense, "gaussian")
    loss = objective(f, x[40:], y[40:])
    both = lambda p: loss(p) + ewc_penalty(F, first, p)
    assert trees.norm(grad(both)(trained(f, zero, x, y, steps=1))) < 1e-12


@pytest.mark.parametrize("representation", KINDS)
def test_digits_keep_the_first_task(representation):
    """First the digits 0 to 4, then 5 to 9: with the penalty the first ones are not forgotten."""
    x, y = digits(200, features=12)
    old, new = y < 5, y >= 5
    first = trained(linear, start(12, 10), x[old], y[old], ridge=1e-3, steps=10)
    F = fisher.fim(linear, first, x[old], representation)
    at_old, at_new = objective(linear, x[old], y[old]), objective(linear, x[new], y[new])

    def second(penalty):
        p, gradient = first, grad(lambda p: at_new(p) + penalty(p))
        for _ in range(40):
            p = trees.axpy(-1.0, gradient(p), p)
        return p

    free, kept = second(lambda p: 0.0), second(lambda p: ewc_penalty(F, first, p, strength=3.0))
    assert at_old(kept) < 0.5 * at_old(free)
    assert at_new(kept) < 0.5 * at_new(first)


def test_an_ensemble_is_one_vmap():
    x, _ = digits(20, features=3)
    members = [start(3, 4, seed=k) for k in range(3)]
    q = start(3, 4, seed=9)
    run = lambda p: ewc_penalty(fisher.fim(linear, p, x, fisher.PMatKFAC), p, q)
    close(vmap(run)(trees.stack(members)), torch.stack([run(p) for p in members]), 1e-10, "ensemble")


def test_no_task():
    f, p = lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}
    F = fisher.fim(f, p, torch.eye(2), fisher.PMatDiag, "gaussian")
    for strength in (-1.0, float("nan"), torch.ones(2)):
        with pytest.raises(ValueError, match="strength: got"):
            ewc_penalty(F, p, p, strength)
    with pytest.raises(ValueError, match=r"anchor: leaf w has shape \(1, 1\)"):
        ewc_penalty(F, {"w": torch.ones(1, 1)}, p)
    with pytest.raises(ValueError, match="tasks: got none"):
        ewc_total([], start(3, 4))
