"""Nodes of a tree: what a container holds by key, paths of the leaves, one subtree read or replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import optree
from torch import Tensor

from linmaps.trees.keys import Path, walk
from linmaps.trees.tree import Tree


def one_level(node: Any) -> tuple[list[Any], list[Any], Callable[[list[Any]], Any]] | None:
    """(keys, children, rebuild) of a container, None for a leaf: to walk trees that hold more than tensors.

    >>> keys, children, rebuild = one_level((1, 2))
    >>> keys, rebuild([c + 1 for c in children]), one_level(3)
    ([0, 1], (2, 3), None)
    """
    if isinstance(node, Tensor) or node is None or optree.tree_is_leaf(node):
        return None
    if isinstance(node, dict):  # insertion order, which the flat order is not
        first = (node.default_factory,) if hasattr(node, "default_factory") else ()
        return list(node), list(node.values()), lambda values: type(node)(*first, zip(node, values))  # type: ignore[call-overload]
    children, settings, entries, unflatten = optree.tree_flatten_one_level(node)
    names = getattr(type(node), "_fields", None)
    return [names[i] for i in entries] if names else list(entries), children, lambda values: unflatten(settings, values)


def paths(tree: Any) -> list[Path]:
    """Path of each leaf, a tuple of keys, in leaf order.

    >>> paths({"b": 0, "a": [1, 2]})
    [('a', 0), ('a', 1), ('b',)]
    """
    return list(optree.tree_paths(tree))


def get(tree: Any, path: Path | str) -> Any:
    """The subtree at a path: a tuple of keys or a dotted string, in nested or in flat dicts with dotted keys.

    >>> get({"net": {"0.weight": 1}}, "net.0.weight")
    1
    """
    return walk(tree, path, _children)[-1][1]


def replace(tree: Tree, path: Path | str, value: Any) -> Tree:
    """A copy of `tree` in which the subtree at `path` is `value`; the old tree stays valid.

    >>> replace({"a": {"b": 1}, "c": 2}, "a.b", 5)
    {'a': {'b': 5}, 'c': 2}
    """
    steps = walk(tree, path, _children)
    for (_, node), (key, _) in zip(reversed(steps[:-1]), reversed(steps[1:])):
        value = _with_child(node, key, value)
    return cast(Tree, value)


def _children(node: Any) -> dict[Any, Any]:
    keys, children, _ = one_level(node) or ((), (), None)
    named = dict(zip(keys, children))
    return named | dict(enumerate(children)) if hasattr(type(node), "_fields") else named


def _with_child(node: Any, key: Any, value: Any) -> Any:
    keys, children, rebuild = one_level(node)  # type: ignore[misc]
    if key not in keys:  # a named tuple by position
        key = keys[key]
    return rebuild([value if k == key else c for k, c in zip(keys, children)])
