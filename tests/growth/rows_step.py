"""Rows of the transform table: how each public name of growth is called with trees of float64 tensors.

Of new units only what does not depend on their signs is compared: fan_out @ [fan_in | bias], eigenvalues, gains.
"""

import dataclasses

import torch

import growth
from growth.strategies import from_rows, network, rows
from linmaps import trees
from tests.laws import Case, Exempt

NET = network(61, activation="gelu", samples=30)
SEQUENCES = network(62, activation="softplus", positions=2, samples=10, bias=(False, True))
RELU = network(63, activation="relu", samples=30)


def solid(seed: int, bias=(True, True)) -> growth.Statistics:
    """Statistics whose matrices stay well conditioned under the perturbations of the laws."""
    s = from_rows(*rows(seed, 30, 4, 3, 3), bias)
    extra = lambda m: m + 2.0 * torch.eye(m.shape[0], dtype=m.dtype)
    spread = torch.tensor([3.0, 1.5, 0.6], dtype=torch.float64)
    return dataclasses.replace(s, S=extra(s.S), S_prev=extra(s.S_prev), M_prev=4 * s.M_prev * spread)


def invariant(new: growth.Neurons):
    parts = {"move": new.fan_out @ new.joined, "eigenvalues": new.eigenvalues, "gains": new.gains, "gain": new.gain}
    return parts | ({} if new.delta is None else {"delta": new.delta})


def collect(net):
    return lambda params, x: growth.statistics(net.f, params, (x, net.target), net.pair, net.loss)


def signed(params, x):
    data = x, RELU.target
    stats = growth.statistics(RELU.f, params, data, RELU.pair)
    return invariant(growth.choose_sign(RELU.f, params, data, RELU.pair, growth.optimal_neurons(stats, 2)))


def step(net):
    stats = collect(net)(net.params, net.x)
    return growth.optimal_neurons(stats, 2), growth.optimal_delta(stats)


def grow(net):
    return lambda p, new, delta, t: growth.grow(p, net.pair, new, delta=delta, scale=(0.5 * t, t))


def preview(net):
    return lambda p, new, delta, t, x: growth.apply_extended(net.f, p, net.pair, new, delta, t, x)


def carry(m, params, grown):
    return growth.grow_like({"m": m, "list": [m]}, params, grown)


AMPLITUDE = torch.tensor(0.4, dtype=torch.float64)

CASES: dict[str, Case | Exempt] = {
    "growth.statistics/over ranks": Case(
        lambda params, x: growth.statistics(
            NET.f, params, (x, NET.target), NET.pair, NET.loss, reduce=lambda s, n: (trees.scale(2.0, s), 2 * n)
        ),
        (NET.params, NET.x),
    ),
    "growth.statistics/nested": Case(collect(NET), (NET.params, NET.x)),
    "growth.statistics/sequences": Case(collect(SEQUENCES), (SEQUENCES.params, SEQUENCES.x)),
    "growth.Statistics/merge": Case(lambda a, b: a + b, (solid(1), solid(2))),
    "growth.optimal_delta": Case(growth.optimal_delta, (solid(3),)),
    "growth.optimal_delta/ridge": Case(growth.optimal_delta, (solid(4, (True, False)), AMPLITUDE)),
    "growth.optimal_delta/of the network": Case(
        lambda p, x: growth.optimal_delta(collect(NET)(p, x), 0.1), (NET.params, NET.x)
    ),
    "growth.Delta/joined": Case(lambda d: d.joined, (growth.optimal_delta(solid(3)),)),
    "growth.optimal_neurons/residual": Case(lambda s: invariant(growth.optimal_neurons(s, 2)), (solid(5),)),
    "growth.optimal_neurons/gradient": Case(lambda s: invariant(growth.optimal_neurons(s, 5, "gradient")), (solid(6),)),
    "growth.optimal_neurons/joint": Case(
        lambda s: invariant(growth.optimal_neurons(s, 2, joint=True)), (solid(7, (False, False)),)
    ),
    "growth.optimal_neurons/of the network": Case(
        lambda p, x: invariant(growth.optimal_neurons(collect(NET)(p, x), 2, ridge=0.1)), (NET.params, NET.x)
    ),
    "growth.Neurons/joined": Case(lambda n: n.joined, (growth.optimal_neurons(solid(5), 2),)),
    "growth.choose_sign": Case(signed, (RELU.params, RELU.x)),
    "growth.grow": Case(grow(NET), (NET.params, *step(NET), AMPLITUDE)),
    "growth.grow/compensated": Case(grow(SEQUENCES), (SEQUENCES.params, *step(SEQUENCES), AMPLITUDE)),
    "growth.apply_extended": Case(preview(NET), (NET.params, *step(NET), AMPLITUDE, NET.x)),
    "growth.grow_like": Case(
        carry, (trees.scale(2.0, NET.params), NET.params, growth.grow(NET.params, NET.pair, step(NET)[0]))
    ),
    "growth.Pair": Exempt("a spec: two paths and an activation, no tensor"),
}
