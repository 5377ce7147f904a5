"""choose_sign: the exact one-sided gain of each unit, and the better of its two signs."""

import dataclasses

import optree
import pytest
import torch
from hypothesis import given
from torch.func import vmap

import growth
from growth.reading.activations import constants
from growth.strategies import KINKED, network, networks
from linmaps import trees
from tests.growth.oracle import close, mean_loss, slope


def chosen(net, k=2, target="residual"):
    stats = growth.statistics(net.f, net.params, net.data, net.pair, net.loss)
    new = growth.optimal_neurons(stats, k, target)
    return new, growth.choose_sign(net.f, net.params, net.data, net.pair, new, net.loss)


def one_sided(net, new, j, sign):
    """Slope of the mean loss when unit j alone is added with this sign, by differences."""
    unit = dataclasses.replace(
        new,
        fan_in=sign * new.fan_in[j : j + 1],
        fan_in_bias=None if new.fan_in_bias is None else sign * new.fan_in_bias[j : j + 1],
        fan_out=sign * new.fan_out[:, j : j + 1],
    )
    return slope(lambda t: mean_loss(net, growth.grow(net.params, net.pair, unit, scale=(0.0, t))), 0.02, root=True)


@pytest.mark.parametrize("name", [*KINKED, "tanh", "softplus"])
@pytest.mark.parametrize("bias", [(True, True), (False, True)])
@pytest.mark.parametrize("positions", [0, 3])
def test_gains_of_both_signs(name, bias, positions):
    net = network(21, activation=name, bias=bias, positions=positions, samples=10)
    new, best = chosen(net)
    for j in range(2):
        kept, other = -one_sided(net, best, j, 1.0), -one_sided(net, best, j, -1.0)
        assert abs(kept - best.gains[j].item()) <= 1e-4 * abs(kept)
        assert other <= kept + 1e-6
        if name in ("tanh", "softplus"):
            assert abs(kept - other) <= 1e-5
        else:
            assert abs(kept - other) > 1e-5
    close(best.fan_out @ best.fan_in, new.fan_out @ new.fan_in, 1e-14)
    close(best.gain, best.gains.sum(), 0)


@given(networks())
def test_never_worse_than_the_mean_of_both_signs(net):
    new, best = chosen(net, k=3)
    assert (best.gains >= new.gains - 1e-12).all()
    assert ((best.fan_in == new.fan_in).all(1) | (best.fan_in == -new.fan_in).all(1)).all()
    assert ((best.fan_out == new.fan_out).all(0) | (best.fan_out == -new.fan_out).all(0)).all()
    assert optree.tree_structure(best) == optree.tree_structure(new)


def test_the_two_gains_of_relu_add_up_to_the_squared_eigenvalue():
    """Without projection, and exactly so in the whole: gain(+) + gain(-) = λ²."""
    net = network(22, activation="relu")
    new, best = chosen(net, target="gradient")
    flipped = dataclasses.replace(best, fan_in=-best.fan_in, fan_in_bias=-best.fan_in_bias, fan_out=-best.fan_out)
    for j in range(2):
        total = best.gains[j].item() - one_sided(net, flipped, j, 1.0)
        assert abs(total - new.eigenvalues[j].item() ** 2) <= 1e-5 * total


def test_batches_lists_and_ensemble():
    net = network(23, activation="relu", samples=10)
    new, best = chosen(net)
    parts = [(net.x[:3], net.target[:3]), (net.x[:0], net.target[:0]), (net.x[3:], net.target[3:])]
    close(growth.choose_sign(net.f, net.params, parts, net.pair, new).gains, best.gains, 1e-12)
    (listed,) = growth.choose_sign(net.f, net.params, net.data, [net.pair], [new])
    close(listed.gains, best.gains, 0)

    def step(params):
        stats = growth.statistics(net.f, params, net.data, net.pair)
        return growth.choose_sign(net.f, params, net.data, net.pair, growth.optimal_neurons(stats, 2))

    members = [net.params, network(24).params, network(25).params]
    together = vmap(step)(trees.stack(members))
    for i, m in enumerate(members):
        one = step(m)
        close(together.gains[i], one.gains, 1e-10)
        close(together.fan_out[i] @ together.fan_in[i], one.fan_out @ one.fan_in, 1e-10)


def test_masked_units_stay_masked():
    net = network(26, activation="relu", q=1)
    _, best = chosen(net, k=3)
    assert (best.eigenvalues > 0).tolist() == [True, False, False]
    assert best.gains[1:].tolist() == [0, 0]
    assert (best.fan_out[:, 1:] == 0).all()


