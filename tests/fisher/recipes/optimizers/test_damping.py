"""Damping by layer: the solve of the damped factors, the model with the same diagonal, one factor that is adapted."""

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.recipes import best_step, kfac
from linmaps import trees
from tests.laws import close

D = torch.float64
G = torch.Generator().manual_seed(0)
X, T = torch.randn(20, 3, generator=G, dtype=D), torch.arange(20) % 2
P = {
    "a": torch.randn(3, 4, generator=G, dtype=D),
    "b": torch.randn(4, generator=G, dtype=D),
    "v": torch.randn(4, 2, generator=G, dtype=D),
}


def f(p, x):
    return torch.tanh(x @ p["a"] + p["b"]) @ p["v"]


def loss(p):
    return torch.nn.functional.cross_entropy(f(p, X), T)


LAYERS = fisher.LayerCollection.from_function(f, P, X)
NUMBERS = dict(zip(LAYERS.names(), (0.3, 0.02)))


def first(**options):
    rule = kfac(f, estimator="exact", adapt=False, **options)
    return rule.update(grad(loss)(P), rule.init(P, X), P, batch=(X, T))


@pytest.mark.parametrize("kind", ["pi", "default"])
def test_a_step_is_damped_by_layer(kind):
    F = fisher.fim(f, P, X, fisher.PMatKFAC)
    want = trees.map(torch.zeros_like, P)
    for name, r in NUMBERS.items():  # each layer by itself
        own = F.solve(grad(loss)(P), r, kind=kind)
        views = LAYERS.views(own)
        want = trees.add(want, LAYERS.tree({n: t * (n == name) for n, t in views.items()}))
    updates, _ = first(rate=0.5, momentum=0, damping=NUMBERS, kind=kind)
    close(updates, trees.scale(-0.5, want), 1e-9, "rate")
    exact, _ = first(momentum=0, damping=NUMBERS, kind=kind, l2=0.0)
    whole = fisher.fim(f, P, X, fisher.PMatImplicit)
    by_model = best_step(whole, grad(loss)(P), trees.stack([want]), {n: NUMBERS[n] for n in LAYERS.names()})
    close(exact, by_model, 1e-8, "exact length")


@pytest.mark.parametrize("options", [{}, {"rate": 0.1}, {"kind": "default"}, {"l2": 0.1}, {"clip": 0.01}])
def test_equal_numbers_are_one(options):
    one, _ = first(damping=0.2, **options)
    same, state = first(damping=dict.fromkeys(NUMBERS, 0.2), **options)
    close(same, one, 1e-9, "updates")
    assert state.damping == 1


def test_one_factor_is_adapted():
    rule = kfac(f, estimator="exact", adapt_every=1, damping=NUMBERS)
    other = kfac(f, estimator="exact", adapt_every=1, damping=dict.fromkeys(NUMBERS, 0.3))
    plain = kfac(f, estimator="exact", adapt_every=1, damping=0.3)
    states = [r.init(P, X) for r in (rule, other, plain)]
    p = [P] * 3
    for _ in range(4):
        for n, r in enumerate((rule, other, plain)):
            updates, states[n] = r.update(grad(loss)(p[n]), states[n], p[n], batch=(X, T))
            p[n] = trees.add(p[n], updates)
    assert states[0].damping < 1
    close(0.3 * states[1].damping, states[2].damping, 1e-12, "factor")
    close(p[1], p[2], 1e-9, "params")


def test_relative_damping_and_ensembles():
    start = fisher.fim(f, P, X).relative(0.1)
    rule = kfac(f, estimator="exact", adapt=False, damping=start)
    run = lambda p: rule.update(grad(loss)(p), rule.init(p, X), p, batch=(X, T))[0]["a"]
    both = trees.stack([P, trees.scale(0.5, P)])
    close(vmap(run)(both), torch.stack([run(p) for p in trees.unstack(both)]), 1e-9, "vmap")


def test_other_layers_and_numbers():
    for wrong in ({"a": 0.1}, {"a": 0.1, "v": 0.1, "w": 0.2}):
        with pytest.raises(ValueError, match=r"damping: got numbers for .*expected one for each layer of \['a', 'v'\]"):
            kfac(f, estimator="exact", damping=wrong).init(P, X)
    with pytest.raises(ValueError, match=r"damping: a: got -1.0"):
        kfac(f, damping={"a": -1.0, "v": 1.0})


def test_padded_tokens_as_the_docstring_has_them():
    """A linear model of tokens: the full step of the sum over tokens is that of the tokens that count alone."""
    x, t = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(2), dtype=D), torch.arange(20).reshape(5, 4) % 2
    t[:, 2:] = -100
    g, w = (lambda p, x: x @ p["w"]), {"w": torch.zeros(3, 2, dtype=D)}
    summed = lambda p: torch.nn.functional.cross_entropy(g(p, x).mT, t, ignore_index=-100, reduction="sum") / len(x)
    meant = lambda p: torch.nn.functional.cross_entropy(g(p, x).mT, t, ignore_index=-100)
    rule = lambda n: kfac(
        g,
        fisher.Categorical(class_axis=n),
        estimator="exact",
        adapt=False,
        damping=1e-8,
        kind="default",
        rate=1.0,
        momentum=0,
    )
    updates, _ = rule(-1).update(grad(summed)(w), rule(-1).init(w, (x, t)), w, batch=(x, t))
    flat, s = x[:, :2].reshape(-1, 3), t[:, :2].reshape(-1)
    alone = lambda p: torch.nn.functional.cross_entropy(g(p, flat), s)
    want, _ = rule(1).update(grad(alone)(w), rule(1).init(w, (flat, s)), w, batch=(flat, s))
    close(updates, want, 1e-4, "of the tokens that count")
    close(trees.scale(len(x) / len(flat), grad(summed)(w)), grad(meant)(w), 1e-12, "B / n")
