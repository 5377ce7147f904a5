"""One step of a growing graph: a table of what can be added, the choice of signs, the enlarged graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from growth.closed_form.signs import better_sign
from growth.graph.growth import NewEdge, NewUnits, NodeDelta, new_edge, new_node, wider_node
from growth.graph.nodes import Graph, Node
from growth.graph.statistics import GraphStatistics, observe_graph
from growth.reading.activations import Activation, constants
from growth.reading.doors import count, door
from growth.reading.losses import Loss
from growth.surgery.enlarge import Scale, amplitudes, cast_like, fitted
from linmaps import trees
from linmaps.checks.typed import typed
from linmaps.numerics.linalg import working
from linmaps.trees import record

Expansion = NodeDelta | NewEdge | NewUnits


@record(static=("graph",))
class Candidates:
    """What can be added to a graph, with gains; prints as a table, largest gain first.

    items: NewEdge and NewUnits.  Of an ensemble (leaves stacked in front) the mean gain over its members counts.

    >>> Candidates((), Graph((Node("x", 1), Node("y", 1)))).take(3)
    []
    """

    items: tuple[Any, ...]
    graph: Graph

    @property
    def gains(self) -> Tensor:
        """`[..., candidates]`: slopes of the mean loss."""
        return torch.stack([i.gain for i in self.items], -1) if self.items else torch.zeros(0)

    @property
    def best(self) -> Any:
        """The candidate of the largest gain.  Raises ValueError if there is none."""
        if not self.items:
            raise ValueError(
                "Candidates: is empty, expected at least one; the graph has all edges and no node to widen"
            )
        return self.take(1)[0]

    @typed
    def take(self, n: int, *, by: str = "gain") -> list[Any]:
        """The n best that can be added together, which close no cycle: by "gain", or by "ratio", gain per parameter.

        Reads values, so it belongs outside of transforms.  Raises ValueError for another `by`.
        """
        if by not in ("gain", "ratio"):
            raise ValueError(f'by: got {by!r}, expected "gain" or "ratio"')
        graph = self.graph
        chosen: list[Any] = []
        for i in self._order(by):
            item = self.items[i]
            if len(chosen) < n and not any(graph.reaches(v, u) for u in _sources(item) for v in _targets(item)):
                graph = _enlarged(graph, item)[0]
                chosen.append(item)
        return chosen

    def _order(self, by: str) -> list[int]:
        values = self.gains.detach().flatten(0, -2).mean(0) if self.gains.ndim > 1 else self.gains.detach()
        size = torch.tensor([i.parameters if by == "ratio" else 1 for i in self.items], device=values.device)
        return (values / size.clamp(min=1)).argsort(descending=True, stable=True).tolist()

    def __repr__(self) -> str:
        rows = [("kind", "where", "gain", "parameters", "gain / parameter")]
        for i in self._order("gain"):
            item, gain = self.items[i], float(self.items[i].gain.detach().mean())
            ratio = f"{gain / max(item.parameters, 1):.3g}"
            rows.append((_kind(item), str(item), f"{gain:.4g}", str(item.parameters), ratio))
        wide = [max(len(r[c]) for r in rows) for c in range(5)]
        left = lambda c: "<" if c < 2 else ">"
        return "\n".join("  ".join(f"{r[c]:{left(c)}{wide[c]}}" for c in range(5)).rstrip() for r in rows)


def _kind(item: Expansion) -> str:
    return "edge" if isinstance(item, NewEdge) else "wider" if isinstance(item, NewUnits) and item.wider else "node"


def _sources(item: Any) -> list[str]:
    return [item.source] if isinstance(item, NewEdge) else [n for n, _ in item.sources]


def _targets(item: Any) -> list[str]:
    return [item.target] if isinstance(item, NewEdge) else [n for n, _ in item.targets]


@door()
def candidates(
    gstats: GraphStatistics,
    k: int,
    activation: Activation | None,
    *,
    target: str = "residual",
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
) -> Candidates:
    """All edges that are not there, a new node of k units between any two nodes, and k more units of any inner node.

    Nothing that closes a cycle, ends in a width 0, leads nowhere or lacks a bias that it needs is listed.
    activation: of new nodes.  One with a kink at 0 has the mean of both signs as gain, until `choose_graph_sign`.
    target, ridge, rtol: as in `new_edge` and `new_node`.

    >>> import torch, growth
    >>> nodes = growth.Node("x", 2), growth.Node("h", 1, torch.tanh), growth.Node("y", 1)
    >>> g = growth.Graph(nodes, ("x->h", "h->y"))
    >>> params = trees.map(torch.ones_like, g.init(torch.Generator()))
    >>> stats = growth.graph_statistics(g, params, (torch.eye(2), torch.ones(2, 1)), "squared_error")
    >>> table = growth.candidates(stats, 1, torch.tanh)
    >>> sorted(map(str, table.items)), table.graph == g
    (['h -> new -> y', 'x -> h -> y', 'x -> new -> h', 'x -> new -> y', 'x -> y'], True)
    """
    count(k)
    graph = gstats.graph
    items: list[Any] = []
    options: dict[str, Any] = {"target": target, "ridge": ridge, "rtol": rtol}
    useful = [n.name for n in graph.nodes if n.name != graph.input and graph.reaches(n.name, graph.output)]
    apart = [
        (u.name, v) for u in graph.nodes for v in useful if u.width and graph.width(v) and not graph.reaches(v, u.name)
    ]
    items += [new_edge(gstats, u, v, **options) for u, v in apart if (u, v) not in graph.edges]
    if k > 0:
        able = [(u, v) for u, v in apart if not gstats.uncompensated((v,), activation)]
        items += [new_node(gstats, u, v, k, activation, **options) for u, v in able]
        items += [wider_node(gstats, n.name, k, **options) for n in graph.nodes if _can_widen(gstats, n)]
    return Candidates(tuple(items), graph)


def _can_widen(gstats: GraphStatistics, node: Node) -> bool:
    graph, name = gstats.graph, node.name
    tied = any(name in e for e in graph.identities) or name in (graph.input, graph.output)
    width = lambda names: sum(graph.width(n) for n in names)
    children = graph.children(name)
    apart = width(graph.parents(name)) > 0 and width(children) > 0
    return apart and not tied and not gstats.uncompensated(children, node.activation)


@door()
def choose_graph_sign(
    graph: Graph,
    params: Any,
    data: Any,
    items: Any,
    loss: str | Loss = "cross_entropy",
    *,
    progress: bool = False,
    check_finite: bool = True,
) -> Any:
    """`choose_sign` for graphs: new units with the better sign of each and its exact one-sided gain, in one more pass.

    items: NewUnits, a list of expansions, or a `Candidates` table; edges and deltas pass as they are.
    Raises as `graph_statistics`.

    >>> import torch, growth
    >>> g = growth.Graph((growth.Node("x", 2), growth.Node("y", 1)))
    >>> params = {"edges": {}, "nodes": {"y": {"bias": torch.zeros(1)}}}
    >>> data = torch.eye(2), torch.tensor([[3.0], [-1.0]])
    >>> stats = growth.graph_statistics(g, params, data, "squared_error")
    >>> new = growth.new_node(stats, "x", "y", 1, torch.relu, bias=False, target="gradient")
    >>> (
    ...     growth.choose_graph_sign(g, params, data, new, "squared_error").gain.round(decimals=3),
    ...     new.gain.round(decimals=3),
    ... )
    (tensor(4.5000), tensor(2.5000))
    """
    listed = list(items.items) if isinstance(items, Candidates) else items if isinstance(items, list) else [items]
    units = [i for i in listed if isinstance(i, NewUnits)]
    sums: list[tuple[Tensor, Tensor]] = []
    samples = 0
    for _, (values, gradients), batch in observe_graph(graph, params, data, loss, progress, check_finite):
        parts = [_sides(i, values, gradients) for i in units]
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, parts)] if sums else parts
        samples += batch
    signed = []
    for i, (up, down) in zip(units, sums):
        _, plus, minus = constants(i.activation or (lambda z: 1.0 * z), up)
        kept, flipped = (minus * down - plus * up) / samples, (plus * down - minus * up) / samples
        signed.append(dataclasses.replace(i, neurons=better_sign(i.neurons, kept, flipped)))
    rest = iter(signed)
    done = [next(rest) if isinstance(i, NewUnits) else i for i in listed]
    if isinstance(items, Candidates):
        return dataclasses.replace(items, items=tuple(done))
    return done if isinstance(items, list) else done[0]


def _sides(item: NewUnits, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Σ (G · Ω_j) max(u, 0) and Σ (G · Ω_j) max(-u, 0) with u = A_j · b2: `[k]` each."""
    g = torch.cat([gradients[n] for n, _ in item.targets], 1)
    u = torch.cat([values[n] for n, _ in item.sources], 1) @ working(item.neurons.fan_in).to(g.dtype).mT
    if item.neurons.fan_in_bias is not None:
        u = u + working(item.neurons.fan_in_bias).to(u.dtype)
    w = g @ working(item.neurons.fan_out).to(g.dtype)
    return (w * u.clamp(min=0)).sum(0), (w * (-u).clamp(min=0)).sum(0)


