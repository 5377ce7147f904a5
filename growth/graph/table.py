"""Candidates: all that can be added to a graph, with gains, as a table; and the best that go together."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from growth.checks.doors import count, door
from growth.closed_form.neurons import Target
from growth.graph.closed_form import new_edge, new_node, wider_node
from growth.graph.expansions import Expansion, NewEdge, NewUnits, enlarged, sources, targets
from growth.graph.nodes import Graph, Node
from growth.graph.statistics import GraphStatistics
from growth.reading.activations import Activation
from linmaps.checks.annotations import typed
from linmaps.trees import record

By = Literal["gain", "ratio"]


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
    def best(self) -> Expansion:
        """The candidate of the largest gain.  Raises ValueError if there is none."""
        if not self.items:
            raise ValueError(
                "Candidates: is empty, expected at least one; the graph has all edges and no node to widen"
            )
        return self.take(1)[0]

    @typed
    def take(self, n: int, *, by: By = "gain") -> list[Expansion]:
        """The n best that can be added together, which close no cycle: by "gain", or by "ratio", gain per parameter.

        Reads values, so it belongs outside of transforms.  Raises ValueError for another `by`.
        """
        if by not in get_args(By):
            raise ValueError(f'by: got {by!r}, expected "gain" or "ratio"')
        graph = self.graph
        chosen: list[Expansion] = []
        for i in self._order(by):
            item = self.items[i]
            if len(chosen) < n and not any(graph.reaches(v, u) for u in sources(item) for v in targets(item)):
                graph = enlarged(graph, item)[0]
                chosen.append(item)
        return chosen

    def _order(self, by: By) -> list[int]:
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


@door()
def candidates(
    gstats: GraphStatistics,
    k: int,
    activation: Activation | None,
    *,
    target: Target = "residual",
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
) -> Candidates:
    """All edges that are not there, a new node of k units between any two nodes, and k more units of any inner node.

    Nothing that closes a cycle, ends in a width 0, leads nowhere or lacks a bias that it needs is listed.
    activation: of new nodes.  One with a kink at 0 has the mean of both signs as gain, until `choose_graph_sign`.
    target, ridge, rtol: as in `new_edge` and `new_node`.

    >>> import torch, growth, linmaps
    >>> nodes = growth.Node("x", 2), growth.Node("h", 1, torch.tanh), growth.Node("y", 1)
    >>> g = growth.Graph(nodes, ("x->h", "h->y"))
    >>> params = linmaps.trees.map(torch.ones_like, g.init(torch.Generator()))
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
