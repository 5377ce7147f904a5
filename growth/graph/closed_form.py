"""The best changed edges, new edges, new nodes and wider nodes of a graph, in closed form.

Sources u and targets v side by side: r sum of the widths of the sources, q of the targets; k new units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from growth.checks.doors import count, door
from growth.closed_form.delta import Delta, make_delta, optimal_delta
from growth.closed_form.neurons import Target, optimal_neurons
from growth.graph.expansions import NewEdge, NewUnits, NodeDelta
from growth.graph.nodes import Graph, Node
from growth.graph.statistics import GraphStatistics, check_targets
from growth.moments.first_order import Statistics
from growth.moments.metric import schur
from growth.moments.solvers import check_solver, pseudo_solve
from growth.reading.activations import Activation
from linmaps.numerics.dtypes import working


@door()
def node_delta(
    gstats: GraphStatistics, node: str, *, ridge: float | Tensor = 0.0, rtol: float | None = None
) -> NodeDelta:
    """The change of all weighted edges into a node and of its bias together that is closest to the loss gradient.

        (ΔW_u)_u, Δb = argmin E |G_v - Σ_u ΔW_u h_u - Δb|²,  of minimum norm,     decrease = slope of the mean loss

    It is subtracted.  Identity edges stay as they are.  ridge, rtol: as in `optimal_delta`.
    Raises ValueError for the input, for an unknown node, a negative ridge or rtol.
    Source: Verbockhaven et al., "Growing tiny networks" (2024), for a sum node.

    >>> import torch, growth
    >>> g = growth.Graph((growth.Node("x", 2), growth.Node("y", 1, bias=False)), ("x->y",))
    >>> params = {"edges": {"x->y": {"weight": torch.zeros(1, 2)}}, "nodes": {}}
    >>> data = torch.eye(2), torch.tensor([[1.0], [3.0]])
    >>> growth.node_delta(growth.graph_statistics(g, params, data, "squared_error"), "y").change["edges"]
    {'x->y': {'weight': tensor([[-1., -3.]])}}
    """
    return _as_change(gstats.graph, node, optimal_delta(gstats.between((), (node,)), ridge, rtol))


def _as_change(graph: Graph, node: str, delta: Delta) -> NodeDelta:
    """A delta whose columns are those of `GraphStatistics.inputs`, edge by edge."""
    order = [n.name for n in graph.nodes if n.name in graph.parents(node)]
    blocks = delta.weight.split([graph.width(u) for u in order], 1) if order else ()
    edges = {f"{u}->{node}": {"weight": w} for u, w in zip(order, blocks)}
    nodes = {} if delta.bias is None else {node: {"bias": delta.bias}}
    return NodeDelta({"edges": edges, "nodes": nodes}, delta.decrease, node)


@door()
def new_edge(
    gstats: GraphStatistics,
    u: str,
    v: str,
    *,
    target: Target = "residual",
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
) -> NewEdge:
    """The best new edge u -> v, to be added: weight t W, and its slope of the mean loss.

    target="gradient": W = argmin E |-G_v - W h_u|², alone: gain = E |W h_u|².
    target="residual": with b1 the values that enter v already (and its constant), h⊥ = h_u - C b1 what they do not
    explain of h_u, and R = -(G_v - ΔW b1) what changing those edges leaves,

        W = argmin E |R - W h⊥|²,     gain = E |W h⊥|²,     delta = W C,

    and the delta is subtracted along, at the same amplitude.  This is what joint least squares over the old edges and
    the new one have beyond `node_delta`: both decreases add.  Gains are never negative, and exact at any activation.
    ridge, rtol: as in `optimal_delta`.

    Raises ValueError where there is such an edge, or where it would close a cycle.

    >>> import torch, growth
    >>> g = growth.Graph((growth.Node("x", 2), growth.Node("y", 1)))
    >>> data = torch.eye(2), torch.tensor([[1.0], [3.0]])
    >>> params = {"edges": {}, "nodes": {"y": {"bias": torch.zeros(1)}}}
    >>> stats = growth.graph_statistics(g, params, data, "squared_error")
    >>> (
    ...     growth.new_edge(stats, "x", "y").weight.round(decimals=3),
    ...     growth.new_edge(stats, "x", "y", target="gradient").weight,
    ... )
    (tensor([[-1.,  1.]]), tensor([[1., 3.]]))
    """
    check_solver(ridge, rtol)
    if target not in get_args(Target):
        raise ValueError(f'target: got {target!r}, expected "residual" or "gradient"')
    graph = gstats.graph
    if (u, v) in graph.edges:
        raise ValueError(f"{u}->{v}: there is such an edge, expected none; change it with node_delta")
    _check_acyclic(graph, (u,), (v,))
    stats = gstats.between((u,), (v,), bias=False)
    N, metric, size, fit = -working(stats.M_prev), working(stats.S_prev), None, None
    if target == "residual":
        fit = pseudo_solve(working(stats.S), working(stats.P).mT, ridge, rtol).mT
        metric, size = schur(stats, fit)
        N = N + fit @ working(stats.M)
    weight = pseudo_solve(metric, N, ridge, rtol, size=size).mT
    delta = None if fit is None else _as_change(graph, v, make_delta(stats, weight @ fit))
    return NewEdge(weight, (weight * N.mT).sum(), delta, u, v)


@door()
def new_node(
    gstats: GraphStatistics,
    sources: str | Sequence[str],
    targets: str | Sequence[str],
    k: int,
    activation: Activation | None,
    *,
    name: str | None = None,
    bias: bool = True,
    target: Target = "residual",
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
) -> NewUnits:
    """A new node of k units from the values of the sources to the targets: `optimal_neurons` of the nodes side by side.

    gain is the slope of the mean loss for a smooth activation; for one with a kink at 0 see `choose_graph_sign`.
    target="residual" leaves to the edges into the targets what `node_delta` does, target by target; units count by their
    linear part there, so where every source has an edge to the target already nothing is left: take target="gradient".
    name: of the new node; None: new, new2, ...  Other arguments: as in `optimal_neurons`.

    Raises ValueError where the node would close a cycle, for a name that is there, and for an activation with
    sigma(0) != 0 before a target without a bias.

    >>> import torch, growth
    >>> g = growth.Graph((growth.Node("x", 2), growth.Node("y", 1)), ("x->y",))
    >>> stats = growth.graph_statistics(g, g.init(torch.Generator()), (torch.eye(2), torch.ones(2, 1)), "squared_error")
    >>> growth.new_node(stats, "x", "y", 3, torch.tanh).neurons.fan_in.shape
    torch.Size([3, 2])
    """
    count(k)
    u, v = ((s,) if isinstance(s, str) else tuple(s) for s in (sources, targets))
    name = gstats.graph.free_name("new") if name is None else name
    if any(n.name == name for n in gstats.graph.nodes):
        raise ValueError(f"name: {name} is a node of the graph already, expected a new name")
    _check_acyclic(gstats.graph, u, v)
    return _units(gstats, u, v, k, Node(name, k, activation, bias), False, target, {"ridge": ridge, "rtol": rtol})


@door()
def wider_node(
    gstats: GraphStatistics,
    node: str,
    k: int,
    *,
    target: Target = "residual",
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
) -> NewUnits:
    """k more units of a node, from all its predecessors to all its successors (its width may be 0).

    Arguments and gain: as in `new_node`.  Raises ValueError for input and output, and for a node with an identity edge,
    whose width is that of another node.

    >>> import torch, growth
    >>> g = growth.Graph((growth.Node("x", 2), growth.Node("h", 0, torch.tanh), growth.Node("y", 1)), ("x->h", "h->y"))
    >>> stats = growth.graph_statistics(g, g.init(torch.Generator()), (torch.eye(2), torch.ones(2, 1)), "squared_error")
    >>> growth.wider_node(stats, "h", 1).neurons.fan_out.shape
    torch.Size([1, 1])
    """
    graph = gstats.graph
    if node in (graph.input, graph.output):
        raise ValueError(f"{node}: got the input or output, whose width the data give; expected another node")
    tied = [f"{u}->{v}" for u, v in graph.identities if node in (u, v)]
    if tied:
        raise ValueError(f"{node}: has the identity edges {tied}, which fix its width; widen a node without any")
    sources, targets = graph.parents(node), graph.children(node)
    if not targets:
        raise ValueError(f"{node}: has no successor, expected one at least; add an edge from it first")
    return _units(gstats, sources, targets, k, graph.node(node), True, target, {"ridge": ridge, "rtol": rtol})


def _units(
    gstats: GraphStatistics,
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    k: int,
    node: Node,
    wider: bool,
    target: Target,
    solver: dict[str, Any],
) -> NewUnits:
    graph = gstats.graph
    stats = gstats.between(sources, targets, node.activation, bias=node.bias)
    bare = gstats.uncompensated(targets, node.activation)
    if bare:
        raise ValueError(
            f"{node.name}: its activation is not 0 at 0 and {bare} have no bias, expected 0 or a bias: new units would add a "
            "constant that nothing compensates; give them a bias (zero is enough)"
        )
    delta = _side_by_side(gstats, targets, stats, solver) if target == "residual" else None
    neurons = optimal_neurons(stats, k, target, **solver, delta=delta)
    sizes = lambda names: tuple((n, graph.width(n)) for n in names)
    return NewUnits(neurons, sizes(sources), sizes(targets), node.name, node.activation, wider)


def _side_by_side(
    gstats: GraphStatistics, targets: tuple[str, ...], stats: Statistics, solver: dict[str, Any]
) -> Delta:
    """The deltas of all targets as one, zero at edges that are not there."""
    graph, rows = gstats.graph, []
    for v in targets:
        change = node_delta(gstats, v, **solver).change
        zero = lambda n, v=v: stats.M.new_zeros(graph.width(v), n)
        edges = {u: change["edges"].get(f"{u}->{v}", {"weight": zero(graph.width(u))}) for u in gstats.inputs(targets)}
        bias = change["nodes"][v]["bias"][:, None] if v in change["nodes"] else zero(int(stats.bias_after))
        rows.append(torch.cat([*(e["weight"] for e in edges.values()), bias], 1))
    return make_delta(stats, torch.cat(rows, 0))


def _check_acyclic(graph: Graph, sources: Sequence[str], targets: Sequence[str]) -> None:
    check_targets(graph, targets)
    if not sources or len(set(sources)) < len(sources):
        raise ValueError(f"sources: got {list(sources)}, expected different nodes, one at least")
    for u in sources:
        graph.node(u)
        back = [v for v in targets if graph.reaches(v, u)]
        if back:
            raise ValueError(
                f"{u} -> {back[0]}: would close a cycle, since {back[0]} is or leads to {u}; expected a node that does not"
            )
