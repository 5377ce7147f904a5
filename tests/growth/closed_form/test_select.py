"""Choosing, scaling and joining units: what is kept keeps its numbers, gains stay true slopes, sizes are static."""

import dataclasses

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import growth
from growth.closed_form.units import live
from growth.strategies import from_rows, network, rows, statistics
from linmaps import trees
from tests.growth.oracle import close, mean_loss, slope


def equal(a, b):
    assert all(torch.equal(s, t) for s, t in zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True))


def units(seed=0, k=4, bias=(True, True), target="gradient"):
    return growth.optimal_neurons(from_rows(*rows(seed, 30, 5, 3, 4), bias), k, target)


@given(statistics(), st.integers(0, 5), st.data())
def test_truncation_is_the_smaller_solution(stats, k, data):
    new = growth.optimal_neurons(stats, k)
    some = data.draw(st.integers(0, k))
    for a, b in zip(trees.leaves(growth.truncate(new, some)), trees.leaves(growth.optimal_neurons(stats, some))):
        close(a, b, 1e-13)


@given(statistics(), st.integers(0, 5))
def test_nothing_left_changes_nothing(stats, k):
    new = growth.optimal_neurons(stats, k)
    none = growth.truncate(new, 0)
    assert none.size == 0
    assert none.gain == 0
    equal(growth.merge_neurons(new, none), new)
    equal(growth.merge_neurons(none, new), new)


@pytest.mark.parametrize("bias", [(True, True), (False, True)])
def test_keep_by_mask(bias):
    new = units(bias=bias)
    mask = torch.tensor([True, False, True, False])
    some = growth.keep(new, mask)
    assert some.size == 4
    equal(growth.compact(some), growth.compact(growth.keep(new, mask)))
    assert growth.compact(some).size == 2
    for name in ("fan_in", "eigenvalues", "gains"):
        assert torch.equal(getattr(some, name)[mask], getattr(new, name)[mask])
        assert (getattr(some, name)[~mask] == 0).all()
    assert (some.fan_out[:, ~mask] == 0).all()
    assert torch.equal(some.fan_out[:, mask], new.fan_out[:, mask])
    close(some.gain, new.gains[mask].sum(), 1e-15)


@given(statistics(), st.integers(0, 5), st.floats(0.0, 1.0))
def test_keep_by_threshold_relative_to_the_largest(stats, k, threshold):
    new = growth.optimal_neurons(stats, k)
    some = growth.keep(new, threshold)
    largest = new.eigenvalues.max() if k else 0
    want = (new.eigenvalues >= threshold * largest) & (new.eigenvalues > 0)
    assert torch.equal(some.eigenvalues > 0, want)
    equal(growth.keep(new, torch.tensor(threshold, dtype=torch.float64)), some)
    scaled = growth.keep(growth.scale_neurons(new, fan_out=1e-9), threshold)
    assert torch.equal(scaled.eigenvalues > 0, want)


def test_one_side_of_the_tail_preserves_the_function_and_learns():
    net = network(5, samples=20)
    new = growth.optimal_neurons(growth.statistics(net.f, net.params, net.data, net.pair), 3)
    nothing = torch.zeros(3, dtype=torch.bool)
    for side in ({"fan_in": False}, {"fan_out": False}):
        tail = growth.keep(new, nothing, **side)
        assert live(tail).all()
        assert (tail.eigenvalues == 0).all()
        assert tail.gain == 0
        grown = growth.grow(net.params, net.pair, tail)
        close(net.f(grown, net.x), net.f(net.params, net.x), 1e-12)
        g = grad(lambda p: mean_loss(net, p))(grown)
        assert torch.stack([g["hidden"]["weight"][4:].norm(), g["output"]["weight"][:, 4:].norm()]).max() > 1e-3


