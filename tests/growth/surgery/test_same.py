"""f=, x=: surgery that holds the function against itself, in one law for all that take them, and what stands in the way."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

import growth
from growth.strategies import network
from linmaps import trees
from tests.growth.rows_surgery import SMOOTH, normal
from tests.growth.surgery.attentions import LAYERS
from tests.growth.surgery.test_stream import TOKENS as WORDS
from tests.growth.surgery.test_widen import CHANGED, HEADS, TOKENS, between

PAIR = growth.Pair("v", "o")
X = normal(1, 3, 5, 6)


def generator():
    return torch.Generator().manual_seed(0)


def chain(act=torch.relu, behind=None):
    """Layers in a dict one after the other, all that are there; behind: what stands behind the last."""

    def f(p, x):
        for n in [n for n in p if n != "out"]:
            x = act(F.linear(x, p[n]["weight"], p[n].get("bias")))
        return F.linear(x, p["out"]["weight"])

    return f


CHAIN = {"a": {"weight": normal(1, 3, 8), "bias": normal(2, 3)}, "out": {"weight": normal(3, 2, 3)}}

TAKERS = {  # name: (call with what it is given, f that keeps, f that does not, inputs)
    "widen": (lambda **o: growth.widen(HEADS, PAIR, 2, **o), between(torch.tanh), CHANGED["softmax"], TOKENS),
    "prune": (lambda **o: growth.prune(HEADS, PAIR, [1, 4], **o), between(torch.tanh), CHANGED["layer norm"], TOKENS),
    "deepen": (lambda **o: growth.deepen(CHAIN, "a", "b", **o), chain(), chain(torch.tanh), TOKENS),
    "rescale": (
        lambda **o: growth.rescale(HEADS, PAIR, 2, preserve=True, **o), between(torch.relu), between(torch.tanh), TOKENS,
    ),
    "add_heads": (
        lambda **o: growth.add_heads((n := LAYERS["sdpa"]()).params, n.heads, 1, **o),
        lambda p, x: LAYERS["sdpa"]().f(p, x, d=3), lambda p, x: LAYERS["sdpa"]().f(p, x, d=3) * len(p["q"]["weight"]), X,
    ),
    "widen_stream": (
        lambda **o: growth.widen_stream(
            {"e": normal(1, 9, 4), "r": normal(2, 3, 4)}, {"embeddings": ["e"], "readers": ["r"]}, 2, generator(), **o
        ),
        lambda p, x: F.embedding(x, p["e"]) @ p["r"].mT, lambda p, x: F.embedding(x, p["e"]).mean(-1), WORDS,
    ),
}  # fmt: skip


def test_all_that_take_a_check_are_here():
    public = {n: getattr(growth, n) for n in growth.__all__ if inspect.isfunction(getattr(growth, n))}
    takers = {
        n for n, fn in public.items() if {"f", "x"} <= inspect.signature(fn).parameters.keys() and n != "apply_extended"
    }
    assert takers == set(TAKERS)
    assert {n for n, fn in public.items() if "check" in inspect.signature(fn).parameters} <= takers


@pytest.mark.parametrize("name", TAKERS)
def test_it_is_kept_or_refused(name):
    call, keeps, changes, x = TAKERS[name]
    with_check, without = call(f=keeps, x=x), call()
    for a, b in zip(trees.leaves(with_check), trees.leaves(without), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"f changes by up to .* expected"):
        call(f=changes, x=x)


@pytest.mark.parametrize("name", TAKERS)
def test_one_of_them_alone_is_refused(name):
    call, keeps, _, x = TAKERS[name]
    with pytest.raises(ValueError, match="f, x: got f alone, expected both"):
        call(f=keeps)
    with pytest.raises(ValueError, match="f, x: got x alone, expected both"):
        call(x=x)
    with pytest.raises(TypeError, match=r"f: got Linear, expected a function f\(params, x\)"):
        call(f=torch.nn.Linear(1, 1), x=x)
    if "check" in inspect.signature(getattr(growth, name)).parameters:
        call(check=(keeps, x))
        with pytest.raises(ValueError, match="check: got one beside f and x"):
            call(f=keeps, x=x, check=(keeps, x))


@pytest.mark.parametrize("kind", SMOOTH)
def test_pruned_networks_of_all_kinds(kind):
    net = SMOOTH[kind]()
    wide = growth.widen(net.params, net.pair, 2, f=net.f, x=net.x)
    pruned = growth.prune(wide, net.pair, [0, -1], f=net.f, x=net.x)
    for a, b in zip(trees.leaves(pruned), trees.leaves(growth.prune(wide, net.pair, [0, -1])), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["dense", "flat", "flattened", "norm"])
def test_what_others_take_over_is_no_difference(kind):
    net = SMOOTH[kind]()
    y = net.f(net.params, net.x)
    stats = growth.statistics(net.f, net.params, (net.x, torch.zeros_like(y)), net.pair, "squared_error")
    pruned = growth.prune(net.params, net.pair, [0], stats=stats, ridge=1e-3, f=net.f, x=net.x)
    bare = growth.prune(net.params, net.pair, [0])
    assert not all(torch.equal(a, b) for a, b in zip(trees.leaves(pruned), trees.leaves(bare)))


@pytest.mark.parametrize("kind", ["sdpa", "no bias", "written"])
def test_pruned_heads(kind):
    net = LAYERS[kind](H=4)
    pruned = growth.prune(net.params, net.heads, [2], f=lambda p, x: net.f(p, x, d=net.d), x=X)
    assert pruned["q"]["weight"].shape[0] == 3 * net.d
    with pytest.raises(ValueError, match=r"Heads\(.*expected"):
        growth.prune(net.params, net.heads, [2], f=net.f, x=X)  # 4 heads still


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("change", ["widen", "prune"])
def test_a_reshape_of_the_hidden_axis_is_named(change, n):
    """Whether f takes the new sizes (an even number of units for two heads) or not."""
    run = growth.widen if change == "widen" else growth.prune
    units = n if change == "widen" else list(range(n))
    with pytest.raises(
        ValueError, match=r"reshape of the hidden axis stands in the way .*give growth\.Heads\(q, k, v, out"
    ):
        run(HEADS, PAIR, units, f=CHANGED["heads"], x=TOKENS)


def test_a_gated_pair_that_is_mixed_is_refused_in_words():
    net = network(3, samples=6)
    params = {"g": {"weight": normal(1, 4, 3)}, "u": {"weight": normal(2, 4, 3)}, "d": {"weight": normal(3, 2, 4)}}
    mixed = lambda p, x: F.linear(
        (F.silu(F.linear(x, p["g"]["weight"])) * F.linear(x, p["u"]["weight"])).softmax(-1), p["d"]["weight"]
    )
    pair = growth.Gated("g", "u", "d")
    with pytest.raises(ValueError, match=r"f changes by up to .* what stands between"):
        growth.widen(params, pair, 2, f=mixed, x=normal(4, 5, 3))
    assert net


def test_units_picked_by_score_under_vmap():
    members = trees.stack([HEADS, trees.map(lambda t: 2 * t, HEADS)])

    def one(p, f=between(torch.tanh)):  # noqa: B008
        weak = growth.weakest_units(growth.unit_scores(p, PAIR), keep=5)
        return growth.prune(p, PAIR, weak, f=f, x=TOKENS)

    for a, b in zip(
        trees.leaves(vmap(one)(members)), trees.leaves(trees.stack([one(p) for p in trees.unstack(members)]))
    ):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="expected what it is when these units lead nowhere"):
        vmap(lambda p: one(p, CHANGED["softmax"]))(members)


def test_a_deeper_layer_that_f_does_not_read_is_named():
    fixed = lambda p, x: F.linear(torch.relu(F.linear(x, p["a"]["weight"], p["a"]["bias"])), p["out"]["weight"])
    with pytest.raises(ValueError, match=r"deepen\('a', 'b'\): f gives the same whatever stands in b, expected"):
        growth.deepen(CHAIN, "a", "b", f=fixed, x=TOKENS)
    with pytest.raises(
        ValueError, match=r"deepen\('a', 'b'\): f changes by up to .* of a smooth activation leave it out"
    ):
        growth.deepen(CHAIN, "a", "b", f=chain(torch.tanh), x=TOKENS)
    no_bias = growth.deepen(CHAIN, "a", "b", bias=False, f=chain(), x=TOKENS)
    assert list(no_bias["b"]) == ["weight"]
    watched = lambda p, x: torch.where(
        chain()(p, x).isnan().any(), 1 / 0 if chain()(p, x).isnan().any() else 0, chain()(p, x)
    )
    growth.deepen(CHAIN, "a", "b", f=watched, x=TOKENS)
