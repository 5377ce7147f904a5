"""What can be added to a graph: a changed node, a new edge, new units; and the graph with it.

r sum of the widths of the sources, q of the targets; k new units.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from growth.closed_form.units import Neurons
from growth.graph.nodes import Graph, Node
from growth.reading.activations import Activation
from linmaps.trees import record
from linmaps.trees.printed import cell, on_a_line, sizes

Sizes = tuple[tuple[str, int], ...]


@record(static=("node",))
class NodeDelta:
    """A change of all weighted edges into a node and of its bias, to be subtracted: a part of params.

    decrease: slope of the mean loss along it, as in `Delta`.

    >>> import torch
    >>> NodeDelta({"edges": {}, "nodes": {"y": {"bias": torch.ones(2)}}}, torch.tensor(0.5), "y").node
    'y'
    """

    change: dict[str, Any]
    decrease: Tensor
    node: str

    def __repr__(self) -> str:
        return on_a_line(self, [self.node, f"decrease = {cell(self.decrease)}"], self.decrease)


@record(static=("source", "target"))
class NewEdge:
    """A new edge: weight `[q, r]`, to be added; gain: slope of the mean loss; delta: a change that goes along, or None.

    >>> import torch
    >>> NewEdge(torch.ones(2, 3), torch.tensor(0.5), None, "x", "y").parameters
    6
    """

    weight: Tensor
    gain: Tensor
    delta: NodeDelta | None
    source: str
    target: str

    @property
    def parameters(self) -> int:
        """How many parameters it adds."""
        return self.weight.shape[-1] * self.weight.shape[-2]

    def __repr__(self) -> str:
        return on_a_line(self, [self, sizes(self.weight), f"gain = {cell(self.gain)}"], self.gain)

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


@record(static=("sources", "targets", "node", "activation", "wider"))
class NewUnits:
    """New units between nodes: neurons (fan_in `[k, r]`, fan_out `[q, k]`), of a new node or of one that is there.

    sources, targets: names and widths, side by side in fan_in and fan_out; node: name; wider: whether it is there.

    >>> import torch
    >>> z = torch.zeros(())
    >>> neurons = Neurons(torch.ones(1, 3), torch.ones(1), torch.ones(2, 1), torch.ones(1), torch.ones(1), z + 1, z)
    >>> str(NewUnits(neurons, (("x", 3),), (("y", 2),), "h", torch.relu, False))
    'x -> h -> y'
    """

    neurons: Neurons
    sources: Sizes
    targets: Sizes
    node: str
    activation: Activation | None
    wider: bool

    @property
    def gain(self) -> Tensor:
        """Slope of the mean loss."""
        return self.neurons.gain

    @property
    def parameters(self) -> int:
        """How many parameters they add."""
        k, r = self.neurons.fan_in.shape[-2:]
        return k * (r + (self.neurons.fan_in_bias is not None) + self.neurons.fan_out.shape[-2])

    def __repr__(self) -> str:
        return on_a_line(self, [self, f"{sizes(self.neurons.gains, 1)} units", f"gain = {cell(self.gain)}"], self.gain)

    def __str__(self) -> str:
        return " -> ".join((" + ".join(n for n, _ in self.sources), self.node, " + ".join(n for n, _ in self.targets)))


Expansion = NodeDelta | NewEdge | NewUnits


def sources(item: Any) -> list[str]:
    """The names of the nodes that an edge or new units come from."""
    return [item.source] if isinstance(item, NewEdge) else [n for n, _ in item.sources]


def targets(item: Any) -> list[str]:
    """The names of the nodes that they lead to."""
    return [item.target] if isinstance(item, NewEdge) else [n for n, _ in item.targets]


def enlarged(graph: Graph, item: Any) -> tuple[Graph, str]:
    """The graph with one more edge or node or a wider node, and the name of it."""
    if isinstance(item, NewEdge):
        return graph.with_edge(item.source, item.target), f"{item.source}->{item.target}"
    k = item.neurons.fan_in.shape[-2]
    if not item.wider:
        name = graph.free_name(item.node)
        node = Node(name, k, item.activation, item.neurons.fan_in_bias is not None)
        return graph.with_node(node, sources(item), targets(item)), name
    parents, children = graph.parents(item.node), graph.children(item.node)
    if not {*sources(item)} <= {*parents} or not {*targets(item)} <= {*children}:
        raise ValueError(
            f"{item}: {item.node} has the neighbours {parents} and {children}, expected those of the units"
        )
    return graph.with_width(item.node, graph.width(item.node) + k), item.node
