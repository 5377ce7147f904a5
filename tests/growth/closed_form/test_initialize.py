"""Units without data: deviations of every rule, fall-backs, randomness as an argument; pairs that cancel."""

import math

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import growth
from growth.strategies import ACTIVATIONS, network, networks
from linmaps import trees
from tests.growth.oracle import close, mean_loss

PAIR = growth.Pair("hidden", "output")
COPY, KAIMING = ["copy_uniform", "copy_normal"], ["kaiming_uniform", "kaiming_normal"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def params(r=30, p=40, q=20, bias=True, dtype=torch.float64):
    g = generator(5)
    normal = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    hidden = {"weight": 0.3 * normal(p, r)} | ({"bias": 5.0 * normal(p)} if bias else {})
    return {"hidden": hidden, "output": {"weight": 2.0 * normal(q, p)}}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rule", COPY + KAIMING)
def test_deviations(rule, bias):
    p, k = params(bias=bias), 2000
    new = growth.initialize(p, PAIR, k, fan_in=rule, fan_out=rule, generator=generator())
    want = (0.3 * 1.0, 5.0, 2.0) if rule in COPY else (math.sqrt(2 / 30), math.sqrt(2 / 30), math.sqrt(2 / (40 + k)))
    if rule in COPY:
        hidden, output = p["hidden"], p["output"]
        want = (
            hidden["weight"].std().item(),
            hidden.get("bias", torch.ones(2)).std().item(),
            output["weight"].std().item(),
        )
    sides = (new.fan_in, new.fan_in_bias, new.fan_out)
    for t, s in zip(sides, want):
        if t is None:
            assert not bias
            continue
        assert abs(t.std().item() / s - 1) < 0.05
        assert abs(t.mean().item()) < 0.1 * s
        bounded = t.abs().max().item() <= math.sqrt(3) * s * (1 + 1e-12)
        assert bounded == rule.endswith("uniform")
    assert (new.eigenvalues == 1).all()
    assert new.gain == 0


def test_kaiming_is_that_of_torch():
    new = growth.initialize(
        params(), PAIR, 5, fan_in="kaiming_uniform", fan_out="kaiming_normal", generator=generator(3)
    )
    g, weight = generator(3), torch.empty(5, 30, dtype=torch.float64)
    torch.nn.init.kaiming_uniform_(weight, generator=g)
    close(new.fan_in, weight, 1e-12)


@pytest.mark.parametrize("rule", COPY)
def test_fall_back_to_kaiming(rule):
    """Nothing to copy: constant weights, one entry, no hidden unit yet."""
    kaiming = rule.replace("copy", "kaiming")
    constant = trees.map(torch.ones_like, params())
    for p in (constant, params(r=1, p=1, q=1), params(p=0)):
        a, b = (growth.initialize(p, PAIR, 3, fan_in=r, fan_out=r, generator=generator()) for r in (rule, kaiming))
        for s, t in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
            assert torch.equal(s, t)


def test_rules_may_differ_and_be_callables():
    calls = []

    def rule(shape, leaf, inputs, g):
        calls.append((shape, tuple(leaf.shape), inputs, g))
        return torch.full(shape, 0.5)

    g = generator()
    new = growth.initialize(params(), PAIR, 3, fan_in=rule, fan_out="zeros", generator=g)
    assert calls == [((3, 30), (40, 30), 30, g), ((3,), (40,), 30, g)]
    assert (new.fan_in == 0.5).all()
    assert (new.fan_in_bias == 0.5).all()
    assert (new.fan_out == 0).all()
    assert new.fan_in.dtype == torch.float64
    calls.clear()
    new = growth.initialize(params(), PAIR, 3, fan_in="zeros", fan_out=rule)
    assert calls == [((20, 3), (20, 40), 43, None)]
    nothing = growth.initialize(params(), PAIR, 3, fan_in="zeros", fan_out="zeros")
    assert (nothing.eigenvalues == 0).all()
    assert growth.compact(nothing).size == 0


@given(networks(), st.integers(0, 4))
def test_zero_out_by_default_preserves_the_function(net, k):
    pair = growth.Pair("hidden", "output", activation=net.activation)
    new = growth.initialize(net.params, pair, k, generator=generator())
    grown = growth.grow(net.params, pair, new)
    close(net.f(grown, net.x), net.f(net.params, net.x), 1e-12)
    assert (new.eigenvalues == 1).all()
    assert (new.gains == 0).all()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_sigma0_comes_from_the_activation(name):
    net = network(3, activation=name)
    at0 = net.activation(torch.zeros((), dtype=torch.float64))
    pair = growth.Pair("hidden", "output", activation=net.activation)
    rules = {"fan_in": "zeros", "fan_out": "kaiming_normal", "generator": generator()}
    new = growth.initialize(net.params, pair, 2, **rules)
    close(new.sigma0, at0, 0)
    close(net.f(growth.grow(net.params, pair, new), net.x), net.f(net.params, net.x), 1e-12)
    assert growth.initialize(net.params, net.pair, 2, **rules).sigma0 == 0
    close(growth.initialize(net.params, net.pair, 2, sigma0=at0, **rules).sigma0, at0, 0)
    close(growth.initialize(net.params, net.pair, 2, sigma0=0.25, **rules).sigma0, at0 * 0 + 0.25, 0)


def test_convolutions():
    g = generator()
    normal = lambda *shape: torch.randn(shape, generator=g)
    for after, rows in ((normal(4, 3, 3, 3), 36), (normal(4, 12), 16)):
        p = {"hidden.weight": normal(3, 2, 3, 3), "hidden.bias": normal(3), "output.weight": after}
        new = growth.initialize(p, PAIR, 2, fan_out="kaiming_normal", generator=g)
        assert new.fan_in.shape == (2, 18)
        assert new.fan_out.shape == (rows, 2)
        inputs = 5 * rows // 4
        draws = normal(2, 19 + rows)
        new = growth.initialize(p, PAIR, 2, fan_in="kaiming_normal", fan_out="kaiming_normal", draws=draws)
        close(new.fan_out, (2 / inputs) ** 0.5 * draws[:, 19:].T, 1e-6)
        close(new.fan_in, (2 / 18) ** 0.5 * draws[:, :18], 1e-6)
        grown = growth.grow(p, PAIR, new)
        assert grown["hidden.weight"].shape == (5, 2, 3, 3)
        assert grown["output.weight"].numel() == 5 * after.numel() // 3


def test_randomness_is_the_argument():
    state = torch.random.get_rng_state()
    a, b, c = (growth.initialize(params(), PAIR, 3, generator=generator(i)) for i in (0, 0, 1))
    assert torch.equal(a.fan_in, b.fan_in)
    assert not torch.equal(a.fan_in, c.fan_in)
    assert torch.equal(state, torch.random.get_rng_state())
    stacked = trees.stack([params(), trees.scale(2.0, params())])
    draws = torch.randn(2, 3, 51, generator=generator(), dtype=torch.float64)
    fn = lambda p, d: growth.initialize(p, PAIR, 3, fan_in="copy_normal", draws=d)
    together = vmap(fn)(stacked, draws)
    close(together.fan_in[1], fn(trees.unstack(stacked)[1], draws[1]).fan_in, 1e-12)
    g = generator()
    apart = vmap(lambda p: growth.initialize(p, PAIR, 3, generator=g), randomness="different")(stacked)
    assert (apart.fan_in[1] / apart.fan_in[0]).std() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype(dtype):
    p = params(dtype=dtype)
    new = growth.initialize(p, PAIR, 3, fan_out="copy_normal", generator=generator())
    assert {t.dtype for t in optree.tree_leaves(new)} == {torch.float32}
    assert {t.dtype for t in optree.tree_leaves(growth.grow(p, PAIR, new))} == {dtype}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("bias", [(True, True), (False, False)])
def test_pairs_preserve_the_function_and_learn(name, bias):
    net = network(3, activation=name, bias=bias, samples=40)
    new = growth.initialize(net.params, net.pair, 6, fan_out="copy_normal", generator=generator(1))
    twins = growth.paired(new)
    assert twins.size == 6
    assert torch.equal(twins.fan_in[3:], new.fan_in[:3])
    assert torch.equal(twins.fan_in[:3], new.fan_in[:3])
    assert torch.equal(twins.fan_out, torch.cat([new.fan_out[:, :3], -new.fan_out[:, :3]], 1))
    grown = growth.grow(net.params, net.pair, twins, scale=3.0)
    close(net.f(grown, net.x), net.f(net.params, net.x), 1e-12)
    g = grad(lambda p: mean_loss(net, p))(grown)
    inward, outward = g["hidden"]["weight"][4:], g["output"]["weight"][:, 4:]
    assert (inward.norm(dim=1) > 1e-4).all()
    assert (outward.norm(dim=0) > 1e-4).all()
    close(inward[:3], -inward[3:], 1e-12)


def test_noise_of_pairs():
    stats = growth.strategies.from_rows(*growth.strategies.rows(0, 40, 5, 3, 60))
    new = growth.optimal_neurons(stats, 20)
    assert (new.eigenvalues == 0).any()
    exact, noisy = growth.paired(new), growth.paired(new, noise=0.1, generator=generator())
    change = noisy.fan_out - exact.fan_out
    alive = exact.eigenvalues > 0
    assert alive.sum() == 10  # the constant is an input of both layers
    assert (change[:, ~alive] == 0).all()
    assert abs(change[:, alive].std() / (0.1 * exact.fan_out[:, alive].std()) - 1) < 0.1
    assert torch.equal(noisy.fan_in, exact.fan_in)
    close(exact.gain, 0 * exact.gain, 1e-15)
    close(exact.gains[:10], new.gains[:10], 0)
    net = network(3)
    units = growth.initialize(net.params, net.pair, 4, fan_out="copy_normal", generator=generator())
    units = growth.paired(units, noise=0.1, generator=generator())
    moved = net.f(growth.grow(net.params, net.pair, units), net.x) - net.f(net.params, net.x)
    assert 0 < moved.norm() / net.f(net.params, net.x).norm() < 0.2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: growth.initialize(p, PAIR, -1), ValueError, "k: got -1"),
        (lambda p: growth.initialize(p, PAIR, 1.5), TypeError, "k: got float"),
        (lambda p: growth.initialize(p, PAIR, 1), ValueError, "generator: got None"),
        (lambda p: growth.initialize(p, PAIR, 1, fan_in="xavier"), ValueError, "fan_in: got 'xavier'"),
        (lambda p: growth.initialize(p, PAIR, 1, fan_in="zeros", fan_out=3), TypeError, "fan_out: got int"),
        (lambda p: growth.initialize(p, PAIR, 1, fan_in=lambda *a: torch.ones(2)), ValueError, "callable returned"),
        (lambda p: growth.initialize(p, PAIR, 1, draws=torch.ones(1, 3)), ValueError, r"draws: got \(1, 3\)"),
        (lambda p: growth.paired(units(p, 3)), ValueError, "got 3 units, expected an even number"),
        (lambda p: growth.paired(units(p, 2), noise=0.1), ValueError, "generator: got None"),
        (lambda p: growth.paired(units(p, 2), noise=-0.1, generator=generator()), ValueError, "noise: got -0.1"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(params())


def units(p, k):
    return growth.initialize(p, PAIR, k, generator=generator())
