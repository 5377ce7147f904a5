"""Mappings in place of dicts: with keys in another order, and of types that pytrees do not know."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from linmaps.trees.nodes import one_level


def is_mapping(node: Any) -> bool:
    """Whether node maps keys to values as a dict does: UserDict, nn.ParameterDict, a tokenizer's batch, ...

    >>> import collections, torch
    >>> is_mapping(collections.UserDict(a=1)), is_mapping(torch.nn.ParameterDict()), is_mapping([1])
    (True, True, False)
    """
    if isinstance(node, (Tensor, type)):
        return False
    return isinstance(node, dict) or (hasattr(node, "keys") and hasattr(node, "__getitem__"))


def plain(tree: Any) -> Any:
    """The tree with a dict in place of each mapping that pytrees take for a leaf; the same object where there is none.

    >>> import collections
    >>> plain({"a": collections.UserDict(b=1)})
    {'a': {'b': 1}}
    """
    parts = one_level(tree)
    if parts is None:
        return {k: plain(tree[k]) for k in tree.keys()} if is_mapping(tree) else tree  # noqa: SIM118
    _, children, rebuild = parts
    made = [plain(child) for child in children]
    return tree if all(s is t for s, t in zip(made, children)) else rebuild(made)


def conformed(tree: Any, like: Any) -> Any:
    """The tree with each mapping of the type and in the order of like's, wherever their keys are the same.

    >>> import collections
    >>> conformed(collections.OrderedDict(b=1, a=2), {"a": 0, "b": 0})
    {'a': 2, 'b': 1}
    """
    parts, wanted = one_level(tree), one_level(like)
    if wanted is None:
        return tree
    keys, children, rebuild = wanted
    if is_mapping(like):
        if not is_mapping(tree) or set(tree.keys()) != set(keys):
            return tree
        return rebuild([conformed(tree[k], child) for k, child in zip(keys, children)])
    if parts is None or type(tree) is not type(like) or len(parts[1]) != len(children):
        return tree
    return parts[2]([conformed(mine, child) for mine, child in zip(parts[1], children)])
