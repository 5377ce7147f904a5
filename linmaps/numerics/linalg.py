"""Solves, inverses and determinants of dense matrices, whose derivatives are right.  n the size of a matrix.

Half precision is computed in float32 and cast back.
"""

from __future__ import annotations

from collections.abc import Callable

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


def solve(matrix: Tensor, b: Tensor) -> Tensor:
    """matrix^-1 b for b `[n]` or `[n, k]` and any invertible matrix, right to the second derivative.

    >>> import torch
    >>> solve(torch.diag(torch.tensor([1.0, 2.0])), torch.ones(2))
    tensor([1.0000, 0.5000])
    """

    def run(m: Tensor, b: Tensor) -> Tensor:
        columns = b[:, None] if b.ndim == 1 else b
        if not differentiated(m) and not differentiated(b):
            return _inverse_of(m)(columns).reshape(b.shape)
        return refined(_inverse_of(m), lambda x: m @ x, columns, columns.detach()).reshape(b.shape)

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
