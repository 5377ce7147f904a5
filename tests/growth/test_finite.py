"""What is not finite is named at the door, by every function of growth that computes with it, unless told to go on."""

import math

import pytest
import torch
from torch.nn import functional as F

import growth
from fisher import LayerCollection
from growth.strategies import network
from linmaps import trees

NET = network(3, samples=20)
P, PAIR = NET.params, NET.pair
S = growth.statistics(NET.f, P, NET.data, PAIR)
NEW, DELTA = growth.optimal_neurons(S, 2), growth.optimal_delta(S)
ORDER = growth.shuffles(20, [1, 1], 10, generator=torch.Generator())
LAYERS = LayerCollection.from_function(NET.f, P, NET.x)


def spoiled(tree, value=math.nan):
    """One entry of the first leaf is no number."""
    flat, treedef = trees.flatten(tree)
    bad = flat[0].clone(memory_format=torch.contiguous_format)
    bad.view(-1)[0] = value
    return treedef.unflatten([bad, *flat[1:]])


LATER = [NET.data, (spoiled(NET.x), NET.target)]  # in the second batch
FUNCTIONS = {  # params, data, new, delta -> anything; options: check_finite
    "statistics": lambda p, d, n, e, **o: growth.statistics(NET.f, p, d, PAIR, layers=LAYERS, **o),
    "choose_sign": lambda p, d, n, e, **o: growth.choose_sign(NET.f, p, d, PAIR, n, layers=LAYERS, **o),
    "line_search": lambda p, d, n, e, **o: growth.line_search(NET.f, p, d, PAIR, n, e, grid=[1.0], **o),
    "normalize": lambda p, d, n, e: growth.normalize(n, e, p, PAIR),
    "step": lambda p, d, n, e, **o: growth.step(NET.f, p, d, PAIR, 1, **o),
    "fit_and_grow": lambda p, d, n, e, **o: growth.fit_and_grow(
        NET.f, p, d, PAIR, order=ORDER, target=5, k=1, scale=1.0, **o
    ),
}
USES = {
    "statistics": "params data",
    "choose_sign": "params data new",
    "line_search": "params data new delta",
    "normalize": "new delta",
    "step": "params data",
    "fit_and_grow": "params data",
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_finite_is_refused(name, value):
    given = {"params": P, "data": NET.data, "new": NEW, "delta": DELTA}
    FUNCTIONS[name](*given.values())
    for part in USES[name].split():
        spoil = {"data": lambda: (spoiled(NET.x, value), NET.target)}.get(
            part, lambda part=part: spoiled(given[part], value)
        )
        with pytest.raises(ValueError, match="finite"):
            FUNCTIONS[name](*(given | {part: spoil()}).values())


@pytest.mark.parametrize("name", ["statistics", "choose_sign", "line_search"])
def test_a_later_batch_is_named_and_check_finite_lets_it_pass(name):
    with pytest.raises(ValueError, match="batch 1"):
        FUNCTIONS[name](P, LATER, NEW, DELTA)
    FUNCTIONS[name](P, LATER, NEW, DELTA, check_finite=False)


def test_a_loss_that_is_none_is_not_the_least():
    f = lambda p, x: NET.f(p, x) / 0
    with pytest.raises(ValueError, match="loss without growth"):
        growth.line_search(f, P, NET.data, PAIR, NEW, None)
    found = growth.line_search(f, P, NET.data, PAIR, NEW, None, check_finite=False)
    assert found.scale[1] == 0


def test_a_diverged_phase_is_named():
    with pytest.raises(ValueError, match=r"phase 0.*smaller lr"):
        growth.fit_and_grow(
            NET.f,
            P,
            (NET.x, torch.randn(20, 4).double()),
            PAIR,
            order=growth.shuffles(20, [60, 1], 10, generator=torch.Generator()),
            target=5,
            k=1,
            loss="squared_error",
            optimizer=growth.sgd(1e30),
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda t: growth.by_gain(t),
        lambda t: growth.weakest_units(t, keep=1),
        lambda t: growth.senn_trigger(t[0], torch.ones(())),
        lambda t: growth.north_trigger(t[0], torch.ones(()), 4, most=2),
    ],
)
def test_decisions_are_not_made_of_no_numbers(call):
    with pytest.raises(ValueError, match="finite"):
        call(torch.tensor([math.nan, 1.0]))


@pytest.mark.parametrize("given", [False, True])
def test_a_random_function_is_refused_with_its_cause(given):
    drop = lambda p, x: F.linear(F.dropout(torch.relu(F.linear(x, p["a"])), 0.5, True), p["b"])
    params, x = {"a": torch.randn(4, 3), "b": torch.randn(2, 4)}, torch.randn(9, 3)
    layers = (
        LayerCollection.from_function(lambda p, x: torch.relu(x @ p["a"].T) @ p["b"].T, params, x) if given else None
    )
    options = {"layers": layers} if given else {}
    with pytest.raises(ValueError, match=r"random.*eval\(\)"):
        growth.statistics(drop, params, (x, torch.zeros(9, 2)), growth.Pair("a", "b"), "squared_error", **options)
