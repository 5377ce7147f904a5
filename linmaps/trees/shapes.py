"""Structures, shapes and tensors: is this tree one of those?"""

from __future__ import annotations

import math
from typing import Any, cast

import optree
from torch import Tensor

from linmaps.trees.keys import path_str
from linmaps.trees.mappings import conformed, is_mapping
from linmaps.trees.nodes import paths
from linmaps.trees.tree import Tree


def check_like(tree: Tree, like: Any, name: str, *, shapes: bool = True) -> Tree:
    """`tree` with its mappings as those of `like`; ValueError that names the path unless its structure (and shapes) are.

    >>> import torch
    >>> check_like({"a": torch.ones(3)}, {"a": torch.ones(2)}, "v")
    Traceback (most recent call last):
    ValueError: v: leaf a has shape (3,), expected (2,); give a tree with the shapes of the one it belongs to
    """
    found: Any = tree
    if optree.tree_structure(found) != optree.tree_structure(like):
        found = conformed(found, like)
    got, want = paths(found), paths(like)
    if got != want:
        extra = [path_str(p) for p in got if p not in want]
        missing = [path_str(p) for p in want if p not in got]
        raise ValueError(
            f"{name}: leaves do not match: got {len(got)} leaves, expected {len(want)}; missing {missing[:5]}, "
            f"unexpected {extra[:5]}; {_instead(found, like)}"
        )
    if shapes:
        for p, t, u in zip(want, optree.tree_leaves(found), optree.tree_leaves(like)):
            if lost := [v for v in (t, u) if not hasattr(v, "shape")]:
                raise TypeError(f"{name}: leaf {path_str(p)} is {type(lost[0]).__name__}, expected a tensor")
            if tuple(t.shape) != tuple(u.shape):
                raise ValueError(
                    f"{name}: leaf {path_str(p)} has shape {tuple(t.shape)}, expected {tuple(u.shape)}; "
                    "give a tree with the shapes of the one it belongs to"
                )
    return cast(Tree, found)


def _instead(got: Any, like: Any) -> str:
    """What to give in place of a tree of another structure."""
    sizes = [math.prod(t.shape) for t in optree.tree_leaves(like) if hasattr(t, "shape")]
    if isinstance(got, Tensor) and got.ndim == 1 and got.numel() == sum(sizes):
        return "of a flat vector give linmaps.trees.unravel(v, params)"
    names = [path_str(p) for p in paths(like)]
    if isinstance(got, (list, tuple)) and is_mapping(like) and len(got) == len(names):
        return "of a list in the order of the params give dict(zip(params, v))"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"give a tree like the one it belongs to, {type(like).__name__} of {shown or 'nothing'}"


def identical(a: Any, b: Any) -> bool:
    """Whether two trees hold the same tensors, not only equal ones.

    >>> import torch
    >>> t = torch.ones(1)
    >>> identical({"a": t}, {"a": t}), identical({"a": t}, {"a": t.clone()})
    (True, False)
    """
    s, t = optree.tree_leaves(a), optree.tree_leaves(b)
    return len(s) == len(t) and all(x is y for x, y in zip(s, t))
