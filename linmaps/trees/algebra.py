"""The vector space of trees: leaf by leaf, with an inner product and a norm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast, overload

import optree
import torch
from torch import Tensor

from linmaps.trees.shapes import check_like
from linmaps.trees.tree import Tree


def map(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `fn` leaf by leaf.

    >>> import torch
    >>> map(torch.neg, {"a": torch.ones(2)})
    {'a': tensor([-1., -1.])}
    """
    return optree.tree_map(fn, tree, *rest)


def leaves(tree: Any) -> list[Any]:
    """Leaves in optree's order (keys of a dict sorted, of an OrderedDict as they come).

    >>> leaves({"b": 2, "a": [1, 3]})
    [1, 3, 2]
    """
    if torch.compiler.is_dynamo_compiling() and type(tree) in (dict, OrderedDict):  # its optree fails at an empty one
        return [leaf for key in (sorted(tree) if type(tree) is dict else tree) for leaf in leaves(tree[key])]
    return optree.tree_leaves(tree)


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Any]:
    """Leaves and structure: `flat, treedef = flatten(tree)`, `treedef.unflatten(flat)` is the tree.

    is_leaf: nodes that are taken whole.

    >>> flat, treedef = flatten({"a": 1})
    >>> treedef.unflatten([2])
    {'a': 2}
    """
    flat, treedef = optree.tree_flatten(tree, is_leaf)
    return flat, treedef


def zeros_like(tree: Tree) -> Tree:
    """The zero vector of the space that `tree` lives in.

    >>> import torch
    >>> zeros_like({"a": torch.ones(2)})
    {'a': tensor([0., 0.])}
    """
    return cast(Tree, map(torch.zeros_like, tree))


def add(a: Tree, b: Tree) -> Tree:
    """`a + b`.

    >>> import torch
    >>> add({"a": torch.ones(2)}, {"a": torch.ones(2)})
    {'a': tensor([2., 2.])}
    """
    return _binary(torch.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """`a - b`.

    >>> import torch
    >>> sub({"a": torch.ones(2)}, {"a": torch.ones(2)})
    {'a': tensor([0., 0.])}
    """
    return _binary(torch.sub, a, b)


@overload
def scale(alpha: float, a: Tree) -> Tree: ...
@overload
def scale(alpha: Tree, a: float) -> Tree: ...
@overload
def scale(alpha: Tensor, a: Tree) -> Tree: ...
@overload
def scale(alpha: Tree, a: Tensor) -> Tree: ...
def scale(alpha: Any, a: Any) -> Any:
    """`alpha * a` for a number or a scalar tensor `alpha`; a product, so either order will do.

    >>> import torch
    >>> scale(3.0, {"a": torch.ones(2)}), scale({"a": torch.ones(2)}, 3.0)
    ({'a': tensor([3., 3.])}, {'a': tensor([3., 3.])})
    """
    if isinstance(a, (int, float)) or (isinstance(a, Tensor) and a.ndim == 0):
        alpha, a = a, alpha
    return optree.tree_map(lambda t: alpha * t, a)


def axpy(alpha: float | Tensor, x: Tree, y: Tree) -> Tree:
    """`alpha * x + y`.

    >>> import torch
    >>> axpy(2.0, {"a": torch.ones(2)}, {"a": torch.ones(2)})
    {'a': tensor([3., 3.])}
    """
    return _binary(lambda s, t: alpha * s + t, x, y)


def dot(a: Any, b: Any) -> Tensor:
    """Inner product `sum_i a_i b_i` (complex: `a` conjugated), a scalar tensor.

    >>> import torch
    >>> dot({"a": torch.ones(2), "b": torch.ones(())}, {"a": torch.ones(2), "b": torch.ones(())})
    tensor(3.)
    """
    b = check_like(b, a, "dot(a, b)")
    terms = [(s.conj() * t).sum() for s, t in zip(optree.tree_leaves(a), optree.tree_leaves(b))]
    return _total(terms)


def norm(a: Any) -> Tensor:
    """Euclidean norm, with gradient 0 (not NaN) at 0.

    >>> import torch
    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)})
    tensor(5.)
    """
    squared = _total([(t.real**2 + t.imag**2 if t.is_complex() else t * t).sum() for t in optree.tree_leaves(a)])
    positive = squared != 0  # true of NaN too
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def _total(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0]) if terms else torch.zeros(())


def _binary(fn: Callable[..., Any], a: Tree, b: Tree) -> Tree:
    b = check_like(b, a, "second tree")
    return cast(Tree, map(fn, a, b))
