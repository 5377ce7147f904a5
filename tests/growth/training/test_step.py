"""One growth step on real data: what is reported is what happens to the mean loss."""

import functools

import pytest
import torch
from sklearn.datasets import load_digits
from torch.func import grad
from torch.nn import functional as F

import growth
from linmaps import trees
from tests.growth.oracle import close, slope

PAIR = growth.Pair("hidden", "output")
ACTIVATIONS = {"relu": torch.relu, "gelu": F.gelu}


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float64), torch.tensor(y)


def model(activation):
    return lambda p, x: F.linear(
        activation(F.linear(x, p["hidden"]["weight"], p["hidden"]["bias"])), *p["output"].values()
    )


@functools.cache
def trained(name, width=8, steps=60):
    """A narrow network after a little gradient descent: constant pixels, perhaps dead units."""
    x, y = digits()
    g = torch.Generator().manual_seed(0)
    shapes = {"hidden": {"weight": (width, 64), "bias": (width,)}, "output": {"weight": (10, width), "bias": (10,)}}
    params = {a: {b: 0.2 * torch.randn(s, generator=g, dtype=x.dtype) for b, s in v.items()} for a, v in shapes.items()}
    f = model(ACTIVATIONS[name])
    loss = lambda p: F.cross_entropy(f(p, x), y)
    for _ in range(steps):
        params = trees.axpy(-0.5, grad(loss)(params), params)
    return f, params, loss, growth.statistics(f, params, (x, y), PAIR)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_reported_slopes_are_measured(name):
    f, params, loss, stats = trained(name)
    delta = growth.optimal_delta(stats)
    measured = -slope(lambda t: loss(growth.grow(params, PAIR, delta=delta, scale=t)), 1e-3)
    assert abs(delta.decrease.item() / measured - 1) < 1e-5
    for target in ("residual", "gradient"):
        new = growth.choose_sign(f, params, digits(), PAIR, growth.optimal_neurons(stats, 6, target))
        measured = -slope(lambda t: loss(growth.grow(params, PAIR, new, scale=(0.0, t))), 0.01, root=True)  # noqa: B023
        assert abs(new.gain.item() / measured - 1) < 1e-4


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_function_at_zero_amplitude(name):
    f, params, _, stats = trained(name)
    new, delta = growth.optimal_neurons(stats, 6), growth.optimal_delta(stats)
    x, _ = digits()
    close(growth.apply_extended(f, params, PAIR, new, delta, 0.0, x), f(params, x), 1e-12)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_a_step_lowers_the_loss(name):
    """Any small step lowers it; a search over the amplitude by a large part."""
    f, params, loss, stats = trained(name)
    new = growth.choose_sign(f, params, digits(), PAIR, growth.optimal_neurons(stats, 6))
    delta = growth.optimal_delta(stats)
    after = {
        t: loss(growth.grow(params, PAIR, new, delta=delta, scale=t)).item() for t in (0.0, 0.01, 0.1, 1.0, 3.0, 10.0)
    }
    assert after[0.01] < after[0.0]
    assert min(after.values()) < 0.8 * after[0.0]


def test_float32_agrees_on_real_data():
    f, params, _, stats = trained("relu")
    x, y = digits()
    single = growth.statistics(f, trees.map(torch.Tensor.float, params), (x.float(), y), PAIR)
    close(growth.optimal_delta(single).decrease.double(), growth.optimal_delta(stats).decrease, 1e-4)
    got, want = growth.optimal_neurons(single, 6), growth.optimal_neurons(stats, 6)
    close(got.eigenvalues.double() / want.eigenvalues[0], want.eigenvalues / want.eigenvalues[0], 1e-2)
    assert all(t.isfinite().all() for t in trees.leaves(got))
