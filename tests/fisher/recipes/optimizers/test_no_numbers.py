"""No numbers are seen: a batch or gradient with NaN or infinity makes updates with NaN, no layer that quietly stands still."""

import pytest
import torch
from torch.func import grad

import fisher
import growth
from fisher.recipes import kfac, partitioned, soap
from fisher.recipes.optimizers.protocol import asked_for
from linmaps import trees

R = torch.Generator().manual_seed(0)
X, T = torch.randn(12, 3, generator=R), torch.arange(12) % 2
P = {"w": torch.randn(3, 4, generator=R), "v": torch.randn(4, 2, generator=R)}


def f(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"]


def gradient(x):
    return grad(lambda p: torch.nn.functional.cross_entropy(f(p, x), T))(P)


ONLY = fisher.LayerCollection.from_function(f, P, X).select(["w"])
EXACT = {"estimator": "exact"}
RULES = {
    "kfac": kfac(f, **EXACT),
    "kfac, no momentum": kfac(f, **EXACT, momentum=0.0),
    "kfac, corrected": kfac(f, **EXACT, correct=True),
    "kfac, exact damping": kfac(f, **EXACT, kind="default"),
    "kfac, clip": kfac(f, **EXACT, clip=0.01),
    "kfac, a rate": kfac(f, **EXACT, rate=0.1),
    "kfac, a rate and clip": kfac(f, **EXACT, rate=0.1, clip=0.01),
    "kfac, norm constraint": kfac(f, **EXACT, rate=0.1, norm_constraint=0.01),
    "soap": soap(f, **EXACT),
    "soap, bases at each step": soap(f, **EXACT, bases_every=1),
    "partitioned": partitioned({"w": (ONLY, soap(f, layers=ONLY, **EXACT))}, rest=growth.adam(0.01)),
    "adam": growth.adam(0.01),
    "sgd": growth.sgd(0.1),
}


def spoiled(kind):
    """(gradient, batch) with one entry that is no number, or squares that are none."""
    x, g = X.clone(), gradient(X)
    if kind == "squares":
        return trees.scale(1e25, g), (X, T)
    if kind == "batch":
        x[0, 0] = torch.nan
        return gradient(x), (x, T)
    g["w"][0, 0] = {"nan": torch.nan, "inf": torch.inf, "square": 1e30}[kind]
    return g, (X, T)


def step(rule, state, g, batch):
    return rule.update(g, state, P, **asked_for(rule.update, batch=batch))


@pytest.mark.parametrize("kind", ["batch", "nan", "inf"])
@pytest.mark.parametrize("name", RULES)
def test_updates_are_no_numbers_either(name, kind):
    rule = RULES[name]
    state = rule.init(P, **asked_for(rule.init, batch=(X, T)))
    _, state = step(rule, state, gradient(X), (X, T))
    updates, state = step(rule, state, *spoiled(kind))
    assert not updates["w"].isfinite().all()
    again, _ = step(rule, state, gradient(X), (X, T))
    assert not (again["w"] == 0).all(), "it stands still"


@pytest.mark.parametrize("kind", ["square", "squares"])
@pytest.mark.parametrize("name", [name for name in RULES if "soap" in name or "constraint" in name])
def test_neither_where_squares_overflow(name, kind):
    rule = RULES[name]
    _, state = step(rule, rule.init(P, (X, T)), gradient(X), (X, T))
    updates, _ = step(rule, state, *spoiled(kind))
    assert updates["w"].abs().max() < 1 or not updates["w"].isfinite().all()
    assert not (updates["w"] == 0).all(), "it stands still"
