"""A state is that of the optimizer that takes it: of its kind, of its layers, of its parts; its loss is a loss."""

import io

import pytest
import torch
from torch.func import grad

import fisher
import growth
from fisher.recipes import kfac, partitioned, soap
from linmaps import trees

D = torch.float64
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=D)
T = torch.arange(12) % 2
P = {"a": {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=D)}, "v": torch.ones(4, 2, dtype=D)}


def f(p, x):
    return torch.tanh(x @ p["a"]["w"]) @ p["v"]


LAYERS = fisher.LayerCollection.from_function(f, P, X)
FIRST, LAST = (LAYERS.select([name]) for name in LAYERS.names())
G = grad(lambda p: torch.nn.functional.cross_entropy(f(p, X), T))(P)
RULES = {
    "kfac": lambda layers=None: kfac(f, layers=layers, estimator="exact", adapt=False),
    "soap": lambda layers=None: soap(f, layers=layers, estimator="exact"),
}
KINDS = [(one, other) for one in RULES for other in RULES if one != other]


def step(rule, state):
    return rule.update(G, state, P, batch=(X, T))


@pytest.mark.parametrize(("one", "other"), KINDS)
def test_of_another_kind(one, other):
    state = RULES[one]().init(P, (X, T))
    for given in (state, step(RULES[one](), state)[1], through_a_file(state)):
        with pytest.raises(ValueError, match=rf"state: is one of {one}, expected one of {other}.*init"):
            step(RULES[other](), given)
        step(RULES[one](), given)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("kind", RULES)
def test_of_other_layers(kind):
    make = RULES[kind]
    for ours in (None, LAYERS, FIRST, LAST):
        state = make(ours).init(P, (X, T))
        updates = step(make(ours), state)[0]
        assert bool((updates["v"] == 0).all()) == (ours is FIRST)
        for theirs in (None, LAYERS, FIRST, LAST):
            if {id(ours), id(theirs)} <= {id(None), id(LAYERS)} or ours is theirs:
                step(make(theirs), state)
                continue
            with pytest.raises(ValueError, match=r"state: is of the layers .*expected.*init"):
                step(make(theirs), state)


@pytest.mark.parametrize("kind", RULES)
def test_grown_layers_are_the_same(kind):
    rule = RULES[kind](LAYERS)
    state = rule.init(P, (X, T))
    wide = {"a": {"w": torch.zeros(3, 6, dtype=D)}, "v": torch.zeros(6, 2, dtype=D)}
    grown = growth.grow_like(state, P, wide)
    g = grad(lambda p: torch.nn.functional.cross_entropy(f(p, X), T))(wide)
    updates, _ = rule.update(g, grown, wide, batch=(X, T))
    assert updates["v"].shape == (6, 2)


def test_of_other_parts():
    plain = fisher.recipes.Optimizer(lambda p: (), lambda g, state, p: (trees.scale(-0.1, g), state))
    rule = partitioned({"kfac": (FIRST, RULES["kfac"](FIRST))}, rest=plain)
    swapped = partitioned({"kfac": (LAST, RULES["kfac"](LAST))}, rest=plain)
    renamed = partitioned({"own": (FIRST, RULES["kfac"](FIRST))}, rest=plain)
    state = rule.init(P, (X, T))
    step(rule, state)
    for other in (swapped, renamed):
        with pytest.raises(ValueError, match="expected"):
            step(other, state)
    with pytest.raises(ValueError, match=r"state: got \['kfac'\], expected those of the parts \['kfac', 'rest'\]"):
        step(rule, {"kfac": state["kfac"]})
    with pytest.raises(ValueError, match="state: got KFACState, expected those of the parts"):
        step(rule, state["kfac"])


@pytest.mark.parametrize("every", [1, 5])
def test_a_result_that_is_no_loss_is_refused_at_the_first_step(every):
    for loss, shape in ((lambda p, b: f(p, b[0]), r"\(12, 2\)"), (lambda p, b: f(p, b[0])[:5, 0], r"\(5,\)")):
        rule = kfac(f, estimator="exact", loss=loss, adapt_every=every)
        with pytest.raises(
            ValueError, match=rf"loss\(params, batch\): got a result of shape {shape}, expected a scalar, or \[12\]"
        ):
            step(rule, rule.init(P, X))
    for reduction in ("none", "mean"):
        loss = lambda p, b: torch.nn.functional.cross_entropy(f(p, b[0]), b[1], reduction=reduction)  # noqa: B023
        rule = kfac(f, estimator="exact", loss=loss, adapt_every=every)
        step(rule, rule.init(P, X))


@pytest.mark.parametrize("name", ["rate", "damping", "momentum", "weight_decay"])
def test_schedules_are_functions_of_the_step(name):
    for wrong in (lambda: 0.1, lambda step, params: 0.1):
        with pytest.raises(TypeError, match=rf"{name}: got a function of other arguments.*lambda step"):
            kfac(f, **{name: wrong})
    kfac(f, **{name: lambda step, scale=0.1: scale})
    kfac(f, **{name: lambda *steps: 0.1})
