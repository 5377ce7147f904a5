"""Gated pairs changed: the function kept, growth undone, ensembles, states, presets, records."""

import pickle

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

import growth
from linmaps import trees
from tests.growth.gated.slopes import along, both, sizes
from tests.growth.oracle import close
from tests.growth.rows_gated import collect, effects, gated
from tests.growth.rows_surgery import normal


@pytest.mark.parametrize("method", ["split", "zero_out", "pair"])
@both
def test_widening_keeps_the_function(method, bias):
    net = gated("swiglu", bias)
    wide = growth.widen(net.params, net.pair, 6, method, torch.Generator().manual_seed(0), check=(net.f, net.x))
    assert wide["gate"]["weight"].shape == (10, 3)
    assert wide["down"]["weight"].shape == (3, 10)
    close(net.f(wide, net.x), net.f(net.params, net.x), 1e-10)
    assert (wide["gate"]["weight"][4:] != 0).any(1).all()


@both
def test_pruning_undoes_growth(bias):
    net = gated("geglu", bias)
    new = growth.optimal_neurons(collect(net), 2)
    grown = growth.grow(net.params, net.pair, new, scale=0.3)
    trees.map(lambda a, b: close(a, b, 0.0), growth.prune(grown, net.pair, [4, 5]), net.params)
    small, removed = growth.cut(grown, net.pair, [1, 4])
    back = growth.restore(small, net.pair, removed)
    trees.map(lambda a, b: close(a, b, 0.0), back, grown)
    trees.map(lambda a, b: close(a, b, 0.0), pickle.loads(pickle.dumps(new)), new)


@both
def test_applied_as_previewed_and_nothing_at_amplitude_zero(bias):
    net = gated("glu", bias)
    stats = collect(net)
    new, delta = growth.optimal_neurons(stats, 3), growth.optimal_delta(stats)
    grown = growth.grow(net.params, net.pair, new, delta=delta, scale=(0.2, 0.7))
    shown = growth.apply_extended(net.f, net.params, net.pair, new, delta, (0.2, 0.7), net.x)
    close(net.f(grown, net.x), shown, 0.0)
    rest = growth.grow(net.params, net.pair, new, scale=0.0)
    close(net.f(rest, net.x), net.f(net.params, net.x), 1e-14)
    torch.testing.assert_close(rest["gate"]["weight"][4:], new.gate)


def test_a_search_never_harms_and_a_step_helps():
    net = gated("swiglu")
    stats = collect(net)
    new, delta = growth.optimal_neurons(stats, 2), growth.optimal_delta(stats)
    search = growth.line_search(net.f, net.params, net.data, net.pair, new, delta)
    assert search.loss < search.start


def test_a_recipe_grows_gated_pairs():
    net = gated("swiglu", dtype=torch.float32)
    order = growth.shuffles(14, [1, 1, 1], 7, generator=torch.Generator().manual_seed(0))
    fit = growth.fit_and_grow(net.f, net.params, net.data, net.pair, order=order, target=8, k=2)
    assert [step.width for step in fit.steps] == [4, 6, 8]
    assert all(step.grown <= step.before for step in fit.steps[1:])


def test_ensembles_are_loops():
    nets = [gated("swiglu", seed=s) for s in (0, 1, 2)]
    f, data, pair = nets[0].f, nets[0].data, nets[0].pair
    rows = normal(1, 3, 4)

    def step(params):
        stats = growth.statistics(f, params, data, pair, gates=rows)
        new = growth.optimal_neurons(stats, 2)
        return growth.grow(params, pair, new, delta=growth.optimal_delta(stats), scale=0.1), effects(new)

    params = [net.params for net in nets]
    stacked = vmap(step)(trees.stack(params))
    for one, member in zip(params, trees.unstack(stacked)):
        trees.map(lambda a, b: close(a, b, 1e-8), member, step(one))


def test_no_argument_is_changed():
    net = gated("swiglu")
    before = trees.map(torch.clone, (net.params, net.x))
    new = growth.gated_neurons(net.f, net.params, net.data, net.pair, 2, generator=torch.Generator().manual_seed(0))
    growth.widen(growth.grow(net.params, net.pair, new), net.pair, 1)
    trees.map(lambda a, b: close(a, b, 0.0), (net.params, net.x), before)


def test_single_precision():
    net = gated("swiglu", dtype=torch.float32)
    new = growth.optimal_neurons(collect(net), 2)
    assert new.fan_in.dtype == new.gate.dtype == torch.float32
    wide = gated("swiglu")
    close(new.eigenvalues.double(), growth.optimal_neurons(collect(wide), 2).eigenvalues, 1e-3)


@both
def test_without_a_unit(bias):
    net = gated("swiglu", bias, p=0)
    new = growth.optimal_neurons(collect(net, gates=normal(1, 4, 3 + bias[0])), 2, "gradient")
    assert new.gain > 0
    assert abs(along(net, new) + float(new.gain)) < 1e-4 * float(new.gain)
    assert growth.optimal_neurons(collect(net), 2, "gradient").gain > 0


