"""Vectors along an axis of a matrix: their lengths, and their directions where they have one.

A [in, out], or any other shape; lengths keep the axis with size 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linmaps.numerics.numeric import forward_mode, positive_root, ruled

SMALL = 4096  # entries, below which torch's own graph costs less than a rule


def scaled(A: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors divided by their largest entries, these entries, and which vectors are none: no square over- or underflows.

    A vector is none where its largest entry is below tiny / eps: the derivative of its direction would be infinite.
    """
    largest = A.detach().abs().amax(dim, keepdim=True)  # in a tenth of the time of a norm
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


def of_lengths(A: Tensor, g: Tensor, dim: int) -> Tensor:
    """The directions of a matrix along an axis times g, which has size 1 there.

    >>> import torch
    >>> of_lengths(torch.tensor([[3.0], [4.0]]), torch.tensor([[10.0]]), 0)
    tensor([[6.],
            [8.]])
    """
    if A.numel() < SMALL or forward_mode(A, g):
        unit, length = pointed(A, dim)
        return unit * (g / length)
    return ruled(_OfLengths, A, g, dim)[0]


class _OfLengths(torch.autograd.Function):
    """W = u g of the directions u, which derivatives of any order are made of: dW = u dg + g (dA - u (u . dA)) / |A|."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, g: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        u, largest, none = scaled(A, dim)
        length = torch.where(none, 1.0, u.square().sum(dim, keepdim=True).sqrt())
        across = torch.arange(A.shape[1 - dim], device=A.device).unsqueeze(dim)
        u = u.div_(length).scatter_add_(dim, across % A.shape[dim], none.to(A.dtype))
        return u * g, u, torch.where(none, 1.0, length * largest)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dim = inputs[2]
        ctx.save_for_backward(inputs[1], *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_W: Tensor | None, of_u: Tensor | None, of_length: Tensor | None) -> Any:
        g, u, length = ctx.saved_tensors
        of_A = of_g = None
        if of_W is not None:
            along = (of_W * u).sum(ctx.dim, keepdim=True)
            slope = (g / length).clamp(-torch.finfo(u.dtype).max, torch.finfo(u.dtype).max)
            of_A = torch.addcmul(of_W, u, along, value=-1) * slope
            of_g = along.sum_to_size(g.shape) if ctx.needs_input_grad[1] else None
        if of_u is not None:  # of derivatives of derivatives
            part = torch.addcmul(of_u, u, (of_u * u).sum(ctx.dim, keepdim=True), value=-1) / length
            of_A = part if of_A is None else of_A + part
        if of_length is not None:
            part = u * of_length
            of_A = part if of_A is None else of_A + part
        return of_A, of_g, None
