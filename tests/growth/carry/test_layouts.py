"""LayerCollections and statistics go along: as those of the resized network, silent units having been zero."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fisher
import growth
from growth.strategies import network
from tests.growth.oracle import close
from tests.growth.rows_surgery import SMOOTH, collect, convolutions, dense, flattened, prunable


@pytest.mark.parametrize("kind", SMOOTH)
def test_layers_are_those_of_the_grown_network(kind):
    net, more = SMOOTH[kind](), prunable(kind)
    larger, smaller = growth.widen(net.params, net.pair, 2), growth.prune(more.params, net.pair, [0])
    of = lambda net: fisher.LayerCollection.from_function(net.f, net.params, net.x)
    for grown, carried in (
        (larger, growth.grow_like(of(net), net.params, larger)),
        (smaller, growth.prune_like(of(more), more.params, net.pair, [0])),
    ):
        fresh = fisher.LayerCollection.from_function(net.f, grown, net.x)
        assert carried == fresh
        assert hash(carried) == hash(fresh)
        assert [(u.shape, u.shared, u.form) for u in carried.uses] == [(u.shape, u.shared, u.form) for u in fresh.uses]
        F = fisher.fim(net.f, grown, net.x, fisher.PMatKFAC, layers=carried)
        old = growth.grow_like(F, grown, grown)
        assert fisher.ema(old, F, 0.5).trace() > 0


def test_grouped_and_packed_layers():
    conv = lambda p, x: torch.nn.functional.conv1d(torch.nn.functional.linear(x, p["w"]), p["g"], groups=2).flatten(1)
    params = {"w": torch.ones(4, 3, dtype=torch.float64), "g": torch.rand(4, 1, 1, dtype=torch.float64)}
    x = torch.rand(5, 2, 3, dtype=torch.float64)
    layers = fisher.LayerCollection.from_function(conv, params, x)
    larger = {"w": torch.ones(5, 3), "g": torch.ones(4, 1, 1)}
    assert growth.grow_like(layers, params, larger)["w"].shape == (5, 3)
    with pytest.raises(ValueError, match=r"g: used in groups.* anew"):
        growth.grow_like(layers, params, {"w": torch.ones(4, 3), "g": torch.ones(6, 1, 1)})


CASES = {
    "dense": (dense, {}),
    "no bias": (lambda: dense("tanh", (False, False)), {}),
    "convolutions": (convolutions, {}),
    "convolutions, centre": (lambda: convolutions(torch.tanh, False), {"taps": "centre"}),
    "flattened": (flattened, {}),
}
FIELDS = ("S", "M", "S_prev", "M_prev", "P", "E")


@pytest.mark.parametrize("kind", CASES)
def test_statistics_of_silent_units(kind):
    """Units that are zero in and out at sigma(0) = 0 have the statistics that are carried, but for what they see."""
    net, options = CASES[kind][0](), CASES[kind][1]
    wide = growth.widen(net.params, net.pair, 2, "zero_out", torch.Generator().manual_seed(0))
    carried = growth.grow_like({"s": collect(net, net.params, **options)}, net.params, wide)["s"]
    fresh = collect(net, wide, **options)
    units = growth.reading.layers.layers_of(net.params, net.pair)
    p, c = units[0].weight.shape[0], units[1].taps
    for name in FIELDS:
        got, want = getattr(carried, name), getattr(fresh, name).clone()
        for axis in {"S": (0, 1), "M": (0,), "P": (-1,)}.get(name, ()):
            want.narrow(axis, p * c, 2 * c).zero_()  # activations of the new units, which had been silent
        close(got, want, 1e-9)
    assert carried.count == fresh.count
    both = carried + fresh
    assert both.count == 2 * fresh.count
    assert growth.optimal_delta(carried).weight.shape[1] == fresh.S.shape[0] - carried.bias_after


@pytest.mark.parametrize("kind", CASES)
def test_statistics_without_pruned_units(kind):
    """Pruning a unit that leads nowhere changes nothing but its own rows and columns."""
    net, options = CASES[kind][0](), CASES[kind][1]
    wide = growth.widen(net.params, net.pair, 2, "zero_out", torch.Generator().manual_seed(0))
    p = growth.reading.layers.layers_of(net.params, net.pair)[0].weight.shape[0]
    order = torch.tensor([p, *range(p), p + 1])
    turned = growth.surgery.resize.gathered(wide, net.pair, order)
    carried = growth.prune_like(collect(net, turned, **options), turned, net.pair, [0, -1])
    fresh = collect(net, net.params, **options)
    for name in (*FIELDS, "count"):
        close(getattr(carried, name), getattr(fresh, name), 1e-9)


@given(st.integers(0, 3), st.integers(0, 3))
def test_statistics_of_the_neighbours(k, seed):
    net = network(seed, activation="tanh", samples=9)
    near = [growth.Pair("first", "hidden"), growth.Pair("output", "head")]
    new = growth.widen(net.params, net.pair, k, "zero_out", torch.Generator().manual_seed(seed))
    before, after = growth.statistics(net.f, net.params, net.data, near)
    carried = growth.grow_like([before, after], net.params, new)
    fresh = growth.statistics(net.f, new, net.data, near)
    for name in FIELDS:
        want = getattr(fresh[1], name).clone()
        for axis in {"S_prev": (0, 1), "M_prev": (0,), "P": (0,)}.get(name, ()):
            want.narrow(axis, 4, k).zero_()
        close(getattr(carried[1], name), want, 1e-9)
        want = getattr(fresh[0], name)  # units that lead nowhere have no gradient
        close(getattr(carried[0], name), want, 1e-9)
    back = growth.prune_like(fresh, new, net.pair, range(4, 4 + k))
    for name in FIELDS:
        close(getattr(back[0], name), getattr(before, name), 1e-9)
        close(getattr(back[1], name), getattr(after, name), 1e-9)


def test_statistics_of_other_params_raise():
    net, other = dense(), dense(p=3)
    stats, grown = collect(net, net.params), growth.widen(other.params, other.pair, 1)
    with pytest.raises(ValueError, match=r"Statistics of Pair\('hidden', 'output'\) have S \(5, 5\), expected size 4"):
        growth.grow_like(stats, other.params, grown)
    with pytest.raises(ValueError, match="Statistics without a pair"):
        growth.grow_like(dataclasses.replace(stats, pair=None), net.params, growth.widen(net.params, net.pair, 1))
