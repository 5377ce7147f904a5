"""grow and apply_extended: the enlarged tree, its function, neighbours, containers, derivatives."""

import dataclasses
from collections import OrderedDict

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

import growth
from growth.strategies import SHIFTED, network, networks
from linmaps import trees
from tests.growth.oracle import close, leaf


def step(net, k=2, **options):
    stats = growth.statistics(net.f, net.params, net.data, net.pair, net.loss)
    return growth.optimal_neurons(stats, k, **options), growth.optimal_delta(stats)


@given(networks(), st.integers(0, 3))
def test_zero_amplitude_is_the_same_function(net, k):
    new, delta = step(net, k)
    for scale in (0, 0.0, torch.zeros((), dtype=torch.float64), (0.0, torch.tensor(0.0, dtype=torch.float64))):
        grown = growth.grow(net.params, net.pair, new, delta=delta, scale=scale)
        close(net.f(grown, net.x), net.f(net.params, net.x), 1e-12)


@given(networks(), st.floats(0.0, 3.0), st.floats(0.01, 3.0))
def test_entries(net, s, t):
    new, delta = step(net)
    p = lambda tree, *path: leaf(net, tree, *path)
    both, units = (
        growth.grow(net.params, net.pair, new, delta=delta, scale=(s, t)),
        growth.grow(net.params, net.pair, new, scale=t),
    )
    old = p(net.params, "output", "weight").shape[1]
    assert torch.equal(p(units, "hidden", "weight")[:old], p(net.params, "hidden", "weight"))
    assert torch.equal(p(units, "output", "weight")[:, :old], p(net.params, "output", "weight"))
    close(p(both, "hidden", "weight")[old:], t**0.5 * new.fan_in, 1e-14)
    close(p(both, "output", "weight")[:, old:], t**0.5 * new.fan_out, 1e-14)
    close(p(both, "output", "weight")[:, :old], p(net.params, "output", "weight") - s * delta.weight, 1e-14)
    if net.bias[0]:
        assert torch.equal(p(units, "hidden", "bias")[:old], p(net.params, "hidden", "bias"))
        close(p(both, "hidden", "bias")[old:], t**0.5 * new.fan_in_bias, 1e-14)
    if net.bias[1]:
        constant = t**0.5 * new.fan_out.sum(1) * net.activation(torch.zeros((), dtype=torch.float64))
        close(p(both, "output", "bias"), p(net.params, "output", "bias") - s * delta.bias - constant, 1e-13)
    for name in ("first", "head"):
        assert p(both, name, "weight") is p(net.params, name, "weight")


@given(networks())
def test_preview_is_what_is_applied(net):
    new, delta = step(net)
    scale = (0.3, 0.7)
    preview = growth.apply_extended(net.f, net.params, net.pair, new, delta, scale, net.x)
    assert torch.equal(preview, net.f(growth.grow(net.params, net.pair, new, delta=delta, scale=scale), net.x))
    zeros = growth.apply_extended(net.f, net.params, net.pair, None, None, 1.0, net.x)
    assert torch.equal(zeros, net.f(net.params, net.x))


@pytest.mark.parametrize("name", SHIFTED)
def test_units_at_rest_add_nothing(name):
    """σ(0) is compensated: units with zero fan_in leave the function as it is, at any amplitude."""
    net = network(31, activation=name)
    new, _ = step(net)
    rest = dataclasses.replace(new, fan_in=0 * new.fan_in, fan_in_bias=0 * new.fan_in_bias)
    close(net.f(growth.grow(net.params, net.pair, rest, scale=4.0), net.x), net.f(net.params, net.x), 1e-12)


def all_pairs(net):
    pairs = [growth.Pair("first", "hidden"), growth.Pair("hidden", "output"), growth.Pair("output", "head")]
    stats = growth.statistics(net.f, net.params, net.data, pairs, net.loss)
    return pairs, [growth.optimal_neurons(s, 2) for s in stats], [growth.optimal_delta(s) for s in stats]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_neighbours_in_any_order(order):
    net = network(32, q=4)
    pairs, new, delta = all_pairs(net)
    scale = (0.5, 0.3)
    together = growth.grow(net.params, pairs, new, delta=delta, scale=scale)
    one_by_one = net.params
    for i in order:
        one_by_one = growth.grow(one_by_one, pairs[i], new[i], delta=delta[i], scale=scale)
    trees.check_like(one_by_one, together, "grown")
    for a, b in zip(optree.tree_leaves(one_by_one), optree.tree_leaves(together)):
        close(a, b, 1e-14)
    assert net.f(together, net.x).shape == (12, 4)
    preview = growth.apply_extended(net.f, net.params, pairs, new, delta, scale, net.x)
    assert torch.equal(preview, net.f(together, net.x))
    still = growth.grow(net.params, pairs, new, delta=delta, scale=[0.0, 0.0, (0.0, 0.0)])
    close(net.f(still, net.x), net.f(net.params, net.x), 1e-12)


def test_neighbours_have_no_cross_terms():
    net = network(33, q=4)
    pairs, new, _ = all_pairs(net)
    grown = growth.grow(net.params, pairs[:2], new[:2])
    assert (grown["hidden"]["weight"][4:, 3:] == 0).all()
    some = growth.grow(net.params, pairs, [None, new[1], None])
    assert torch.equal(some["output"]["weight"], growth.grow(net.params, pairs[1], new[1])["output"]["weight"])


