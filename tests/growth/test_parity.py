"""Growth beside gromo 0.1.0 at its float32 accuracy: statistics, the change of weights, new units, the applied network."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

import growth
from tests.growth import peers

pytestmark = pytest.mark.skipif(not peers.installed(), reason=peers.ABSENT)

ACTIVATIONS = {
    "tanh": (torch.tanh, torch.nn.Tanh),
    "relu": (torch.relu, torch.nn.ReLU),
    "gelu": (F.gelu, torch.nn.GELU),
    "selu": (F.selu, torch.nn.SELU),
}
SIZES = [(5, 4, 3), (3, 6, 10), (8, 2, 2)]
BIASES = [(True, True), (False, True), (True, False), (False, False)]


def both(sizes, activation, bias=(True, True), loss="cross_entropy", seed=0):
    """The peer's modules of a network with its loss, and our statistics of the same network."""
    r, p, q = sizes
    g = torch.Generator().manual_seed(seed)
    normal = lambda *s: torch.randn(*s, generator=g)
    layer = lambda o, i, has: {"weight": normal(o, i) / i**0.5} | ({"bias": normal(o) * 0.3} if has else {})
    params = {"hidden": layer(p, r, bias[0]), "output": layer(q, p, bias[1])}
    x = normal(60, r)
    t = torch.randint(0, q, (60,), generator=g) if loss == "cross_entropy" else normal(60, q)
    act, module = ACTIVATIONS[activation]
    modules = peers.network([(params[n]["weight"], params[n].get("bias")) for n in ("hidden", "output")], module)

    def total(y):
        return F.cross_entropy(y, t, reduction="sum") if loss == "cross_entropy" else 0.5 * ((y - t) ** 2).sum()

    def f(params, x):
        h = act(F.linear(x, params["hidden"]["weight"], params["hidden"].get("bias")))
        return F.linear(h, params["output"]["weight"], params["output"].get("bias"))

    pair = growth.Pair("hidden", "output")
    return modules, total, f, params, x, pair, growth.statistics(f, params, (x, t), pair, loss)


def near(got, want, tol=2e-5):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tol * max(1.0, float(want.abs().max())), (got - want).abs().max()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_statistics_delta_and_units(sizes, activation, bias, loss):
    modules, total, _, _, x, _, s = both(sizes, activation, bias, loss)
    (theirs,) = peers.step(modules, [1], total, x, 2, dtype=torch.float64)
    for name in ("S", "M", "S_prev", "M_prev", "P", "E"):
        near(getattr(s, name), theirs[name])
    delta = growth.optimal_delta(s)
    near(delta.joined, theirs["delta"], 1e-3)
    near(delta.decrease, torch.as_tensor(theirs["decrease"]), 1e-4)
    new = growth.optimal_neurons(s, 2, delta=delta)
    found = theirs["eigenvalues"]
    near(new.eigenvalues[: len(found)], found, 1e-3)
    fan_in = theirs["fan_in"]
    if theirs["fan_in_bias"] is not None:
        fan_in = torch.cat([fan_in, theirs["fan_in_bias"].detach()[:, None]], 1)
    near(new.fan_out @ new.joined, theirs["fan_out"] @ fan_in, 2e-3)


@pytest.mark.parametrize("activation", ["tanh", "selu"])
def test_the_grown_network(activation):
    """Its amplitude is the square of its scaling factor; where eigenvalues are apart units agree but for their signs."""
    modules, total, f, params, x, pair, s = both((5, 4, 3), activation)
    (last,) = peers.passed(modules, [1], total, x)
    last.compute_optimal_delta(dtype=torch.float64)
    last.compute_optimal_updates(maximum_added_neurons=2, dtype=torch.float64)
    last.set_scaling_factor(0.6)
    delta = growth.optimal_delta(s)
    new = growth.optimal_neurons(s, 2, delta=delta)
    fan_out = last.extended_input_layer.weight.detach()
    turn = ((new.fan_out * fan_out).sum(0) < 0).to(x.dtype) * -2 + 1
    new = dataclasses.replace(
        new, fan_in=turn[:, None] * new.fan_in, fan_in_bias=turn * new.fan_in_bias, fan_out=turn * new.fan_out
    )
    with torch.no_grad():
        preview, _ = last.extended_forward(*modules[0].extended_forward(x))
    near(growth.apply_extended(f, params, pair, new, delta, 0.36, x), preview, 2e-3)
