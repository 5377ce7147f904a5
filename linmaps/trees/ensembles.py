"""Ensembles: equal trees along a new leading axis, which `torch.func.vmap` maps over, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import optree
import torch

from linmaps.trees.shapes import check_like
from linmaps.trees.tree import Tree


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack equal trees along a new leading axis: the ensemble that `torch.func.vmap` maps over.

    >>> import torch
    >>> stack([{"a": torch.zeros(2)}, {"a": torch.ones(2)}])
    {'a': tensor([[0., 0.], [1., 1.]])}
    """
    members: list[Any] = list(trees)
    if not members:
        raise ValueError("stack: got an empty sequence, expected at least one tree")
    for i, member in enumerate(members[1:], 1):
        members[i] = check_like(member, members[0], f"stack: member {i}")
    return cast(Tree, optree.tree_map(lambda *ts: torch.stack(ts), *members))


def unstack(tree: Tree) -> list[Tree]:
    """The members of a stacked tree: `unstack(stack(ts)) == ts`.

    >>> import torch
    >>> unstack({"a": torch.arange(2.0)})
    [{'a': tensor(0.)}, {'a': tensor(1.)}]
    """
    flat, treedef = optree.tree_flatten(cast(Any, tree))
    sizes = {tuple(t.shape[:1]) for t in flat}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"unstack: leading sizes {sorted(sizes)} of the leaves differ, expected one common ensemble axis; "
            "stack the members with linmaps.trees.stack"
        )
    return [cast(Tree, optree.tree_unflatten(treedef, member)) for member in zip(*(t.unbind(0) for t in flat))]
