"""The Cayley transform 2 (I + S)^-1 - I of a skew matrix, orthonormal to rounding, and its derivatives.  S [..., n, n]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linmaps.numerics.dtypes import precise
from linmaps.numerics.linalg import inv
from linmaps.numerics.numeric import eye_like, forward_mode, ruled
from linmaps.numerics.orthogonal.exponential import orthonormal_part


def cayley_transform(S: Tensor) -> Tensor:
    """2 (I + S)^-1 - I of a skew S.

    >>> import torch
    >>> cayley_transform(torch.tensor([[0.0, 1.0], [-1.0, 0.0]])) + 0.0
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    if forward_mode(S):
        eye = eye_like(S, S.shape[-1])
        W = 2 * inv(eye + S) - eye
        return orthonormal_part(W.detach()) + (W - W.detach())
    return ruled(_Cayley, S)[0]


class _Cayley(torch.autograd.Function):
    """W = 2 P - I and P = (I + S)^-1, whose derivative towards E is -P E P.

    Where a wider dtype is at hand the rounding of the inverse, |S| times its own, is below that of W; else QR takes it away.
    P stays in it: derivatives of the derivative, -P' G P' with a G made of P, are far below their terms.
    """

    @staticmethod
    def forward(S: Tensor) -> tuple[Tensor, Tensor]:
        n = S.shape[-1]
        wide = precise(S.dtype, S.device, n)
        M = S.to(wide, copy=True)
        M.diagonal(dim1=-2, dim2=-1).add_(1)
        P = _inverse(M)
        W = 2 * P
        W.diagonal(dim1=-2, dim2=-1).sub_(1)
        return (W.to(S.dtype) if wide != S.dtype else orthonormal_part(W)), P

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dtype = inputs[0].dtype
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_W: Tensor | None, of_P: Tensor | None) -> Tensor | None:
        Pt = ctx.saved_tensors[0].mT
        found = None
        if of_W is not None:
            own = Pt.to(ctx.dtype)
            found = own @ (-2 * of_W) @ own
        if of_P is not None:  # of derivatives of derivatives
            part = -(Pt @ of_P @ Pt).to(ctx.dtype)
            found = part if found is None else found + part
        return found

    @staticmethod
    def vmap(info: Any, in_dims: Any, S: Tensor) -> Any:
        return ruled(_Cayley, S.movedim(in_dims[0], 0)), (0, 0)


def _inverse(M: Tensor) -> Tensor:
    """M^-1 of an M whose singular values are 1 at least.

    Batches by QR: those of LU are wrong on the CPU for n > 150 with more than one thread (torch issues 141358 and 142815).
    """
    if M.ndim == 2:
        return torch.linalg.inv_ex(M)[0]
    Q, R = torch.linalg.qr(M)
    return torch.linalg.solve_triangular(R, Q.mT, upper=True)
