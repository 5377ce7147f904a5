"""Pairs: what is found where in params, and what is said when it is not."""

import pytest
import torch
from torch.nn import functional as F

import growth
from fisher import LayerCollection
from growth.reading.layers import layer_at, layers_of
from growth.reading.locate import located
from growth.strategies import network
from linmaps import trees

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def test_layers_in_any_tree():
    w, b = torch.zeros(4, 3), torch.zeros(4)
    for params, path in [
        ({"hidden": {"weight": w, "bias": b}}, "hidden"),
        ({"hidden.weight": w, "hidden.bias": b}, "hidden"),
        ({"net": {"0.weight": w, "0.bias": b}}, "net.0"),
        ({"net": [{"weight": w, "bias": b}]}, ("net", 0)),
        ([{"weight": w, "bias": b}], "0"),
    ]:
        layer = layer_at(params, path)
        assert layer.weight is w
        assert layer.bias is b
    assert layer_at({"w1": w}, "w1").bias is None


def test_a_layer_is_named_by_its_weight_too():
    params = {
        "a.weight": torch.ones(4, 3),
        "a.bias": torch.ones(4),
        "b.weight": torch.ones(2, 4),
        "b.bias": torch.ones(2),
    }
    grown = growth.widen(params, growth.Pair("a.weight", "b.weight"), 1)
    assert {k: v.shape for k, v in grown.items()} == {
        k: v.shape for k, v in growth.widen(params, growth.Pair("a", "b"), 1).items()
    }
    assert len(grown["a.bias"]) == 5


def test_a_module_is_no_params():
    with pytest.raises(TypeError, match=r"got Linear, a module.*f, params = fisher.functional\(module\)"):
        growth.widen(torch.nn.Linear(2, 2), growth.Pair("a", "b"), 1)


def test_paths_reach_statistics_and_surgery():
    net = network(51)
    for flat in (False, True):
        other = network(51, flat=flat)
        for pair in (growth.Pair("hidden", "output"), growth.Pair(("hidden",), ("output",))):
            s = growth.statistics(other.f, other.params, other.data, pair)
            want = growth.statistics(net.f, net.params, net.data, net.pair)
            assert torch.equal(s.S, want.S)
            grown = growth.grow(other.params, pair, growth.optimal_neurons(s, 1))
            assert growth.reading.layers.layer_at(grown, pair.before).weight.shape == (5, 3)


def test_bare_leaves_without_bias():
    params = {"w1": torch.ones(4, 3), "w2": torch.ones(2, 4)}
    f = lambda p, x: torch.tanh(x @ p["w1"].T) @ p["w2"].T
    pair = growth.Pair("w1", "w2")
    stats = growth.statistics(f, params, (X, torch.zeros(6, 2)), pair, "squared_error")
    assert stats.S.shape == (4, 4)
    assert growth.grow(params, pair, growth.optimal_neurons(stats, 2))["w2"].shape == (2, 6)


def test_a_module():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2)
    ).eval()
    params = {k: v.detach() for k, v in model.named_parameters()}
    f = lambda p, x: torch.func.functional_call(model, p, (x,))
    stats = growth.statistics(f, params, (X, torch.zeros(6, dtype=torch.long)), growth.Pair("0", "3"))
    assert stats.slope_plus == 0.5
    assert stats.bias_before
    assert stats.bias_after


