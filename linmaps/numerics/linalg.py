"""Solves, inverses and determinants of dense matrices, whose derivatives are right.  n the size of a matrix.

Half precision is computed in float32 and cast back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linmaps.numerics import lapack
from linmaps.numerics.dtypes import in_working, working
from linmaps.numerics.numeric import differentiated

Number = float | Tensor


def damped(matrix: Tensor, regul: Number) -> Tensor:
    """matrix + regul I."""
    return matrix + regul * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _inverse_of(m: Tensor) -> Callable[[Tensor], Tensor]:
    """B -> m^-1 B by QR, constant in m.

    Not by LU: batches of LU (so inv, solve, and all that under vmap) are wrong on the CPU for n > 150 with more than one
    thread (torch issues 141358 and 142815).
    """
    q, r = torch.linalg.qr(m.detach())
    return lambda b: torch.linalg.solve_triangular(r, q.mH @ b, upper=True)


class _Symmetric(torch.autograd.Function):
    """m^-1 b from the LDL' decomposition of a symmetric m, linear in b, which torch has no batching rule for."""

    @staticmethod
    def forward(LD: Tensor, pivots: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.ldl_solve(LD, pivots, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, None, _Symmetric.apply(*ctx.saved_tensors, g)

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, tangent: Tensor) -> Any:
        return _Symmetric.apply(*ctx.saved_tensors, tangent)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Tensor) -> Any:
        n = info.batch_size
        moved = [t.expand(n, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(args, in_dims)]
        return _Symmetric.apply(*moved), 0


def _inverse_of_symmetric(m: Tensor) -> Callable[[Tensor], Tensor]:
    """B -> m^-1 B of a symmetric m, definite or not, by LDL' with pivots: an eighth of the work of QR."""
    if m.device.type == "mps":  # has no LDL'
        return _inverse_of(m)
    LD, pivots = torch.linalg.ldl_factor_ex(m.detach())[:2]
    return lambda b: _Symmetric.apply(LD, pivots, b)


def refined(
    inverse: Callable[[Tensor], Tensor], operator: Callable[[Tensor], Tensor], b: Tensor, constant: Tensor
) -> Tensor:
    """x with operator(x) = b, its numbers from `inverse(constant)`, constant being b without derivatives.

    Two steps x <- x + inverse(b - operator(x)) give derivatives to the second order, in every mode, whatever way the
    constant inverse was computed: those of a factorization may not exist where those of x do.
    """
    value = inverse(constant)
    x = value
    for _ in range(2):
        step = x + inverse(b - operator(x))
        x = value + (step - step.detach())
    return x


def solve(matrix: Tensor, b: Tensor, *, symmetric: bool = False) -> Tensor:
    """matrix^-1 b for b `[n]` or `[n, k]` and any invertible matrix, right to the second derivative.

    symmetric: of the matrix the lower triangle is enough.

    >>> import torch
    >>> solve(torch.diag(torch.tensor([1.0, 2.0])), torch.ones(2))
    tensor([1.0000, 0.5000])
    """

    def run(m: Tensor, b: Tensor) -> Tensor:
        columns, inverse_of = b[:, None] if b.ndim == 1 else b, _inverse_of_symmetric if symmetric else _inverse_of
        if not differentiated(m) and not differentiated(b):
            return inverse_of(m)(columns).reshape(b.shape)
        return refined(inverse_of(m), lambda x: m @ x, columns, columns.detach()).reshape(b.shape)

    return in_working(run, matrix, b)


def inv(matrix: Tensor) -> Tensor:
    """matrix^-1; two Newton steps X <- 2 X - X M X give derivatives to the third order.

    >>> import torch
    >>> inv(torch.diag(torch.tensor([1.0, 2.0])))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """

    def run(m: Tensor) -> Tensor:
        value = _inverse_of(m)(torch.eye(m.shape[-1], dtype=m.dtype, device=m.device))
        x = value
        for _ in range(2 if differentiated(m) else 0):
            step = 2 * x - x @ (m @ x)
            x = value + (step - step.detach())
        return x

    return in_working(run, matrix)


def logabsdet(matrix: Tensor) -> Tensor:
    """log |det matrix|, a scalar, by QR.

    >>> import torch
    >>> logabsdet(torch.diag(torch.tensor([1.0, -1.0])))
    tensor(0.)
    """
    return in_working(lambda m: lapack.qr(m)[1].diagonal().abs().log().sum(), matrix)


def negative_determinant(m: Tensor) -> Tensor:
    """Whether det m < 0, a bool scalar: each reflection of a QR decomposition turns the sign, and so does R's diagonal."""
    a, tau = torch.geqrf(working(m.detach()))
    return ((a.diagonal() < 0).sum() + (tau != 0).sum()) % 2 == 1
