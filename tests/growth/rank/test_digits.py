"""Handwritten digits: a layer grown in rank by the gradient against one grown at random, a few steps later."""

import functools

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional

import fisher
import growth
import linmaps
from linmaps import trees
from tests.fisher.digits import digits
from tests.growth.kinds_rank import D, F, gen

X, Y = digits(400)


def loss(spec, params):
    return functional.cross_entropy(spec.apply(params, X), Y)


def train(spec, params, steps, rate=0.5):
    for _ in range(steps):
        params = trees.axpy(-rate, grad(functools.partial(loss, spec))(params), params)
    return params


def slope_of_W(spec, params):
    W = spec.effective_W(params)
    return grad(lambda W: functional.cross_entropy(X @ W + params["bias"], Y))(W)


@pytest.mark.parametrize(
    ("spec", "k"),
    [
        (linmaps.LowRank(64, 10, 2, bias=True), 2),
        (F((8, 8), (10,), factorization="tt", rank=2), 2),
        (F((8, 8), (10,), rank=(2, 2, 2)), 1),
        (F((8, 8), (10,), factorization="cp", rank=2), 2),
        (F((8, 8), (2, 5), factorization="blocktt", rank=1), 2),
    ],
    ids=lambda s: getattr(s, "factorization", getattr(s, "name", None)),
)
def test_gradient_beats_random_at_equal_budget(spec, k):
    few = lambda s: lambda p: loss(s, train(s, p, 8, 0.05))
    stacked = trees.stack([spec.init(gen(seed), dtype=D) for seed in range(3)])
    stacked = vmap(lambda p: train(spec, p, 60))(stacked)
    grown = vmap(lambda p: growth.grow_rank(spec, p, k, gradient=slope_of_W(spec, p))[1])(stacked)
    larger = growth.grow_rank(spec, trees.unstack(stacked)[0], k)[0]
    chance = [growth.grow_rank(spec, p, k, gen(100 + s))[1] for p in trees.unstack(stacked) for s in range(3)]
    by_gradient, standing = vmap(few(larger))(grown), vmap(few(spec))(stacked)
    by_chance = vmap(few(larger))(trees.stack(chance)).reshape(3, 3)
    print(f"\n{spec.name}: {by_gradient.mean():.3f}, random {by_chance.mean():.3f}, as it was {standing.mean():.3f}")
    assert (by_gradient < by_chance.min(1).values).all()
    assert by_gradient.mean() < standing.mean()


def test_scores_say_which_layer_to_grow():
    """The score of a layer that already fits is far below that of one cut to rank one."""
    spec = linmaps.LowRank(64, 10, 1, bias=True)
    params = train(spec, spec.init(gen(), dtype=D), 60)
    full = linmaps.LowRank(64, 10, 9, bias=True)
    fitted = train(full, full.init(gen(), dtype=D), 60)
    A = X.mT @ X / len(X)
    P = torch.softmax(full.apply(fitted, X), 1)
    B = torch.diag(P.mean(0)) - P.mT @ P / len(X)
    logits = lambda p, x: x @ p["W"]
    exact = fisher.fim(logits, {"W": full.effective_W(fitted)}, X[:100], fisher.PMatKFAC, "categorical")
    for metric in (None, (A, B), exact):
        low = growth.rank_scores(spec, params, slope_of_W(spec, params), 1, fisher=metric, ridge=1e-2)["r"]
        high = growth.rank_scores(full, fitted, slope_of_W(full, fitted), 1, fisher=metric, ridge=1e-2)["r"]
        assert low > 3 * high


def test_an_ensemble_grows_at_once():
    spec = linmaps.LowRank(64, 10, 2, bias=True)
    stacked = trees.stack([spec.init(gen(s), dtype=D) for s in range(4)])
    larger = linmaps.LowRank(64, 10, 4, bias=True)
    grown = vmap(lambda p: growth.grow_rank(spec, p, 2, gradient=slope_of_W(spec, p))[1])(stacked)
    before, after = vmap(lambda p: loss(spec, p))(stacked), vmap(lambda p: loss(larger, train(larger, p, 5)))(grown)
    assert (after < before).all()
