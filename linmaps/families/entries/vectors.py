"""Vectors along an axis of a matrix: their lengths, and their directions where they have one.

A [in, out], or any other shape; lengths keep the axis with size 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linmaps.numerics.numeric import positive_root


def scaled(A: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors divided by their largest entries, these entries, and which vectors are none: no square over- or underflows.

    A vector is none where its largest entry is below tiny / eps: the derivative of its direction would be infinite.
    """
    largest = torch.linalg.vector_norm(A.detach(), torch.inf, dim, keepdim=True)
    info = torch.finfo(A.dtype)
    none = largest < info.tiny / info.eps
    return A / torch.where(none, 1.0, largest), largest, none


def lengths(A: Tensor, dim: int) -> Tensor:
    """Euclidean norms of the vectors along an axis, whatever their size, with derivative 0 at 0.

    >>> import torch
    >>> lengths(torch.tensor([[3e30, 0.0], [4e30, 0.0]]), 0)
    tensor([[5.0000e+30, 0.0000e+00]])
    """
    unit, largest, none = scaled(A, dim)
    return positive_root(unit.square().sum(dim, keepdim=True)) * torch.where(none, 1.0, largest)


def directions(A: Tensor, dim: int) -> Tensor:
    """The vectors along an axis divided by their lengths; of the i-th that is none, the unit vector number i mod its size.

    There the derivative is that of the direction at this unit vector: finite, and a step along it leads away from 0.

    >>> import torch
    >>> directions(torch.tensor([[3.0, 0.0], [4.0, 0.0]]), 0)
    tensor([[0.6000, 0.0000],
            [0.8000, 1.0000]])
    """
    unit, length = pointed(A, dim)
    return unit / length


def pointed(A: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Multiples of the directions of a matrix, and their lengths, as `directions` divides them."""
    unit, _, none = scaled(A, dim)
    across = torch.arange(A.shape[1 - dim], device=A.device).unsqueeze(dim)
    unit = unit.scatter_add(dim, across % A.shape[dim], none.to(A.dtype))  # to the unit vectors of `axes_like`
    return unit, torch.linalg.vector_norm(unit, dim=dim, keepdim=True)


def axes_like(A: Tensor, dim: int) -> Tensor:
    """For a matrix: ones where the place along the axis is that across it, modulo the size of the axis."""
    rows, columns = (torch.arange(n, device=A.device) for n in A.shape)
    along, across = (rows[:, None], columns) if dim == 0 else (columns, rows[:, None])
    return (along == across % A.shape[dim]).to(A.dtype)


def directed(W: Tensor, dim: int) -> Tensor:
    """The matrix itself, where a vector along the axis is none with the unit vector of `directions` in its place."""
    none = scaled(W, dim)[2]
    return torch.where(none, axes_like(W, dim), W)
