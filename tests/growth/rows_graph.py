"""Rows of the transform table for graphs.  Of new units only what does not depend on their signs is compared."""

import dataclasses

import torch
from torch.nn import functional as F

import growth
from growth import Graph, Node
from linmaps import trees
from tests.growth.graph.test_graph import MERGE, made
from tests.laws import Case, Exempt

SMALL = Graph(
    (Node("x", 2), Node("a", 2, torch.tanh), Node("b", 1, F.gelu), Node("y", 3)),
    ("x->a", "x->b", "a->y"),
    identities=("x->a",),
)
PARAMS, (X, TARGET) = made(SMALL, 3, samples=40)
SEQUENCES = made(MERGE, 4, positions=3, samples=12)
RELU = Graph((Node("x", 2), Node("h", 1, torch.relu), Node("y", 3)), ("x->h", "h->y"))
RELU_PARAMS, (RELU_X, RELU_TARGET) = made(RELU, 5, samples=40)


def collect(params, x):
    return growth.graph_statistics(SMALL, params, (x, TARGET))


def solid():
    """Statistics whose matrices stay well conditioned under the perturbations of the laws."""
    s = collect(PARAMS, X)
    spread = torch.tensor([3.0, 2.0, 1.4, 0.8, 3.0, 1.5, 0.6], dtype=torch.float64)[: s.M.shape[1]]
    return dataclasses.replace(s, S=s.S + 2.0 * torch.eye(len(s.S), dtype=s.S.dtype), M=6 * s.M * spread)


def units(new):
    n = new.neurons
    return {"move": n.fan_out @ n.joined, "eigenvalues": n.eigenvalues, "gains": n.gains, "gain": new.gain}


def table(gstats):
    found = growth.candidates(gstats, 1, torch.tanh, target="gradient").items
    return [units(i) if isinstance(i, growth.NewUnits) else i for i in found]


def signed(params, x):
    data = x, RELU_TARGET
    new = growth.wider_node(growth.graph_statistics(RELU, params, data), "h", 1)
    return units(growth.choose_graph_sign(RELU, params, data, new))


STATS = solid()
ITEMS = [
    growth.new_node(STATS, ["x", "b"], "y", 2, F.softplus),
    growth.new_edge(STATS, "b", "y"),
    growth.node_delta(STATS, "a"),
]
AMPLITUDE = torch.tensor(0.4, dtype=torch.float64)


def grow(params, items, t):
    return growth.grow_graph(SMALL, params, items, scale=(0.5 * t, t))[1]


def carry(m, params, grown):
    return growth.carry_graph({"m": m, "list": trees.leaves(m)}, params, grown)


CASES: dict[str, Case | Exempt] = {
    "growth.Graph/apply": Case(SMALL.apply, (PARAMS, X)),
    "growth.Graph/values": Case(MERGE.values, (SEQUENCES[0], SEQUENCES[1][0])),
    "growth.Node": Exempt("a spec: a name, a width and an activation, no tensor"),
    "growth.graph_statistics": Case(collect, (PARAMS, X)),
    "growth.graph_statistics/sequences": Case(
        lambda p, x: growth.graph_statistics(MERGE, p, (x, SEQUENCES[1][1])), (SEQUENCES[0], SEQUENCES[1][0])
    ),
    "growth.GraphStatistics/merge": Case(lambda a, b: a + b, (STATS, collect(PARAMS, X))),
    "growth.GraphStatistics/between": Case(lambda s: s.between(["x", "b"], ["a", "y"], torch.tanh), (STATS,)),
    "growth.node_delta": Case(lambda s: growth.node_delta(s, "y"), (STATS,)),
    "growth.node_delta/ridge": Case(lambda s, r: growth.node_delta(s, "a", ridge=r), (STATS, AMPLITUDE)),
    "growth.NodeDelta": Case(lambda d: d.decrease * d.change["nodes"]["a"]["bias"], (ITEMS[2],)),
    "growth.new_edge/residual": Case(lambda s: growth.new_edge(s, "b", "y"), (STATS,)),
    "growth.new_edge/gradient": Case(lambda s: growth.new_edge(s, "x", "y", target="gradient"), (STATS,)),
    "growth.NewEdge": Case(lambda e: e.weight * e.gain, (ITEMS[1],)),
    "growth.new_node": Case(lambda s: units(growth.new_node(s, ["x", "b"], "y", 2, F.gelu)), (STATS,)),
    "growth.new_node/several targets": Case(
        lambda s: units(growth.new_node(s, "x", ["a", "y"], 1, torch.tanh, target="gradient")), (STATS,)
    ),
    "growth.wider_node": Case(
        lambda p, x: units(growth.wider_node(growth.graph_statistics(RELU, p, (x, RELU_TARGET)), "h", 1)),
        (RELU_PARAMS, RELU_X),
    ),
    "growth.NewUnits": Case(lambda n: n.neurons.fan_out @ n.neurons.joined * n.gain, (ITEMS[0],)),
    "growth.candidates": Case(table, (STATS,)),
    "growth.Candidates/gains": Case(lambda t: t.gains, (growth.candidates(STATS, 1, torch.tanh),)),
    "growth.choose_graph_sign": Case(signed, (RELU_PARAMS, RELU_X)),
    "growth.grow_graph": Case(grow, (PARAMS, ITEMS, AMPLITUDE)),
    "growth.carry_graph": Case(carry, (trees.scale(2.0, PARAMS), PARAMS, grow(PARAMS, ITEMS, AMPLITUDE))),
}
