"""What goes along when a graph grows: states with zeros for new units, and for the leaves of new edges and nodes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from growth.carry.state import grow_like
from growth.checks.doors import door
from linmaps import trees
from linmaps.trees.tree import Tree


@door()
def carry_graph(state: Tree, params: Any, grown: Any) -> Tree:
    """`grow_like` for grown graphs: `state` with zeros for new units, and for the leaves of new edges and nodes.

    Trees shaped like params, anywhere in the state, get the structure of grown; so do lists with one tensor per leaf
    (leaf order of optree).  In a `torch.optim` state dict of one parameter group, made over the leaves in that order
    (`linmaps.trees.leaves(params)`), entries are renumbered; leaves that are new have none, as before their first step.

    Raises ValueError where grown lacks leaves of params or has smaller ones, for several parameter groups, and where
    `grow_like` does.

    >>> import torch
    >>> old = {"edges": {}, "nodes": {"y": {"bias": torch.ones(1)}}}
    >>> new = {"edges": {"x->y": {"weight": torch.ones(1, 1)}}, "nodes": {"y": {"bias": torch.ones(2)}}}
    >>> carry_graph({"m": old}, old, new)
    {'m': {'edges': {'x->y': {'weight': tensor([[0.]])}}, 'nodes': {'y': {'bias': tensor([1., 0.])}}}}
    """
    paths, every = trees.paths(params), trees.paths(grown)
    missing = [trees.path_str(p) for p in paths if p not in every]
    if missing:
        raise ValueError(
            f"grown: lacks the leaves {missing[:5]} of params, expected all of them; give grow_graph(...)[1]"
        )
    common = trees.map(lambda t: t, params)
    for p in paths:
        common = trees.replace(common, p, trees.get(grown, p))
    return cast(
        Tree,
        _inserted(
            grow_like(state, params, common, order="leaves", heads=()), common, grown, [every.index(p) for p in paths]
        ),
    )


def _inserted(node: Any, common: Any, grown: Any, places: list[int]) -> Any:
    """`node` with zeros at the leaves that only grown has; places: where in grown the leaves of common are."""
    want, flat = [tuple(t.shape) for t in trees.leaves(common)], trees.leaves(grown)
    fits = lambda leaves: [tuple(t.shape) if isinstance(t, Tensor) else None for t in leaves] == want
    if isinstance(node, dict) and {"state", "param_groups"} <= node.keys():
        if len(node["param_groups"]) != 1:
            raise ValueError(f"state: got {len(node['param_groups'])} parameter groups, expected one; carry them apart")
        entries = {places[i]: e for i, e in node["state"].items()}
        return {**node, "state": entries, "param_groups": [{**node["param_groups"][0], "params": [*range(len(flat))]}]}
    level = None if isinstance(node, Tensor) else trees.one_level(node)
    if level is None:
        return node
    _, children, rebuild = level
    if isinstance(node, dict) and trees.paths(node) == trees.paths(common) and fits(trees.leaves(node)):
        out = trees.map(torch.zeros_like, grown)
        for p in trees.paths(common):
            out = trees.replace(out, p, trees.get(node, p))
        return out
    if isinstance(node, (list, tuple)) and fits(children) and len(want) < len(flat):
        full = [torch.zeros_like(t) for t in flat]
        for i, c in zip(places, children):
            full[i] = c
        return type(node)(full)
    return rebuild([_inserted(c, common, grown, places) for c in children])