@pytest.mark.parametrize(
    ("params", "pair", "message"),
    [
        ({"a": {"weight": torch.ones(4, 3)}}, ("a", "b"), r"b: no such layer in params, expected a leaf b.weight"),
        (
            {"a": {"weight": torch.ones(4)}, "b": {"weight": torch.ones(2, 4)}},
            ("a", "b"),
            r"a.weight: got shape \(4,\)",
        ),
        ({"a": {"weight": torch.ones(5, 4, 3)}, "b": {"weight": torch.ones(2, 4)}}, ("a", "b"), r"torch\.func\.vmap"),
        (
            {"a": {"weight": torch.ones(4, 3), "bias": torch.ones(3)}},
            ("a", "b"),
            r"a.bias: got shape \(3,\), expected \(4,\)",
        ),
        (
            {"a": {"weight": torch.ones(4, 3)}, "b": {"weight": torch.ones(2, 5)}},
            ("a", "b"),
            "Pair whose layers do not match",
        ),
        (
            {"a": {"weight": torch.ones(4, 3, 1)}, "b": {"weight": torch.ones(4, 1, 3)}},
            ("a", "b"),
            "b.weight is a depthwise convolution: name it by depthwise=",
        ),
        (
            {"a.parametrizations.weight.original": torch.ones(4, 3), "b.weight": torch.ones(2, 4)},
            ("a", "b"),
            r"a: its weight is parametrized \(a.parametrizations.weight.original\).*remove_parametrizations",
        ),
        (
            {"a": {"weight": torch.ones(4, 3)}, "a.weight": torch.ones(4, 3), "b.weight": torch.ones(2, 4)},
            ("a", "b"),
            r"a: 2 leaves of params are a.weight, at the keys \[\('a', 'weight'\), \('a.weight',\)\]",
        ),
    ],
)
def test_structure_that_does_not_fit(params, pair, message):
    with pytest.raises(ValueError, match=message):
        layers_of(params, growth.Pair(*pair))


def test_bad_pairs():
    with pytest.raises(ValueError, match="expected two layers"):
        growth.Pair("a", ("a",))
    with pytest.raises(TypeError, match="before is a int"):
        growth.Pair(1, "a")
    with pytest.raises(TypeError, match="activation"):
        growth.Pair("a", "b", "relu")


def found(f, params, pair=None):
    layers = LayerCollection.from_function(f, params, X)
    return located(layers, params, pair or growth.Pair("a", "b"))


def square(bias=()):
    g = torch.Generator().manual_seed(1)
    return {
        k: {"weight": torch.randn(3, 3, generator=g)} | ({"bias": torch.ones(3)} if k in bias else {}) for k in "abc"
    }


@pytest.mark.parametrize(
    ("f", "bias", "message"),
    [
        (
            lambda p, x: torch.tanh(x @ p["a"]["weight"]) @ p["b"]["weight"].T,
            "",
            r"matmul of a.weight as \[in, out\].*give layout=\('in_out', 'out_in'\)",
        ),
        (
            lambda p, x: torch.tanh(x @ p["a"]["weight"].T) @ p["a"]["weight"].T @ p["b"]["weight"].T,
            "",
            "used by 2 calls",
        ),
        (lambda p, x: torch.tanh(x @ p["a"]["weight"].T), "", r"b.weight: used by 0 calls"),
        (
            lambda p, x: F.linear(F.linear(F.linear(x, p["a"]["weight"]), p["c"]["weight"]), p["b"]["weight"]),
            "",
            "comes from linear of c.weight",
        ),
        (
            lambda p, x: F.linear(h := F.linear(x, p["a"]["weight"]), p["b"]["weight"]) + h,
            "",
            "an elementwise function of the output of a.weight alone",
        ),
        (
            lambda p, x: F.linear(F.linear(x, p["a"]["weight"]) + 2 * p["a"]["bias"], p["b"]["weight"]),
            "a",
            "bias added to its output is no leaf, expected a.bias",
        ),
    ],
)
def test_uses_that_cannot_grow(f, bias, message):
    with pytest.raises(ValueError, match=message):
        found(f, square(bias))


def test_the_activation_between_is_read():
    f = lambda p, x: F.linear(torch.relu(F.linear(x, p["a"]["weight"]) + p["a"]["bias"]) * 0.5, p["b"]["weight"])
    activation = found(f, square("a")).activation
    z = torch.tensor([-1.0, 2.0])
    assert torch.equal(activation(z), torch.tensor([0.0, 1.0]))
    given = growth.Pair("a", "b", torch.sin)
    assert found(f, square("a"), given).activation is torch.sin
    assert trees.path_str(given.before) == "a"
