"""Rows of the transform table: closed forms in every metric, the exact output Fisher, noise."""

import torch

import growth
from growth.strategies import network
from linmaps import trees
from tests.growth.rows_step import collect, invariant, solid
from tests.laws import Case, Exempt

NET = network(64, activation="gelu", samples=30)


def units(**options):
    return lambda s: invariant(growth.optimal_neurons(s, 2, **options))


def of_network(p, x):
    stats = growth.with_fisher(collect(NET)(p, x), NET.f, p, x, NET.pair)
    return stats.E, growth.optimal_delta(stats, 0.1, output_metric="fisher", shrinkage=0.2)


def floors(a, b):
    return growth.noise_floor(a, output_metric="fisher", shrinkage=0.3), growth.split_floor(a, b, input_metric=None)


CASES: dict[str, Case | Exempt] = {
    "growth.optimal_delta/fisher": Case(lambda s: growth.optimal_delta(s, output_metric="fisher"), (solid(11),)),
    "growth.optimal_delta/shrunk": Case(
        lambda s, a: growth.optimal_delta(s, output_metric="fisher", shrinkage=a),
        (solid(12), torch.tensor(0.4, dtype=torch.float64)),
    ),
    "growth.optimal_neurons/input metric None": Case(units(input_metric=None), (solid(13),)),
    "growth.optimal_neurons/fisher": Case(units(output_metric="fisher", shrinkage=0.3), (solid(14),)),
    "growth.optimal_neurons/fisher joint": Case(
        units(output_metric="fisher", shrinkage=0.3, joint=True), (solid(15, (False, False)),)
    ),
    "growth.optimal_neurons/floors": Case(
        lambda s, floor: invariant(growth.optimal_neurons(s, 3, threshold=0.01, noise_floor=floor.abs() * 0)),
        (solid(16), torch.tensor(0.01, dtype=torch.float64)),
    ),
    "growth.output_fisher": Case(lambda p, x: growth.output_fisher(NET.f, p, x, NET.pair), (NET.params, NET.x)),
    "growth.with_fisher": Case(of_network, (NET.params, NET.x)),
    "growth.StandardErrors": Case(
        lambda e: trees.scale(2.0, e), (growth.StandardErrors(*torch.arange(7, dtype=torch.float64)),)
    ),
    "growth.split_half": Case(growth.split_half, (solid(17), solid(18))),
    "growth.standard_errors": Case(
        lambda a, b, c: growth.standard_errors([a, b, c]), (solid(17), solid(18), solid(19))
    ),
    "growth.noise_floor": Case(growth.noise_floor, (solid(20),)),
    "growth.split_floor": Case(growth.split_floor, (solid(21), solid(22))),
    "growth.split_floor/metrics": Case(floors, (solid(23), solid(24))),
}
