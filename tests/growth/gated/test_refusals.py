"""What is no gated pair, and what has no meaning for one."""

import pickle

import pytest
import torch
from torch.nn import functional as F

import growth
from tests.growth.rows_gated import collect, gated
from tests.growth.rows_surgery import normal


def refused(change, match):
    net = gated("swiglu")
    linear = lambda p, name, x: F.linear(x, p[name]["weight"], p[name].get("bias"))
    inputs = lambda p, x: torch.tanh(linear(p, "first", x))
    outputs = lambda p, h: linear(p, "head", torch.tanh(linear(p, "down", h)))
    with pytest.raises(ValueError, match=match):
        growth.statistics(lambda p, x: change(p, inputs(p, x), linear, outputs), net.params, net.data, net.pair)


def test_something_else_between_is_refused():
    def normed(p, z, linear, outputs):
        return outputs(
            p, F.layer_norm(F.silu(linear(p, "gate", z)) * linear(p, "up", z), (p["up"]["weight"].shape[0],))
        )

    refused(normed, "not .*product")


def test_hidden_units_used_elsewhere_are_refused():
    def leaked(p, z, linear, outputs):
        h = F.silu(linear(p, "gate", z)) * linear(p, "up", z)
        return outputs(p, h) + h.sum(-1, keepdim=True)

    refused(leaked, "not the only")


def test_layers_of_other_inputs_are_refused():
    def crossed(p, z, linear, outputs):
        return outputs(p, F.silu(linear(p, "gate", z.flip(-1))) * linear(p, "up", z))

    refused(crossed, "inputs of")


def test_a_plain_network_is_no_gated_pair():
    refused(lambda p, z, linear, outputs: outputs(p, F.silu(linear(p, "gate", z)) + linear(p, "up", z)), "product")


def test_what_has_no_meaning_is_refused_by_name():
    net = gated("swiglu")
    stats = collect(net)
    new = growth.optimal_neurons(stats, 1)
    with pytest.raises(ValueError, match=r"gradmax: .*zero_out"):
        growth.gradmax(stats, 1)
    with pytest.raises(ValueError, match="gradient_norms: "):
        growth.gradient_norms(stats, new)
    with pytest.raises(ValueError, match="noise_floor: "):
        growth.noise_floor(stats)
    with pytest.raises(ValueError, match=r"initialize: .*widen"):
        growth.initialize(net.params, net.pair, 1, generator=torch.Generator())
    with pytest.raises(ValueError, match="joint=True"):
        growth.optimal_neurons(stats, 1, joint=True)
    with pytest.raises(ValueError, match="no gate rows"):
        growth.grow(net.params, net.pair, growth.Neurons(**{**vars(new), "gate": None, "gate_bias": None}))
    with pytest.raises(ValueError, match="gate rows"):
        growth.grow(net.params, growth.Pair("up", "down"), growth.Neurons(**{**vars(new), "pair": None}))
    bare = gated("swiglu", (False, True, True))
    with pytest.raises(ValueError, match="new has a gate_bias"):
        growth.grow(bare.params, bare.pair, new)
    with pytest.raises(ValueError, match="other gate rows"):
        collect(net, gates=normal(1, 2, 4)) + collect(net, gates=normal(2, 2, 4))
    with pytest.raises(ValueError, match="steps: got -1"):
        growth.gated_neurons(net.f, net.params, net.data, net.pair, 1, steps=-1)
    with pytest.raises(ValueError, match=r"belong to a growth\.Gated"):
        growth.statistics(net.f, net.params, net.data, growth.Pair("up", "down"), gates=normal(1, 2, 4))
    with pytest.raises(ValueError, match="gates: got"):
        collect(net, gates=normal(1, 2, 7))
    with pytest.raises(ValueError, match="expected three layers"):
        growth.Gated("a", "a", "b")
    with pytest.raises(TypeError, match="Gated: gate"):
        growth.Gated(1, "a", "b")
    with pytest.raises(ValueError, match=r"gate\.weight"):
        growth.prune({**net.params, "gate": {"weight": torch.ones(5, 3)}}, net.pair, [0])


def test_a_gated_pair_is_a_key():
    pair = growth.Gated("a", ("b",), "c")
    assert {pair: 1}[growth.Gated("a", ("b",), "c")] == 1
    assert pair != growth.Pair("b", "c")
    assert str(pair) == "Gated('a', 'b', 'c')"
    assert pickle.loads(pickle.dumps(pair)) == pair
