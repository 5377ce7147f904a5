"""Flat order: a tree as one vector `[d]` and back.  Leaves in the order of optree, row-major inside a leaf."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import optree
import torch
from torch import Tensor

from linmaps.trees.keys import Path, path_str
from linmaps.trees.records import static
from linmaps.trees.shapes import check_like
from linmaps.trees.tree import Tree


@static
@dataclasses.dataclass(frozen=True)
class Layout:
    """Structure and shapes of a tree, without its tensors; hashable, picklable: `layout.unravel(vector)` is a tree.

    >>> import torch
    >>> layout = Layout.of({"w": torch.zeros(2, 3), "b": torch.zeros(2)})
    >>> layout.numel, layout.paths
    (8, (('b',), ('w',)))
    """

    treedef: optree.PyTreeSpec
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tree: Any) -> Layout:
        flat, treedef = optree.tree_flatten(tree)
        if not all(isinstance(t, Tensor) for t in flat):
            p, t = next((p, t) for p, t in zip(optree.tree_paths(tree), flat) if not isinstance(t, Tensor))
            raise TypeError(f"{path_str(p)}: got {type(t).__name__}, expected a tensor; keep settings out of trees")
        return cls(treedef, tuple(tuple(t.shape) for t in flat))

    @functools.cached_property
    def paths(self) -> tuple[Path, ...]:
        return tuple(optree.treespec_paths(self.treedef))

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(s) for s in self.shapes)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        ends = [0]
        for n in self.sizes:
            ends.append(ends[-1] + n)
        return tuple(ends)

    @functools.cached_property
    def numel(self) -> int:
        return sum(self.sizes)

    def unflatten(self, flat: Sequence[Any]) -> Any:
        return optree.tree_unflatten(self.treedef, list(flat))

    def unravel(self, vector: Tensor) -> Any:
        """The tree of a vector `[numel]`."""
        if tuple(vector.shape) != (self.numel,):
            raise ValueError(f"unravel: got shape {tuple(vector.shape)}, expected ({self.numel},)")
        parts = vector.split(list(self.sizes))
        return self.unflatten([t.reshape(s) for t, s in zip(parts, self.shapes)])

    def check(self, tree: Tree, name: str, *, shapes: bool = True) -> Tree:
        """`check_like` with a tree of this structure and these shapes."""
        if self.fits(tree, shapes=shapes):
            return tree  # as nearly always
        return check_like(tree, self.unflatten([SimpleNamespace(shape=s) for s in self.shapes]), name, shapes=shapes)

    def fits(self, tree: Any, *, shapes: bool = True, like: Tensor | None = None) -> bool:
        """Whether a tree has this very structure and these shapes, mappings in the same order; and whether its leaves are
        dense, of the dtype and on the device of `like`."""
        flat, treedef = optree.tree_flatten(tree)
        if treedef != self.treedef:
            return False
        for t, shape in zip(flat, self.shapes):
            if not isinstance(t, Tensor) or (shapes and t.shape != shape):
                return False
        if like is None:
            return True
        dtype, device = like.dtype, like.device
        return all(t.dtype is dtype and t.device == device and t.layout is torch.strided for t in flat)

    def __getstate__(self) -> tuple[Any, ...]:  # a skeleton of plain containers, which torch.load reads without trust
        return self.treedef.unflatten(range(len(self.shapes))), self.shapes

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        object.__setattr__(self, "treedef", optree.tree_structure(state[0]))
        object.__setattr__(self, "shapes", state[1])


def ravel(tree: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """The vector `[d]` of a tree in the flat order, and the way back.

    >>> import torch
    >>> vector, unravel = ravel({"a": torch.zeros(1, 2), "b": torch.ones(1)})
    >>> vector, unravel(2 * vector)
    (tensor([0., 0., 1.]), {'a': tensor([[0., 0.]]), 'b': tensor([2.])})
    """
    layout, node = Layout.of(tree), cast(Any, tree)
    flat = [t.reshape(-1) for t in optree.tree_leaves(node)]
    return (torch.cat(flat) if flat else torch.zeros(0)), layout.unravel


def unravel(vector: Tensor, like: Tree) -> Tree:
    """The tree with the structure and shapes of `like` whose entries in flat order are those of the vector.

    >>> import torch
    >>> unravel(torch.arange(3.0), {"a": torch.zeros(1, 2), "b": torch.zeros(1)})
    {'a': tensor([[0., 1.]]), 'b': tensor([2.])}
    """
    return cast(Tree, Layout.of(like).unravel(vector))
