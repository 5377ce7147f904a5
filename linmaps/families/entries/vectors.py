"""Vectors along an axis of a matrix: their lengths, and their directions where they have one.

A [in, out], or any other shape; lengths keep the axis with size 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linmaps.numerics.numeric import forward_mode, is_taped, positive_root, ruled

SMALL = 4096  # entries, below which torch's own graph costs less than a rule
LONG = 1024  # entries of a column
BACKWARD = torch.ops.aten._weight_norm_interface_backward.default
PLAIN = 1024.0  # lengths up to this, and down to its inverse, are divided by as they are


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
    """The directions of a matrix along an axis, each times its number in g.

    >>> import torch
    >>> of_lengths(torch.tensor([[3.0], [4.0]]), torch.tensor([10.0]), 0)
    tensor([[6.],
            [8.]])
    """
    if is_taped(A, g) and A.numel() and (dim == 1 or len(A) <= LONG):
        W: Tensor = ruled(_AtOnce, A, g, dim)
        return W
    g = g.unsqueeze(dim)
    if A.numel() < SMALL or forward_mode(A, g):
        unit, length = pointed(A, dim)
        return unit * (g / length)
    return ruled(_OfLengths, A, g, dim)[0]


class _AtOnce(torch.autograd.Function):
    """The same on autograd's tape by torch's one call for it, where no number is so large or so small that a square or a cube
    would be lost; not for columns so long that its sums, one after the other, lose digits.

    That call reads memory row by row, whatever the strides are, and of its derivatives the first alone is right: those of
    derivatives are of `_OfLengths`.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, g: Tensor, dim: int) -> Tensor:
        rows, each = A.contiguous(), g.contiguous().unsqueeze(dim)
        W, length = torch._weight_norm_interface(rows, each, 1 - dim)
        shortest, longest = length.aminmax()
        least, most = g.aminmax()
        fine = (
            float(shortest) >= 1 / PLAIN and float(longest) <= PLAIN and -PLAIN <= float(least) <= float(most) <= PLAIN
        )
        ctx.dim, ctx.at_once = dim, (rows, each, length, 1 - dim) if fine else None
        ctx.save_for_backward(A, g)
        return W if fine else _OfLengths.forward(A, g.unsqueeze(dim), dim)[0]

    @staticmethod
    def backward(ctx: Any, of_W: Tensor) -> Any:
        A, g = ctx.saved_tensors
        if ctx.at_once is None or torch.is_grad_enabled():
            _, u, length = ruled(_OfLengths, A, g := g.unsqueeze(ctx.dim), ctx.dim)
            of_A, of_g = _slopes(of_W, g, u, length, ctx.dim)
        else:
            of_A, of_g = BACKWARD(of_W.contiguous(), *ctx.at_once)
        return of_A, of_g.squeeze(ctx.dim) if ctx.needs_input_grad[1] else None, None


def _slopes(of_W: Tensor, g: Tensor, u: Tensor, length: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Of W = u g with respect to A and to g."""
    along = (of_W * u).sum(dim, keepdim=True)
    slope = (g / length).clamp(-torch.finfo(u.dtype).max, torch.finfo(u.dtype).max)
    return torch.addcmul(of_W, u, along, value=-1) * slope, along


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
            of_A, of_g = _slopes(of_W, g, u, length, ctx.dim)
            of_g = of_g if ctx.needs_input_grad[1] else None
        if of_u is not None:  # of derivatives of derivatives
            part = torch.addcmul(of_u, u, (of_u * u).sum(ctx.dim, keepdim=True), value=-1) / length
            of_A = part if of_A is None else of_A + part
        if of_length is not None:
            part = u * of_length
            of_A = part if of_A is None else of_A + part
        return of_A, of_g, None
