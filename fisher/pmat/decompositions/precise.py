"""Where numbers are computed: in float64 on the way, in the dtype of the matrix outside.

The small eigenvalues of a second moment of condition 1e9 are below what float32 arithmetic resolves, though the matrix
holds them; half precision has no factorizations at all.  `linmaps.numerics.dtypes.precise` says up to which size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar
from typing import cast as cast_

import torch
from torch import Tensor

from linmaps import trees
from linmaps.numerics import dtypes
from linmaps.trees.tree import Tree

Fn = TypeVar("Fn", bound=Callable[..., Any])


def cast(tree: Tree, dtype: torch.dtype) -> Tree:
    """The tree with its floating tensors in a dtype."""
    given: Any = tree
    made: Any
    fields = getattr(given, "__dict__", {})
    if isinstance(given, Tensor):
        made = given.to(dtype) if given.is_floating_point() else given
    elif fields and all(isinstance(t, Tensor) and t.is_floating_point() for t in fields.values()):
        made = type(given)(**{name: t.to(dtype) for name, t in fields.items()})
    else:
        made = trees.map(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, tree)
    return cast_(Tree, made)


def inner(tree: Any) -> torch.dtype:
    """The dtype to decompose matrices in, those of a tensor `[n]` or `[n, n]`, or of all tensors of a record.

    >>> inner(torch.eye(2)), inner(torch.ones(2, dtype=torch.bfloat16))
    (torch.float64, torch.float64)
    """
    leaves = _leaves(tree)
    return dtypes.precise(leaves[0].dtype, leaves[0].device, max(max((*t.shape[-2:], 0)) for t in leaves))


def _leaves(tree: Any) -> list[Any]:
    """Those of a tensor, and of a record whose fields are all tensors, without the pytree library."""
    if isinstance(tree, Tensor):
        return [tree]
    fields = list(getattr(tree, "__dict__", {}).values())
    if not fields or not all(isinstance(t, Tensor) for t in fields):
        return trees.leaves(tree)
    return fields


def precisely(fn: Fn) -> Fn:
    """fn with its first argument, a record or a matrix, and its other tensors in the `inner` dtype; the result cast back."""
    return _within(fn, inner)


def singly(fn: Fn) -> Fn:
    """The same in the dtype of the first argument, float32 for half precision: for sums and products of numbers."""
    return _within(fn, lambda tree: dtypes.working_dtype(_leaves(tree)[0].dtype))


def kept_precise(fn: Fn) -> Fn:
    """`precisely`, with the result left in that dtype: for a record that is used many times."""
    return _within(fn, inner, back=False)


def kept_single(fn: Fn) -> Fn:
    """`singly`, with the result left in that dtype."""
    return _within(fn, lambda tree: dtypes.working_dtype(_leaves(tree)[0].dtype), back=False)


def _within(fn: Fn, dtype_of: Callable[[Any], torch.dtype], back: bool = True) -> Fn:
    @functools.wraps(fn)
    def run(first: Any, *args: Any) -> Any:
        outer, dtype = _leaves(first)[0].dtype, dtype_of(first)
        if dtype == outer:
            return fn(first, *args)
        args = tuple(cast(a, dtype) if isinstance(a, Tensor) else a for a in args)
        found = fn(cast(first, dtype), *args)
        return cast(found, outer) if back else found

    same: Any = run
    typed: Fn = same
    return typed
