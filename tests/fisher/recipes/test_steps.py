"""Steps of exact length: optimality in the span, conjugate gradients on a quadratic, digits against a damped step."""

import torch
from torch.func import grad, vmap

import fisher
from fisher.recipes import Damping, best_step, natural_gradient_step
from linmaps import trees
from tests.fisher.digits import D, digits, mlp, objective, quadratic, start
from tests.laws import close, noise_like


def test_no_other_combination_lowers_the_model_further():
    p, loss, F = quadratic()
    g = grad(loss)(p)
    d = trees.stack([g, noise_like(p, 1), noise_like(p, 2)])
    step = best_step(F, g, d, 0.2)
    model = lambda s: trees.dot(g, s) + F.vTMv(s) / 2 + 0.1 * trees.dot(s, s)
    slopes = vmap(lambda e: trees.dot(e, grad(model)(step)))(d)
    assert slopes.abs().max() < 1e-12
    close(
        best_step(F, g, trees.stack([g, g, noise_like(p, 1)]), 0.2),
        best_step(F, g, trees.map(lambda t: t[:2], d), 0.2),
        1e-10,
        "twice the same",
    )
    close(best_step(F, trees.scale(0.0, g), d), trees.scale(0.0, g), 1e-15, "no gradient")


def test_gradient_and_last_step_are_conjugate_gradients():
    """With the step before as second direction a quadratic of d parameters is solved in d steps."""
    p, loss, F = quadratic()
    last = trees.zeros_like(p)
    for _ in range(10):
        g = grad(loss)(p)
        last = best_step(F, g, trees.stack([g, last]))
        p = trees.add(p, last)
    assert trees.norm(grad(loss)(p)) < 1e-9


def test_on_digits_ahead_of_the_damped_step():
    x, y = digits(200, features=16)
    f, loss = mlp, objective(mlp, x, y)
    p = q = start(16, 8, 10)
    damping, last = Damping(torch.tensor(0.1, dtype=D)), trees.zeros_like(p)
    layers = fisher.LayerCollection.from_function(f, p, x)
    for _ in range(10):
        F = fisher.fim(f, p, x, fisher.PMatKFAC, layers=layers)
        p, damping = (s := natural_gradient_step(loss, p, F, grad(loss)(p), damping)).params, s.damping
        F, whole = (fisher.fim(f, q, x, kind, layers=layers) for kind in (fisher.PMatKFAC, fisher.PMatImplicit))
        g = grad(loss)(q)
        last = best_step(whole, g, trees.stack([F.solve(g, 0.03), last]), 1e-3)
        q = trees.add(q, last)
    assert loss(q) < 0.7 * loss(p)
