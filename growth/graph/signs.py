"""The better sign of each new unit of a graph, for activations with a kink at 0."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor

from growth.checks.doors import door
from growth.checks.losses import Loss, LossName
from growth.closed_form.signs import better_sign, one_sided, signed_gains
from growth.graph.expansions import NewUnits
from growth.graph.nodes import Graph
from growth.graph.statistics import observe_graph
from growth.graph.table import Candidates
from growth.reading.activations import sloped
from linmaps.numerics.dtypes import working
from linmaps.trees.tree import Tree


@door()
def choose_graph_sign(
    graph: Graph,
    params: Any,
    data: Any,
    items: Tree,
    loss: LossName | Loss = "cross_entropy",
    *,
    progress: bool = False,
    check_finite: bool = True,
) -> Tree:
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
    for i, both in zip(units, sums):
        _, plus, minus = sloped(i.activation or (lambda z: 1.0 * z), both[0], "items")
        signed.append(dataclasses.replace(i, neurons=better_sign(i.neurons, *signed_gains(both, plus, minus, samples))))
    rest = iter(signed)
    done = [next(rest) if isinstance(i, NewUnits) else i for i in listed]
    if isinstance(items, Candidates):
        return cast(Tree, dataclasses.replace(items, items=tuple(done)))
    return cast(Tree, done if isinstance(items, list) else done[0])


def _sides(item: NewUnits, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`one_sided` sums of the units, from values of their sources and gradients of their targets."""
    g = torch.cat([gradients[n] for n, _ in item.targets], 1)
    b2 = torch.cat([values[n] for n, _ in item.sources], 1)
    return one_sided(item.neurons, b2, g @ working(item.neurons.fan_out).to(g.dtype))
