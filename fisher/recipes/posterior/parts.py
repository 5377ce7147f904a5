"""The part of params that a matrix is of: all leaves, or `{path: leaf}` of some layers, the others held as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fisher.pmat.contract.pmat import PMat
from linmaps import trees
from linmaps.trees.keys import names


def leaves_of(F: PMat, params: Any) -> tuple[int, ...] | None:
    """The numbers of the leaves of params that F's vectors have, in their order; None where these are all.

    A matrix of `fim(..., layers=some)` acts on `{path: leaf}` of the leaves of these layers.
    """
    layout, whole = F.layout, trees.paths(params)
    own = [p[0] if len(p) == 1 else None for p in layout.paths]
    known: dict[Any, int] = {name: n for n, name in enumerate(names(whole))}
    if len(own) >= len(whole) or not all(name in known for name in own):
        return None
    flat = trees.leaves(params)
    numbers = tuple(known[name] for name in own)
    return numbers if [tuple(flat[n].shape) for n in numbers] == list(layout.shapes) else None


def part(F: PMat, tree: Any, name: str = "params") -> Any:
    """Of a tree like params what F's vectors have; a vector of F is itself.  ValueError for any other tree, TypeError for another
    dtype or device than F's.

    >>> import torch, fisher
    >>> F = fisher.PMatDiag({"w": torch.ones(2)}, trees.Layout.of({"w": torch.ones(2)}))
    >>> part(F, {"b": torch.ones(1), "w": torch.zeros(2)})
    {'w': tensor([0., 0.])}
    """
    numbers = leaves_of(F, tree)
    if numbers is None:
        return F.check_vector(tree, name)
    flat = trees.leaves(tree)
    return F.check_vector(F.layout.unflatten([flat[n] for n in numbers]), name)


def cut(F: PMat, tree: Any, params: Any) -> Any:
    """Of a tree like params, whose leaves may have leading axes, what F's vectors have; all else as it is."""
    numbers = leaves_of(F, params)
    if numbers is None or trees.paths(tree) != trees.paths(params):
        return tree
    flat = trees.leaves(tree)
    return F.layout.unflatten([flat[n] for n in numbers])


def whole(F: PMat, params: Any, own: Any) -> Any:
    """params with the leaves that F's vectors have from `own`.

    >>> import torch, fisher
    >>> F = fisher.PMatDiag({"w": torch.ones(2)}, trees.Layout.of({"w": torch.ones(2)}))
    >>> whole(F, {"b": torch.ones(1), "w": torch.zeros(2)}, {"w": torch.ones(2)})
    {'b': tensor([1.]), 'w': tensor([1., 1.])}
    """
    numbers = leaves_of(F, params)
    if numbers is None:
        return own
    flat, treedef = trees.flatten(params)
    found, first = dict(zip(numbers, trees.leaves(own))), trees.leaves(own)[0]
    lead = first.shape[: first.ndim - len(F.layout.shapes[0])]  # of several vectors
    return treedef.unflatten([found.get(n, t.expand(*lead, *t.shape)) for n, t in enumerate(flat)])


def on_part(F: PMat, f: Callable[..., Tensor], params: Any) -> Callable[..., Tensor]:
    """f as a function of the leaves that F's vectors have, at the other leaves of params."""
    if leaves_of(F, params) is None:
        return f
    return lambda own, *args: f(whole(F, params, own), *args)