def test_states_go_along():
    net = gated("swiglu")
    rows = normal(1, 2, 4)
    stats = collect(net, gates=rows)
    new = growth.optimal_neurons(stats, 2)
    grown = growth.grow(net.params, net.pair, new)
    state = growth.grow_like({"m": net.params, "stats": stats}, net.params, grown)
    assert sizes(state["m"]) == sizes(grown)
    assert state["stats"].gates.P.shape == (2, 4, 7)
    assert state["stats"].S.shape == (7, 7)
    back = growth.prune_like(state, grown, net.pair, [4, 5])
    trees.map(lambda a, b: close(a, b, 0.0), back, {"m": net.params, "stats": stats})
    live = trees.map(lambda t: t.clone().requires_grad_(), net.params)
    optimizer = torch.optim.Adam(trees.leaves(live))
    net.f(live, net.x).sum().backward()
    optimizer.step()
    assert sizes(growth.swap_parameters(optimizer, live, grown)) == sizes(grown)


@pytest.mark.parametrize("preset", [growth.zero_out, growth.senn, growth.zero_in, growth.random])
def test_presets_keep_the_function(preset):
    net = gated("swiglu")
    new = preset(collect(net), 3, generator=torch.Generator().manual_seed(0))
    grown = growth.grow(net.params, net.pair, new)
    close(net.f(grown, net.x), net.f(net.params, net.x), 1e-12)
    assert new.gate.shape == (3, 3)
    assert (new.gate != 0).any(1).all()
    assert not new.gain.any()


def test_slopes_of_random_units():
    net = gated("geglu")
    new = growth.random(collect(net), 3, generator=torch.Generator().manual_seed(0), std_out=0.5)
    assert (new.gains > 0).all()
    assert abs(along(net, new) + float(new.gain)) < 1e-4 * float(new.gain)
    again = growth.choose_sign(net.f, net.params, net.data, net.pair, new)
    close(again.gains, new.gains, 1e-10)


def test_units_are_chosen_scaled_and_joined():
    net = gated("swiglu")
    new = growth.optimal_neurons(collect(net), 3)
    assert growth.truncate(new, 2).gate.shape == (2, 3)
    joined = growth.merge_neurons(new, growth.truncate(new, 1))
    torch.testing.assert_close(joined.gate, torch.cat([new.gate, new.gate[:1]]))
    twice = growth.scale_neurons(new, fan_in=2.0, fan_out=3.0)
    assert abs(along(net, twice) + float(twice.gain)) < 1e-4 * float(twice.gain)
    quiet = growth.paired(growth.merge_neurons(new, growth.truncate(new, 1)))
    grown = growth.grow(net.params, net.pair, quiet)
    close(net.f(grown, net.x), net.f(net.params, net.x), 1e-12)


def test_records_are_saved_and_loaded_with_safe_defaults(tmp_path):
    net = gated("swiglu")
    stats = collect(net, gates=normal(1, 2, 4))
    torch.save([stats, growth.optimal_neurons(stats, 1)], tmp_path / "records")
    loaded, new = torch.load(tmp_path / "records")
    trees.map(lambda a, b: close(a, b, 0.0), loaded, stats)
    assert loaded.pair == net.pair
    assert repr(new) == repr(growth.optimal_neurons(stats, 1))


def test_half_precision_networks():
    net = gated("swiglu", dtype=torch.bfloat16)
    new = growth.optimal_neurons(collect(net), 2)
    assert new.fan_in.dtype == torch.float32
    assert growth.grow(net.params, net.pair, new)["gate"]["weight"].dtype == torch.bfloat16


def test_sizes_are_set_and_layers_rescaled():
    net = gated("swiglu")
    new, _ = growth.normalize(growth.optimal_neurons(collect(net), 2), None, net.params, net.pair, kind="units")
    assert abs(along(net, new) + float(new.gain)) < 1e-4 * float(new.gain)
    same = growth.rescale(net.params, net.pair, 4, preserve=True, check=(net.f, net.x))
    close(net.f(same, net.x), net.f(net.params, net.x), 1e-12)


def test_pairs_of_both_kinds_in_one_pass():
    net = gated("swiglu")
    f = lambda p, x: net.f(p, x) + F.linear(torch.tanh(F.linear(x, p["a"])), p["b"])
    params = {**net.params, "a": normal(1, 2, 3), "b": normal(2, 4, 2)}
    pairs = [growth.Pair("a", "b"), net.pair]
    plain, products = growth.statistics(f, params, net.data, pairs, gates=[None, normal(3, 5, 4)])
    assert plain.gates is None
    assert products.gates.rows.shape == (5, 3)
    new = [growth.optimal_neurons(s, 1, "gradient") for s in (plain, products)]
    grown = growth.grow(params, pairs, new, scale=0.01)
    assert F.cross_entropy(f(grown, net.x), net.target) < F.cross_entropy(f(params, net.x), net.target)


def test_scores_say_what_is_lost():
    net = gated("swiglu")
    scores = growth.unit_scores(net.params, net.pair, stats=collect(net))
    weak = growth.weakest_units(scores, keep=3)
    assert growth.prune(net.params, net.pair, weak, stats=collect(net))["gate"]["weight"].shape == (3, 3)
    silent = trees.replace(net.params, ("gate", "weight"), torch.zeros(4, 3).double())
    silent = trees.replace(silent, ("gate", "bias"), torch.zeros(4).double())
    assert not growth.unit_scores(silent, net.pair).any()
