"""Structures, shapes and tensors: is this tree one of those?"""

from __future__ import annotations

from typing import Any

import optree

from linmaps.trees.keys import path_str
from linmaps.trees.mappings import conformed
from linmaps.trees.nodes import paths

Tree = Any


def check_like(tree: Tree, like: Tree, name: str, *, shapes: bool = True) -> Tree:
    """`tree` with its mappings as those of `like`; ValueError that names the path unless its structure (and shapes) are.

    >>> import torch
    >>> check_like({"a": torch.ones(3)}, {"a": torch.ones(2)}, "v")
    Traceback (most recent call last):
    ValueError: v: leaf a has shape (3,), expected (2,); give a tree with the shapes of the one it belongs to
    """
    if optree.tree_structure(tree) != optree.tree_structure(like):
        tree = conformed(tree, like)
    got, want = paths(tree), paths(like)
    if got != want:
        extra = [path_str(p) for p in got if p not in want]
        missing = [path_str(p) for p in want if p not in got]
        raise ValueError(
            f"{name}: leaves do not match: got {len(got)} leaves, expected {len(want)}; missing {missing[:5]}, "
            f"unexpected {extra[:5]}; give a tree of the structure {optree.tree_structure(like)}"
        )
    if shapes:
        for p, t, u in zip(want, optree.tree_leaves(tree), optree.tree_leaves(like)):
            if lost := [v for v in (t, u) if not hasattr(v, "shape")]:
                raise TypeError(f"{name}: leaf {path_str(p)} is {type(lost[0]).__name__}, expected a tensor")
            if tuple(t.shape) != tuple(u.shape):
                raise ValueError(
                    f"{name}: leaf {path_str(p)} has shape {tuple(t.shape)}, expected {tuple(u.shape)}; "
                    "give a tree with the shapes of the one it belongs to"
                )
    return tree


def identical(a: Tree, b: Tree) -> bool:
    """Whether two trees hold the same tensors, not only equal ones.

    >>> import torch
    >>> t = torch.ones(1)
    >>> identical({"a": t}, {"a": t}), identical({"a": t}, {"a": t.clone()})
    (True, False)
    """
    s, t = optree.tree_leaves(a), optree.tree_leaves(b)
    return len(s) == len(t) and all(x is y for x, y in zip(s, t))
