"""Networks whose nodes sum what their edges bring: a static graph, and params that are a plain tree.

n_v width of node v, `x [B, ..., n]`; an edge u -> v holds a matrix `[n_v, n_u]`, an identity edge holds nothing.
"""

from __future__ import annotations

import dataclasses
import graphlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from growth.checks.doors import count
from growth.reading.activations import Activation
from linmaps import trees
from linmaps.checks.annotations import typed

Edge = tuple[str, str]


@trees.static
@dataclasses.dataclass(frozen=True)
class Node:
    """A node of a `Graph`: its name, its width (0 is a node still to be grown), activation (None: none), bias.

    Raises ValueError for a name with "->" or "." in it and for a negative width, TypeError for other kinds.

    >>> Node("hidden", 3).width
    3
    """

    name: str
    width: int
    activation: Activation | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "->" in self.name or "." in self.name:
            raise ValueError(f'Node: name is {self.name!r}, expected a string without "->" and "."')
        count(self.width, f"Node {self.name}: width", cure="a node holds units")
        if self.activation is not None and not callable(self.activation):
            raise TypeError(f"Node {self.name}: activation is {self.activation!r}, expected a callable of one tensor")


@trees.static
@dataclasses.dataclass(frozen=True)
class Graph:
    """A directed acyclic network: the first node is the input, the last the output, in between any order.

        h_v = σ_v(b_v + Σ_{u->v} W_uv h_u + Σ_{u=>v} h_u)

    over the weighted edges u -> v and the identity edges u => v (residual sums, equal widths); one bias per node, none at
    the input.  edges, identities: tuples of (u, v), or of strings "u->v".
    params are `{"edges": {"u->v": {"weight": [n_v, n_u]}}, "nodes": {"v": {"bias": [n_v]}}}`.

    Raises ValueError for a cycle (it names it), an unknown or repeated node or edge, an edge into the input, an input
    with an activation, an identity edge between different widths.

    >>> import torch
    >>> g = Graph((Node("x", 2), Node("h", 0, torch.tanh), Node("y", 2)), ("x->h", "h->y"), identities=("x->y",))
    >>> params = g.init(torch.Generator().manual_seed(0))
    >>> params["edges"]["h->y"]["weight"].shape, params["nodes"]["y"]["bias"].shape
    (torch.Size([2, 0]), torch.Size([2]))
    >>> g.apply(trees.zeros_like(params), torch.ones(3, 2)).shape
    torch.Size([3, 2])
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()
    identities: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        object.__setattr__(self, "edges", tuple(_pair(e) for e in self.edges))
        object.__setattr__(self, "identities", tuple(_pair(e) for e in self.identities))
        names = [n.name for n in self.nodes]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"Graph: nodes are {names}, expected at least input and output, each name once")
        if self.nodes[0].activation is not None:
            raise ValueError(f"Graph: the input {names[0]} has an activation, expected none; put a node behind it")
        for kind in (self.edges, self.identities):
            for u, v in kind:
                if u not in names or v not in names:
                    raise ValueError(f"Graph: edge {u}->{v} names an unknown node, expected some of {names}")
                if v == names[0]:
                    raise ValueError(f"Graph: edge {u}->{v} leads into the input, the first node; expected none")
                if kind.count((u, v)) > 1:
                    raise ValueError(f"Graph: edge {u}->{v} is given {kind.count((u, v))} times, expected once")
        for u, v in self.identities:
            if self.width(u) != self.width(v):
                raise ValueError(
                    f"Graph: identity edge {u}->{v} joins widths {self.width(u)} and {self.width(v)}, expected equal "
                    "ones; make it a weighted edge"
                )
        self.order()

    @typed
    def node(self, name: str) -> Node:
        """The node of that name.  Raises ValueError if there is none."""
        for n in self.nodes:
            if n.name == name:
                return n
        raise ValueError(f"{name}: no such node, expected one of {[n.name for n in self.nodes]}")

    @typed
    def width(self, name: str) -> int:
        """The width of a node."""
        return self.node(name).width

    @property
    def input(self) -> str:
        """The name of the first node."""
        return self.nodes[0].name

    @property
    def output(self) -> str:
        """The name of the last node."""
        return self.nodes[-1].name

    @typed
    def parents(self, name: str) -> tuple[str, ...]:
        """The nodes with a weighted edge into this one, in the order of the edges."""
        return tuple(u for u, v in self.edges if v == name)

    @typed
    def children(self, name: str) -> tuple[str, ...]:
        """The nodes with a weighted edge from this one, in the order of the edges."""
        return tuple(v for u, v in self.edges if u == name)

    @typed
    def has_bias(self, name: str) -> bool:
        """Whether the node has a bias; the input has none."""
        return name != self.input and self.node(name).bias

    def order(self) -> tuple[str, ...]:
        """The names in topological order.  Raises ValueError if there is a cycle."""
        before: dict[str, list[str]] = {n.name: [] for n in self.nodes}
        for u, v in (*self.edges, *self.identities):
            before[v].append(u)
        try:
            return tuple(graphlib.TopologicalSorter(before).static_order())
        except graphlib.CycleError as error:
            path = "->".join(error.args[1])
            raise ValueError(f"Graph: cycle {path}, expected an acyclic graph; leave out one of these edges") from None

    @typed
    def reaches(self, u: str, v: str) -> bool:
        """Whether v is u or comes after it: then an edge v -> u would close a cycle."""
        seen, front = {u}, [u]
        while front:
            w = front.pop()
            ahead = [b for a, b in (*self.edges, *self.identities) if a == w and b not in seen]
            seen.update(ahead)
            front.extend(ahead)
        return v in seen

    @typed
    def with_edge(self, u: str, v: str) -> Graph:
        """The graph with one more weighted edge."""
        return dataclasses.replace(self, edges=(*self.edges, (u, v)))

    @typed
    def with_node(self, node: Node, sources: Sequence[str], targets: Sequence[str]) -> Graph:
        """The graph with one more node, before the output in the list, and edges from sources and to targets."""
        edges = [(u, node.name) for u in sources] + [(node.name, v) for v in targets]
        nodes = (*self.nodes[:-1], node, self.nodes[-1])
        return dataclasses.replace(self, nodes=nodes, edges=(*self.edges, *edges))

    @typed
    def with_width(self, name: str, width: int) -> Graph:
        """The graph with a node of another width."""
        nodes = tuple(dataclasses.replace(n, width=width) if n.name == name else n for n in self.nodes)
        return dataclasses.replace(self, nodes=nodes)

    @typed
    def free_name(self, stem: str) -> str:
        """stem, stem2, stem3, ...: the first that is no node."""
        taken, number = {n.name for n in self.nodes}, 1
        while (name := stem if number == 1 else f"{stem}{number}") in taken:
            number += 1
        return name

    def shapes(self) -> dict[tuple[str, str, str], tuple[int, ...]]:
        """The shape of each leaf of params by its path."""
        weights = {("edges", f"{u}->{v}", "weight"): (self.width(v), self.width(u)) for u, v in self.edges}
        return weights | {("nodes", n.name, "bias"): (n.width,) for n in self.nodes if self.has_bias(n.name)}

    @typed
    def init(
        self, generator: torch.Generator, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> dict[str, Any]:
        """Params uniform in ±1/√(total width of the weighted edges into the node), as torch.nn.Linear; 0 if that is 0."""
        params: dict[str, Any] = {"edges": {}, "nodes": {}}
        for (kind, name, leaf), shape in self.shapes().items():
            total = sum(self.width(u) for u in self.parents(name.split("->")[-1]))
            noise = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
            params[kind][name] = {leaf: ((2 * noise - 1) / total**0.5 if total else 0 * noise).to(device)}
        return params

    def check(self, params: Any) -> None:
        """Raise a ValueError with the path unless params have the leaves and shapes of this graph."""
        got, want = dict(zip(trees.paths(params), trees.leaves(params))), self.shapes()
        if got.keys() != want.keys():
            missing, extra = (
                sorted(trees.path_str(p) for p in a - b) for a, b in ((want.keys(), got), (got.keys(), want))
            )
            raise ValueError(f"params: missing {missing[:5]}, unexpected {extra[:5]}; give the params of this graph")
        for path, shape in want.items():
            if tuple(got[path].shape) != shape:
                raise ValueError(
                    f"params: {trees.path_str(path)} has shape {tuple(got[path].shape)}, expected {shape}; give the "
                    "params of this graph, map over an ensemble with torch.func.vmap"
                )

    @typed
    def values(self, params: Any, x: Tensor, taps: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The value `[B, ..., n_v]` of each node; taps are added to what goes into the activations."""
        self.check(params)
        if x.ndim == 0 or x.shape[-1] != self.nodes[0].width:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected [..., {self.nodes[0].width}], width of {self.input}"
            )
        h = {self.input: x}
        for v in self.order():
            if v == self.input:
                continue
            terms = [F.linear(h[u], params["edges"][f"{u}->{v}"]["weight"]) for u in self.parents(v)]
            terms += [h[a] for a, b in self.identities if b == v]
            terms += [params["nodes"][v]["bias"]] if self.has_bias(v) else []
            terms += [taps[v]] if taps is not None else []
            total = sum(terms[1:], terms[0]) if terms else x.new_zeros(())
            shape = *x.shape[:-1], self.width(v)
            total = total if total.shape == shape else total.expand(shape)  # a node that nothing enters is constant
            activation = self.node(v).activation
            h[v] = total if activation is None else activation(total)
        return h

    @typed
    def apply(self, params: Any, x: Tensor) -> Tensor:
        """The value of the output: x `[..., n]` of any leading axes -> `[..., n_out]`."""
        return self.values(params, x)[self.output]


def _pair(edge: Any) -> Edge:
    parts = tuple(edge.split("->")) if isinstance(edge, str) else edge
    if not isinstance(parts, (tuple, list)) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
        raise TypeError(f'Graph: edge {edge!r}, expected (u, v) or "u->v"')
    return parts[0], parts[1]
