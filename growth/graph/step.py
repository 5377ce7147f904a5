"""One step of a growing graph: the graph and params with the expansions added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growth.checks.doors import door
from growth.graph.expansions import NewEdge, NewUnits, NodeDelta, enlarged, sources, targets
from growth.graph.nodes import Graph
from growth.surgery.enlarge import Scale, amplitudes, cast_like, fitted
from linmaps import trees


@door()
def grow_graph(graph: Graph, params: Any, items: Any, *, scale: Scale = 1.0) -> tuple[Graph, dict[str, Any]]:
    """The graph and params with the expansions added: NodeDelta, NewEdge, NewUnits, or a list of them, in order.

    With amplitudes (s, t) = scale, or one number for both: deltas are subtracted s times; edges go as t, and their own
    deltas too; new units as √t in and √t out, with -√t Σ_j Ω_j σ(0) on the bias of the targets.  Old entries keep their
    place, new units of a node come last; at t = 0 the function is the same.  What was computed before a node grew is
    padded with zeros.  A preview is `grown.apply(params, x)`.

    Raises ValueError for expansions that close a cycle together (it names it), an edge that is there, a node that is not.

    >>> import torch, growth
    >>> g = growth.Graph((growth.Node("x", 2), growth.Node("y", 1)))
    >>> data = torch.eye(2), torch.tensor([[1.0], [3.0]])
    >>> params = {"edges": {}, "nodes": {"y": {"bias": torch.zeros(1)}}}
    >>> stats = growth.graph_statistics(g, params, data, "squared_error")
    >>> step = [growth.node_delta(stats, "y"), growth.new_edge(stats, "x", "y")]
    >>> grown, params = growth.grow_graph(g, params, step)
    >>> grown.apply(params, torch.eye(2)).round(decimals=3)
    tensor([[1.],
            [3.]])
    """
    graph.check(params)
    s, root = amplitudes(scale)
    t = scale[1] if isinstance(scale, tuple) else scale
    params = {kind: dict(params[kind]) if kind in params else {} for kind in ("edges", "nodes")}
    for item in items if isinstance(items, (list, tuple)) else [items]:
        if isinstance(item, NodeDelta):
            params = _moved(params, item.change, s)
        elif isinstance(item, (NewEdge, NewUnits)):
            graph, name = enlarged(graph, item)
            if isinstance(item, NewUnits):
                params = _with_units(graph, params, item, name, root)
            else:
                shape = graph.width(item.target), graph.width(item.source)
                weight = cast_like(fitted(t * item.weight, shape, name), _some(params, item.weight))
                params = _put(params, "edges", name, "weight", weight)
                params = params if item.delta is None else _moved(params, item.delta.change, t)
        else:
            raise TypeError(
                f"items: got {type(item).__name__}, expected NodeDelta, NewEdge, NewUnits or a list of them"
            )
    graph.check(params)
    return graph, params


def _some(params: Any, default: Tensor) -> Tensor:
    return next(iter(trees.leaves(params)), default)


def _put(params: Any, kind: str, name: str, leaf: str, value: Tensor) -> Any:
    return {**params, kind: {**params[kind], name: {leaf: value}}}


def _moved(params: Any, change: dict[str, Any], s: float | Tensor) -> Any:
    """params - s change, on the leaves that change has."""
    for path in trees.paths(change):
        old = trees.get(params, path)
        move = fitted(s * trees.get(change, path), old.shape, trees.path_str(path))
        params = trees.replace(params, path, old - cast_like(move, old))
    return params


def _with_units(graph: Graph, params: Any, item: NewUnits, name: str, root: float | Tensor) -> Any:
    """Rows on the edges into the node, columns on those from it; zeros on edges that are newer than the units."""
    new = item.neurons
    k, like = new.fan_in.shape[0], _some(params, new.fan_in)
    rows = dict(zip(sources(item), (root * new.fan_in).split([n for _, n in item.sources], 1)))
    columns = dict(zip(targets(item), (root * new.fan_out).split([n for _, n in item.targets], 0)))

    def joined(kind: str, key: str, leaf: str, block: Tensor, axis: int) -> Any:
        there = [params[kind][key][leaf]] if item.wider else []
        return _put(params, kind, key, leaf, torch.cat([*there, cast_like(block, like)], axis))

    for u in graph.parents(name):
        block = fitted(rows.get(u, new.fan_in.new_zeros(k, 0)), (k, graph.width(u)), f"{item}: fan_in from {u}")
        params = joined("edges", f"{u}->{name}", "weight", block, 0)
    for v in graph.children(name):
        block = fitted(columns.get(v, new.fan_out.new_zeros(0, k)), (graph.width(v), k), f"{item}: fan_out to {v}")
        params = joined("edges", f"{name}->{v}", "weight", block, 1)
        if graph.has_bias(v):
            params = _moved(params, {"nodes": {v: {"bias": block.sum(1) * new.sigma0}}}, 1.0)
    return params if new.fan_in_bias is None else joined("nodes", name, "bias", root * new.fan_in_bias, 0)
