"""Mappings in place of dicts: with keys in another order, and of types that pytrees do not know.

one_level: `linmaps.trees.one_level`, which takes a container apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

OneLevel = Callable[[Any], Any]


def is_mapping(node: Any) -> bool:
    """Whether node maps keys to values as a dict does: UserDict, nn.ParameterDict, a tokenizer's batch, ...

    >>> import collections, torch
    >>> is_mapping(collections.UserDict(a=1)), is_mapping(torch.nn.ParameterDict()), is_mapping([1])
    (True, True, False)
    """
    if isinstance(node, (Tensor, type)):
        return False
    return isinstance(node, dict) or (hasattr(node, "keys") and hasattr(node, "__getitem__"))


def plain(tree: Any, one_level: OneLevel) -> Any:
    """The tree with a dict in place of each mapping that pytrees take for a leaf; the same object where there is none.

    >>> import collections
    >>> from linmaps.trees import one_level
    >>> plain({"a": collections.UserDict(b=1)}, one_level)
    {'a': {'b': 1}}
    """
    parts = one_level(tree)
    if parts is None:
        return {k: plain(tree[k], one_level) for k in tree.keys()} if is_mapping(tree) else tree  # noqa: SIM118
    _, children, rebuild = parts
    made = [plain(child, one_level) for child in children]
    return tree if all(s is t for s, t in zip(made, children)) else rebuild(made)


def conformed(tree: Any, like: Any, one_level: OneLevel) -> Any:
    """The tree with each mapping of the type and in the order of like's, wherever their keys are the same.

    >>> import collections
    >>> from linmaps.trees import one_level
    >>> conformed(collections.OrderedDict(b=1, a=2), {"a": 0, "b": 0}, one_level)
    {'a': 2, 'b': 1}
    """
    parts, wanted = one_level(tree), one_level(like)
    if wanted is None:
        return tree
    keys, children, rebuild = wanted
    if is_mapping(like):
        if not is_mapping(tree) or set(tree.keys()) != set(keys):
            return tree
        return rebuild([conformed(tree[k], child, one_level) for k, child in zip(keys, children)])
    if parts is None or type(tree) is not type(like) or len(parts[1]) != len(children):
        return tree
    return parts[2]([conformed(mine, child, one_level) for mine, child in zip(parts[1], children)])
