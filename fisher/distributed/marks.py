"""Which matrices of a tree of sums are symmetric, and their triangles.  n rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from linmaps import trees


@trees.record()
class Symmetric:
    """Marks a tensor `[..., n, n]` as symmetric by what it is: a second moment; a node of the tree with one leaf.

    >>> trees.map(lambda t: 2 * t, Symmetric(torch.ones(1, 1))).matrix
    tensor([[2.]])
    """

    matrix: Tensor

    def __repr__(self) -> str:
        return f"Symmetric({list(self.matrix.shape)})"


def marked(t: Tensor, ndim: int = 2) -> Any:
    """The tensor marked where it has so many axes: a diagonal, kept in place of a matrix, has fewer."""
    return Symmetric(t) if t.ndim == ndim else t


def is_marked(node: Any) -> bool:
    """Whether a node is a `Symmetric`."""
    return isinstance(node, Symmetric)


def unmarked(tree: Any) -> Any:
    """The tree with the matrices in place of the marks.

    >>> unmarked({"A": Symmetric(torch.ones(1, 1))})
    {'A': tensor([[1.]])}
    """
    flat, treedef = trees.flatten(tree, is_marked)
    return treedef.unflatten([t.matrix if is_marked(t) else t for t in flat])


def triangle(m: Tensor) -> Tensor:
    """The n (n + 1)/2 numbers of a symmetric `[..., n, n]`, as a flat tensor `[..., n (n + 1)/2]`.

    In blocks [[A, B], [B', C]] with A `[n // 2, n // 2]`: B, and A's upper triangle beside C's lower one in one rectangle, so
    that no index is made.

    >>> triangle(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
    tensor([2., 3., 1.])
    """
    n = m.shape[-1]
    k, rest = n // 2, n - n // 2
    A, B, C = m[..., :k, :k], m[..., :k, k:], m[..., k:, k:]
    above = torch.triu(pad(A, (1, 0, 0, rest - k)), 1)
    below = torch.tril(pad(C, (0, k + 1 - rest)))
    return torch.cat([B.flatten(-2), (above + below).flatten(-2)], -1)


def from_triangle(t: Tensor, n: int) -> Tensor:
    """The symmetric `[..., n, n]` of its triangle.

    >>> from_triangle(torch.tensor([2.0, 3.0, 1.0]), 2)
    tensor([[1., 2.],
            [2., 3.]])
    """
    k, rest = n // 2, n - n // 2
    B = t[..., : k * rest].unflatten(-1, (k, rest)) if k else t.new_zeros(*t.shape[:-1], 0, rest)
    both = t[..., k * rest :].reshape(*t.shape[:-1], rest, k + 1)
    upper, lower = torch.triu(both[..., :k, 1:]), torch.tril(both[..., :rest])
    A, C = upper + torch.triu(upper, 1).mT, lower + torch.tril(lower, -1).mT
    return torch.cat([torch.cat([A, B], -1), torch.cat([B.mT, C], -1)], -2)