@door()
def grow_graph(graph: Graph, params: Any, items: Any, *, scale: Scale = 1.0) -> tuple[Graph, Any]:
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
            graph, name = _enlarged(graph, item)
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


def _enlarged(graph: Graph, item: Any) -> tuple[Graph, str]:
    """The graph with one more edge or node or a wider node, and the name of it."""
    if isinstance(item, NewEdge):
        return graph.with_edge(item.source, item.target), f"{item.source}->{item.target}"
    k = item.neurons.fan_in.shape[-2]
    if not item.wider:
        name = graph.free_name(item.node)
        node = Node(name, k, item.activation, item.neurons.fan_in_bias is not None)
        return graph.with_node(node, _sources(item), _targets(item)), name
    parents, children = graph.parents(item.node), graph.children(item.node)
    if not {*_sources(item)} <= {*parents} or not {*_targets(item)} <= {*children}:
        raise ValueError(
            f"{item}: {item.node} has the neighbours {parents} and {children}, expected those of the units"
        )
    return graph.with_width(item.node, graph.width(item.node) + k), item.node


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
    rows = dict(zip(_sources(item), (root * new.fan_in).split([n for _, n in item.sources], 1)))
    columns = dict(zip(_targets(item), (root * new.fan_out).split([n for _, n in item.targets], 0)))

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
