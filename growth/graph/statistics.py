"""First-order statistics of all nodes of a graph in one pass: all that its growth needs.

n samples (sums over positions, means over samples); D sum of all widths, T that without the input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from fisher.checks.placements import whole
from fisher.distributed.marks import Symmetric
from fisher.distributed.stages import Reduce, callable_or_none, over_all
from growth.checks.data import examples
from growth.checks.doors import door
from growth.checks.losses import Loss, LossName, per_sample
from growth.graph.nodes import Graph
from growth.moments.first_order import Statistics
from growth.reading.activations import Activation, at_zero, sloped
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.numerics.dtypes import working
from linmaps.trees import record
from linmaps.trees.printed import cell, on_a_line

MEANS = ("S", "M", "E")
Rows = tuple[dict[str, Tensor], dict[str, Tensor]]


@record(static=("graph",))
class GraphStatistics:
    """What one pass leaves of the data; means over samples, so `a + b` merges passes over different samples.

    With h `[D+1]` the values of all nodes in the order of `graph.nodes` and a last 1, and G `[T]` the gradients
    d loss_i / d (what goes into the activation) of all nodes but the input (no minus):

        S = E[h h'] [D+1, D+1]        M = E[h G'] [D+1, T]        E = E[G G'] [T, T]

    count: samples; positions: rows over all samples.  `between` cuts out what a growth of some nodes needs.

    >>> import torch, growth
    >>> g = growth.Graph((growth.Node("x", 2), growth.Node("y", 1)), ("x->y",))
    >>> params = trees.zeros_like(g.init(torch.Generator()))
    >>> s = growth.graph_statistics(g, params, (torch.eye(2), torch.ones(2, 1)), "squared_error")
    >>> (s + s).count, torch.equal((s + s).S, s.S)
    (tensor(4.), True)
    """

    S: Tensor
    M: Tensor
    E: Tensor
    count: Tensor
    positions: Tensor
    graph: Graph

    def __repr__(self) -> str:
        nodes = " ".join(f"{node.name}[{node.width}]" for node in self.graph.nodes)
        return on_a_line(self, [f"{cell(self.count)} samples", nodes], self.S)

    @typed
    def __add__(self, other: GraphStatistics) -> GraphStatistics:
        if not isinstance(other, GraphStatistics):
            return NotImplemented
        if self.graph != other.graph:
            raise ValueError("GraphStatistics + GraphStatistics: got two graphs, expected statistics of one")
        count = self.count + other.count
        share = other.count / count
        means: dict[str, Any] = {n: torch.lerp(getattr(self, n), getattr(other, n), share) for n in MEANS}
        return dataclasses.replace(self, **means, count=count, positions=self.positions + other.positions)

    @typed
    def between(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        activation: Activation | None = None,
        *,
        bias: bool = True,
    ) -> Statistics:
        """The `Statistics` of units from the sources to the targets, as if these were the two layers of a pair.

        The input of `before` is the values of the sources side by side (and 1 if the units have a bias), the input of
        `after` those of all nodes with a weighted edge to some target (and 1 if a target has a bias), in the order of
        `graph.nodes`; G is that of the targets side by side.  Where targets have different predecessors, only a delta
        that is zero at edges that are not there belongs to them: `optimal_delta` of the answer is not.

        Raises ValueError for unknown or repeated nodes and for the input as a target.

        >>> import torch, growth
        >>> g = growth.Graph((growth.Node("x", 2), growth.Node("y", 1)), ("x->y",))
        >>> params = trees.zeros_like(g.init(torch.Generator()))
        >>> s = growth.graph_statistics(g, params, (torch.eye(2), torch.ones(2, 1)), "squared_error")
        >>> growth.optimal_neurons(s.between(["x"], ["y"]), 1, "gradient").gain
        tensor(1.)
        """
        check_targets(self.graph, targets)
        inside = self.inputs(targets)
        b2, b1 = self._rows(sources, bias), self._rows(inside, self.one(targets))
        g = self._rows(targets, False) - self.graph.nodes[0].width
        S, M = self.S.index_select(0, b1), self.M.index_select(1, g)
        S_prev = self.S.index_select(0, b2)
        sigma0, plus, minus = sloped(activation or (lambda z: 1.0 * z), self.S, f"units in front of {list(targets)}")
        return Statistics(
            S=S.index_select(1, b1),
            M=M.index_select(0, b1),
            S_prev=S_prev.index_select(1, b2),
            M_prev=M.index_select(0, b2),
            P=S_prev.index_select(1, b1),
            E=self.E.index_select(0, g).index_select(1, g),
            count=self.count,
            positions=self.positions,
            sigma0=sigma0,
            slope_plus=plus,
            slope_minus=minus,
            bias_before=bias,
            bias_after=self.one(targets),
        )

    @typed
    def inputs(self, targets: Sequence[str]) -> tuple[str, ...]:
        """The nodes with a weighted edge to some target, in the order of the nodes."""
        inside = {u for v in targets for u in self.graph.parents(v)}
        return tuple(n.name for n in self.graph.nodes if n.name in inside)

    @typed
    def one(self, targets: Sequence[str]) -> bool:
        """Whether some target has a bias."""
        return any(self.graph.has_bias(v) for v in targets)

    @typed
    def uncompensated(self, targets: Sequence[str], activation: Activation | None) -> list[str]:
        """The targets without the bias that units with sigma(0) != 0 need."""
        shifted = activation is not None and bool(at_zero(activation, self.S))
        return [v for v in targets if shifted and not self.graph.has_bias(v)]

    def _rows(self, names: Sequence[str], one: bool) -> Tensor:
        """Where these nodes are in h, and the 1."""
        start, where = 0, {}
        for n in self.graph.nodes:
            where[n.name] = range(start, start + n.width)
            start += n.width
        for name in names:
            self.graph.node(name)
        index = [i for name in names for i in where[name]] + ([start] if one else [])
        return torch.tensor(index, dtype=torch.long, device=self.S.device)


def check_targets(graph: Graph, targets: Sequence[str]) -> None:
    """Raise a ValueError unless these are nodes of the graph, each once, without the input."""
    for v in targets:
        graph.node(v)
    if not targets or graph.input in targets or len(set(targets)) < len(targets):
        raise ValueError(f"targets: got {list(targets)}, expected different nodes, not the input {graph.input}")


@door()
def graph_statistics(
    graph: Graph,
    params: Any,
    data: Any,
    loss: LossName | Loss = "cross_entropy",
    *,
    progress: bool = False,
    check_finite: bool = True,
    reduce: Reduce | None = None,
) -> GraphStatistics:
    """The `GraphStatistics` of `graph.apply(params, x)` on `data`.

    The loss that is differentiated is the sum over samples of the losses of the samples, as in `statistics`.
    Cost: one forward, one backward, three matrix products of sizes D², D T and T² per batch; memory of one batch.
    data: `(x [B, ..., n], target)`, or an iterable of those.  loss, progress, check_finite, reduce: as in `statistics`.
    Differentiable in params, and maps over stacked params.

    Raises ValueError: params of another graph, a loss that is not per sample, data without a sample or not finite.
    Source: Verbockhaven et al., "Growing tiny networks" (2024), for sum nodes.

    >>> import torch, growth
    >>> g = growth.Graph((growth.Node("x", 2), growth.Node("y", 3)), ("x->y",))
    >>> s = growth.graph_statistics(g, g.init(torch.Generator()), (torch.eye(2), torch.tensor([0, 2])))
    >>> s.S.shape, s.M.shape, s.E.shape
    (torch.Size([6, 6]), torch.Size([6, 3]), torch.Size([3, 3]))
    """
    callable_or_none(reduce)
    params, none = whole(params), reduce is not None
    sums: list[Tensor] = []
    samples = positions = 0
    for name, (values, gradients), batch in observe_graph(graph, params, data, loss, progress, check_finite, none):
        some = values[graph.input]
        h = torch.cat([*(values[n.name] for n in graph.nodes), some.new_ones(some.shape[0], 1)], 1)
        g = torch.cat([gradients[n.name] for n in graph.nodes[1:]], 1)
        new = [h.mT @ h, h.mT @ g, g.mT @ g]
        if check_finite and not all(t is None or bool(t.isfinite().all()) for t in map(checks.values, new)):
            raise ValueError(
                f"{name}: x and target are finite but the statistics are not, expected finite values and gradients of all "
                "nodes; look for an overflow in an activation or the loss, or pass check_finite=False"
            )
        sums = [a + b for a, b in zip(sums, new)] if sums else new
        samples, positions = samples + batch, positions + some.shape[0]
    own = [Symmetric(sums[0]), sums[1], Symmetric(sums[2]), sums[0].new_full((), positions).double()] if sums else None
    (*total, seen), n = over_all(reduce, own, samples)
    S, M, E = (t / n for t in total)
    count, rows = (S.new_zeros(()) + number for number in (n, seen.to(S)))
    return GraphStatistics(S, M, E, count, rows, graph)


def observe_graph(
    graph: Graph,
    params: Any,
    data: Any,
    loss: LossName | Loss,
    progress: bool,
    check_finite: bool,
    none: bool = False,
) -> Iterator[tuple[str, Rows, int]]:
    """For each batch that is not empty: its name, values and gradients `[rows, n_v]` of the nodes, and its samples."""
    each = per_sample(loss)
    for name, x, target, samples in examples(data, params, progress=progress, check_finite=check_finite, none=none):
        if not isinstance(x, Tensor) or x.ndim < 2:
            raise ValueError(f"{name}: x is {type(x).__name__}, expected a tensor [B, ..., {graph.nodes[0].width}]")

        def total(taps: dict[str, Tensor], x: Tensor = x, target: Any = target) -> tuple[Tensor, dict[str, Tensor]]:
            values = graph.values(params, x, taps)
            return each(values[graph.output], target).sum(), values

        zeros = {n.name: x.new_zeros((*x.shape[:-1], n.width)) for n in graph.nodes[1:]}
        gradients, values = grad(total, has_aux=True)(zeros)
        flat = lambda t: working(t).flatten(0, -2)
        yield name, (trees.map(flat, values), trees.map(flat, gradients)), samples
