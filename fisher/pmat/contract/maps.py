"""Maps: a tree like params whose leaves have leading axes, `[B, C, *leaf]`, or a record with it as its field `jacobian`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from torch.func import vmap

from linmaps import trees
from linmaps.checks import alike
from linmaps.checks.arguments import some_floating
from linmaps.trees import Layout
from linmaps.trees.tree import Tree


def is_map(v: Any) -> bool:
    """Whether v is a record of a map."""
    return dataclasses.is_dataclass(v) and hasattr(v, "jacobian") and hasattr(v, "layout")


def leading(layout: Layout, v: Any, name: str) -> tuple[int, ...]:
    """The leading axes of a map, () for a vector; ValueError that names the path for anything else.

    >>> import torch
    >>> leading(Layout.of({"w": torch.ones(3)}), {"w": torch.ones(5, 2, 3)}, "J")
    (5, 2)
    """
    return conformed(layout, v, name)[1]


def fitting(layout: Layout, v: Tree, name: str, *, shapes: bool = True) -> Tree:
    """v with its mappings as those of params; ValueError that names the path unless it has their structure (and shapes)."""
    try:
        return layout.check(v, name, shapes=shapes)
    except ValueError as error:
        mine, given = ({trees.path_str(p) for p in paths} for paths in (layout.paths, trees.paths(v)))
        if not mine < given:
            raise
        raise ValueError(
            f"{error}; of a matrix of some layers the vectors and params are layers.restrict({name}), and f is "
            "layers.restricted(f, params)"
        ) from None


def conformed(layout: Layout, v: Tree, name: str) -> tuple[Tree, tuple[int, ...]]:
    """v with its mappings as those of params, and its leading axes."""
    v = fitting(layout, v, name, shapes=False)
    first = trees.leaves(v)[:1]
    lead: tuple[int, ...] = ()
    if first and isinstance(first[0], Tensor):
        lead = tuple(first[0].shape[: max(0, first[0].ndim - len(layout.shapes[0]))])
    return Layout(layout.treedef, tuple(lead + s for s in layout.shapes)).check(v, name), lead


def each(layout: Layout, v: Tree, name: str, fn: Callable[[Any, int], Any], like: Any) -> Tree:
    """fn(tree, number of leading axes) of a vector or a map in the dtypes of like; of a record of a map the same record."""
    if is_map(v):
        record: Any = v
        return cast(Tree, dataclasses.replace(record, jacobian=each(layout, record.jacobian, name, fn, like)))
    one = some_floating(like)
    if one is not None and layout.fits(v, like=one):
        return cast(Tree, fn(v, 0))  # as nearly always
    v, lead = conformed(layout, v, name)
    alike(v, name, like, "the matrix", strict=True)
    return cast(Tree, fn(v, len(lead)))


def mapped(fn: Callable[[Any], Any], n: int) -> Callable[[Any], Any]:
    """fn over n leading axes."""
    for _ in range(n):
        fn = vmap(fn)
    return fn