def test_units_of_another_pair_raise():
    net = network(27, q=4)
    new, _ = chosen(net)
    with pytest.raises(ValueError, match=r"fan_in \(2, 3\) and fan_out \(4, 2\), expected"):
        growth.choose_sign(
            net.f, net.params, net.data, growth.Pair("output", "head"), dataclasses.replace(new, pair=None)
        )
    with pytest.raises(TypeError, match=r"expected a growth\.Neurons"):
        growth.choose_sign(net.f, net.params, net.data, net.pair, {"fan_in": 1})
    with pytest.raises(ValueError, match="list of 2, expected 1"):
        growth.choose_sign(net.f, net.params, net.data, [net.pair], [new, new])


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "selu", "tanh", "gelu"])
@pytest.mark.parametrize("target", ["gradient", "residual"])
def test_gains_of_statistics_are_the_mean_over_both_signs(activation, target):
    net = network(28, activation=activation, samples=40)
    new = growth.optimal_neurons(growth.statistics(net.f, net.params, net.data, net.pair), 3, target)
    slopes = -torch.tensor([[one_sided(net, new, j, sign) for j in range(3)] for sign in (1, -1)], dtype=torch.float64)
    close(slopes.mean(0), new.gains, 1e-4)
    best = growth.choose_sign(net.f, net.params, net.data, net.pair, new)
    close(slopes.amax(0), best.gains, 1e-4)
    assert (best.gains >= new.gains - 1e-9).all()
    if activation in ("tanh", "gelu"):
        close(slopes[0], new.gains, 1e-4)


STEEP = {
    "sqrt": lambda z: z.clamp(min=0).sqrt(),
    "of both sides": lambda z: z.sign() * z.abs().sqrt(),
    "on the left": lambda z: z.clamp(min=0) - (-z).clamp(min=0) ** 0.9,
    "by a logarithm": lambda z: torch.xlogy(z.abs(), z.abs()),
}
FLAT = {  # slopes at 0+ and 0-
    "squared relu": (lambda z: torch.relu(z) ** 2, 0.0, 0.0),
    "square": (lambda z: z**2, 0.0, 0.0),
    "cos": (torch.cos, 0.0, 0.0),
    "relu and square": (lambda z: torch.relu(z) + 3 * z**2, 1.0, 0.0),
    "smoothed sqrt": (lambda z: (torch.relu(z) + 1e-6).sqrt(), 500.0, 0.0),
    "tanh": (torch.tanh, 1.0, 1.0),
    "gelu": (torch.nn.functional.gelu, 0.5, 0.5),
    "power": (lambda z: z.abs() ** 1.1, 0.0, 0.0),
    "prelu": (lambda z: torch.nn.functional.leaky_relu(z, -0.3), 1.0, -0.3),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", FLAT)
def test_slopes_at_0_are_limits(name, dtype):
    activation, *want = FLAT[name]
    _, *got = constants(activation, torch.zeros(1, dtype=dtype))
    assert [float(t) for t in got] == pytest.approx(want, rel=0.02, abs=0)


def pooled_or_not(sigma, pooled, dtype):
    g = torch.Generator().manual_seed(0)
    params = {n: torch.randn(*s, generator=g).to(dtype) for n, s in (("a", (4, 3)), ("b", (2, 4)))}
    x, t = torch.randn(9, 5, 3, generator=g).to(dtype), torch.randn(9, 2, generator=g).to(dtype)
    join = (lambda h: h.mean(1)) if pooled else (lambda h: h)
    f = lambda p, x: join(sigma(x @ p["a"].T)) @ p["b"].T
    pair = growth.Pair("a", "b", activation=None if pooled else sigma)
    new = growth.initialize(params, pair, 2, fan_out="copy_normal", generator=g)
    return f, params, (x if pooled else x[:, 0], t), pair, new


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "pooled"), [*((name, False) for name in STEEP), ("sqrt", True)])
def test_infinite_slopes_are_refused(name, pooled, dtype):
    f, params, data, pair, new = pooled_or_not(STEEP[name], pooled, dtype)
    with pytest.raises(ValueError, match="infinite slope at 0"):
        growth.statistics(f, params, data, pair, "squared_error")
    with pytest.raises(ValueError, match="infinite slope at 0"):
        growth.choose_sign(f, params, data, pair, new, "squared_error")


@pytest.mark.parametrize("pooled", [False, True])
def test_units_of_a_flat_activation_gain_exactly_nothing(pooled):
    f, params, data, pair, new = pooled_or_not(lambda z: torch.relu(z) ** 2, pooled, torch.float64)
    assert not growth.choose_sign(f, params, data, pair, new, "squared_error").gains.any()