def test_growing_again():
    net = network(34)
    params = net.params
    for _ in range(3):
        stats = growth.statistics(net.f, params, net.data, net.pair)
        params = growth.grow(params, net.pair, growth.optimal_neurons(stats, 2), scale=0.1)
    assert params["hidden"]["weight"].shape == (10, 3)
    assert torch.equal(params["output"]["weight"][:, :4], net.params["output"]["weight"])


def test_containers_and_dtypes_are_kept():
    net = network(35)
    new, delta = step(net)
    wide = OrderedDict((k, dict(reversed(v.items()))) for k, v in reversed(net.params.items()))
    grown = growth.grow(wide, net.pair, new, delta=delta)
    assert type(grown) is OrderedDict
    assert list(grown) == list(wide)
    assert list(grown["hidden"]) == ["bias", "weight"]
    half = trees.map(lambda t: t.to(torch.bfloat16), net.params)
    assert {t.dtype for t in optree.tree_leaves(growth.grow(half, net.pair, new, delta=delta, scale=0.5))} == {
        torch.bfloat16
    }
    nested = growth.grow(
        {"net": net.params}, growth.Pair(("net", "hidden"), "net.output"), dataclasses.replace(new, pair=None)
    )
    assert nested["net"]["hidden"]["weight"].shape == (6, 3)


def test_parameters_that_require_grad():
    net = network(36)
    new, delta = step(net)
    params = trees.map(lambda t: torch.nn.Parameter(t), net.params)
    grown = growth.grow(params, net.pair, new, delta=delta, scale=0.5)
    net.f(grown, net.x).sum().backward()
    assert params["hidden"]["weight"].grad.isfinite().all()


@pytest.mark.parametrize("mode", [jacrev, jacfwd])
def test_derivatives_in_the_scale(mode):
    net = network(37, activation="gelu")
    new, delta = step(net)

    def loss(s, t):
        y = growth.apply_extended(net.f, net.params, net.pair, new, delta, (s, t), net.x)
        return torch.nn.functional.cross_entropy(y, net.target)

    zero = torch.zeros((), dtype=torch.float64)
    close(mode(loss, argnums=0)(zero, zero), -delta.decrease, 1e-12)
    at = zero + 0.25
    h = 1e-4
    close(mode(loss, argnums=1)(zero, at), (loss(zero, at + h) - loss(zero, at - h)) / (2 * h), 1e-7)
    assert mode(loss, argnums=1)(zero, zero) == 0  # documented: the entries go as the root of t


def test_ensemble_equals_loop():
    net = network(38, activation="softplus")
    members = [network(s, activation="softplus").params for s in range(3)]
    steps = [step(dataclasses.replace(net, params=m)) for m in members]
    new, delta = trees.stack([s[0] for s in steps]), trees.stack([s[1] for s in steps])
    scales = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    together = vmap(lambda p, n, d, t: growth.grow(p, net.pair, n, delta=d, scale=t))(
        trees.stack(members), new, delta, scales
    )
    for i, (m, (n, d)) in enumerate(zip(members, steps)):
        one = growth.grow(m, net.pair, n, delta=d, scale=scales[i].item())
        for a, b in zip(optree.tree_leaves(together), optree.tree_leaves(one), strict=True):
            close(a[i], b, 1e-10)
    assert (
        grad(lambda p: growth.grow(p, net.pair, steps[0][0])["hidden"]["weight"].sum())(members[0])["hidden"][
            "weight"
        ].sum()
        == 12
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a | {"scale": -1.0}, ValueError, "scale: got -1.0"),
        (lambda a: a | {"scale": (1.0, 2.0, 3.0)}, ValueError, "scale: got 3 numbers"),
        (lambda a: a | {"scale": torch.ones(2)}, ValueError, "scale: got"),
        (lambda a: a | {"new": a["delta"]}, TypeError, "new: got Delta"),
        (lambda a: a | {"delta": a["new"]}, TypeError, "delta: got Neurons"),
        (lambda a: a | {"pair": "hidden"}, TypeError, "expected a growth.Pair"),
        (
            lambda a: a | {"new": dataclasses.replace(a["new"], fan_in=torch.ones(2, 9))},
            ValueError,
            r"new.fan_in: got shape \(2, 9\)",
        ),
        (
            lambda a: a | {"new": dataclasses.replace(a["new"], fan_out=torch.ones(3, 5))},
            ValueError,
            r"fan_in \[k, r\]",
        ),
        (lambda a: a | {"pair": growth.Pair("first", "output")}, ValueError, "delta: is of Pair"),
        (lambda a: a | {"params": trees.stack([a["params"]] * 2)}, ValueError, "torch.func.vmap"),
        (lambda a: a | {"new": [a["new"]] * 2}, ValueError, "new: got a list of 2, expected 1"),
    ],
)
def test_bad_arguments(change, error, message):
    net = network(39)
    new, delta = step(net)
    a = change({"params": net.params, "pair": net.pair, "new": new, "delta": delta, "scale": 1.0})
    with pytest.raises(error, match=message):
        growth.grow(a["params"], a["pair"], a["new"], delta=a["delta"], scale=a["scale"])


def test_biases_that_are_not_there():
    new, delta = step(network(40))
    bare = network(40, bias=(False, False))
    with pytest.raises(ValueError, match=r"fan_in_bias, but hidden\.weight has no bias"):
        growth.grow(bare.params, bare.pair, new)
    with pytest.raises(ValueError, match=r"delta has a bias, but output\.weight has none"):
        growth.grow(bare.params, bare.pair, delta=delta)