@pytest.mark.parametrize("name", ["tanh", "relu", "sigmoid", "leaky_relu"])
def test_gains_stay_slopes_under_scaling(name):
    net = network(11, activation=name, samples=20)
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    new = growth.choose_sign(net.f, net.params, net.data, net.pair, growth.optimal_neurons(stats, 3))
    a, b = torch.tensor([0.5, 2.0, 1.5]).double(), torch.tensor([1.0, -3.0, 0.7]).double()
    scaled = growth.scale_neurons(new, fan_in=a, fan_out=b)
    measured = -slope(lambda t: mean_loss(net, growth.grow(net.params, net.pair, scaled, scale=t)), 0.005, root=True)
    assert abs(scaled.gain.item() - measured) <= 1e-4 * abs(measured)
    close(scaled.fan_in, a[:, None] * new.fan_in, 0)
    close(scaled.fan_out, new.fan_out * b, 0)


@given(statistics(), st.floats(-3, 3), st.floats(-3, 3))
def test_eigenvalues_squared_scale_as_the_decrease_that_they_are(stats, a, b):
    new = growth.optimal_neurons(stats, 3, "gradient")
    scaled = growth.scale_neurons(new, fan_in=a, fan_out=torch.tensor(b, dtype=torch.float64))
    close(new.gains, new.eigenvalues**2, 1e-8)
    close(scaled.gains.abs(), scaled.eigenvalues**2, 1e-8)
    close(scaled.gain, a * b * new.gain, 1e-12)


def test_merged_units_act_as_both():
    net = network(12, samples=20)
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    a, b = growth.optimal_neurons(stats, 2), growth.optimal_neurons(stats, 1, "gradient")
    both = growth.merge_neurons(a, b)
    one_by_one = growth.grow(growth.grow(net.params, net.pair, a), net.pair, b)
    equal(growth.grow(net.params, net.pair, both), one_by_one)
    close(both.gain, a.gain + b.gain, 1e-15)


@given(statistics(), st.integers(0, 6))
def test_compact_drops_what_is_masked(stats, k):
    new = growth.optimal_neurons(stats, k)
    some = growth.compact(new)
    assert some.size == int((new.eigenvalues > 0).sum())
    close(some.fan_out @ some.joined, new.fan_out @ new.joined, 1e-13)
    joint = growth.optimal_neurons(stats, k, joint=True)
    equal(growth.compact(joint).delta, joint.delta)


def test_ensemble_keeps_static_sizes():
    members = [from_rows(*rows(i, 15, 4, 3, 3, deficient=i == 1)) for i in range(3)]

    def chosen(s):
        return growth.keep(growth.truncate(growth.optimal_neurons(s, 4), 3), 0.4)

    together = vmap(chosen)(trees.stack(members))
    for i, m in enumerate(members):
        close(together.eigenvalues[i], chosen(m).eigenvalues, 1e-10)
    with pytest.raises(ValueError, match="compact: called under vmap"):
        vmap(growth.compact)(together)
    assert grad(lambda x: growth.compact(dataclasses.replace(units(), gains=x)).gain)(units().gains).shape == (4,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda n: growth.truncate(n, 5), ValueError, "k: got 5, expected an int from 0 to 4"),
        (lambda n: growth.truncate(n, -1), ValueError, "k: got -1"),
        (lambda n: growth.truncate(n, 1.0), TypeError, "k: got float"),
        (lambda n: growth.truncate("n", 1), TypeError, "new: got str"),
        (lambda n: growth.keep(n, 1.5), ValueError, "which: got 1.5"),
        (lambda n: growth.keep(n, True), TypeError, "which: got bool"),
        (lambda n: growth.keep(n, torch.ones(3, dtype=torch.bool)), ValueError, r"shape \(3,\), expected \(4,\)"),
        (lambda n: growth.keep(n, torch.ones(4)), ValueError, "which: got torch.float32"),
        (lambda n: growth.keep(n, 0.5, fan_in=False, fan_out=False), ValueError, "expected a side"),
        (lambda n: growth.scale_neurons(n, fan_in=torch.ones(2)), ValueError, "fan_in: got"),
        (lambda n: growth.scale_neurons(n, fan_out=True), ValueError, "fan_out: got True"),
        (lambda n: growth.merge_neurons(n, units(bias=(False, True))), ValueError, "units of one pair"),
        (
            lambda n: growth.truncate(dataclasses.replace(n, delta=growth.Delta(None, None, None)), 1),
            ValueError,
            "joint",
        ),
        (lambda n: growth.merge_neurons(n, 3), TypeError, "b: got int"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(units())
