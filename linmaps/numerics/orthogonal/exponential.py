"""exp(S) of a skew matrix, orthonormal to rounding, and its derivatives.  S, E, F [..., n, n].

The derivative L(S, E) of exp at S towards E is the imaginary part of exp(S + i h E) / h to the order h^2, and loses no digit
however small h is: half of the work of an exponential of [[S, E], [0, S]], whose upper right block it is.  Source: Al-Mohy and
Higham 2010.  The adjoint of L(S, .) is L(S', .).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import constant_pad_nd as pad

from linmaps.numerics.numeric import forward_mode, ruled


def orthonormal_part(W: Tensor) -> Tensor:
    """W [..., n, r], whose columns are orthonormal but for rounding, without what rounding left.

    The rounding of an exponential or an inverse of S grows with |S|, that of a QR decomposition does not.
    """
    Q, R = torch.linalg.qr(W)
    return Q * R.new_ones(()).copysign(R.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)


def skew_exponential(S: Tensor) -> Tensor:
    """exp(S) of a skew S.

    >>> import torch
    >>> skew_exponential(torch.zeros(2, 2)) + 0.0
    tensor([[1., 0.],
            [0., 1.]])
    """
    if forward_mode(S):
        W = _exp(S)
        return orthonormal_part(W.detach()) + (W - W.detach())
    return ruled(_Exponential, S)


def _derivative(S: Tensor, E: Tensor) -> Tensor:
    """L(S, E)."""
    if forward_mode(S, E):
        n, size = S.shape[-1], _size(E)
        whole = torch.cat([torch.cat([S, E / size], -1), torch.cat([torch.zeros_like(S), S], -1)], -2)
        return _exp(whole)[..., :n, n:] * size
    return ruled(_Derivative, S, E)


class _Exponential(torch.autograd.Function):
    """exp(S) by its derivative at the S that was given."""

    @staticmethod
    def forward(S: Tensor) -> Tensor:
        return orthonormal_part(_exp(S))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _derivative(ctx.saved_tensors[0].mT, g)

    @staticmethod
    def vmap(info: Any, in_dims: Any, S: Tensor) -> Any:
        return ruled(_Exponential, S.movedim(in_dims[0], 0)), 0


class _Derivative(torch.autograd.Function):
    """L(S, E) by a complex step."""

    @staticmethod
    def forward(S: Tensor, E: Tensor) -> Tensor:
        size, step = _size(E), torch.finfo(S.dtype).eps
        return _exp(torch.complex(S, E / size * step)).imag / step * size  # the quotient of the two may be no float

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        S, E = ctx.saved_tensors
        towards_S = _second(S.mT, E.mT, g) if ctx.needs_input_grad[0] else None
        return towards_S, _derivative(S.mT, g) if ctx.needs_input_grad[1] else None

    @staticmethod
    def vmap(info: Any, in_dims: Any, S: Tensor, E: Tensor) -> Any:
        n = info.batch_size
        moved = [t.expand(n, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip((S, E), in_dims)]
        return ruled(_Derivative, *moved), 0


def _second(S: Tensor, E: Tensor, F: Tensor) -> Tensor:
    """The derivative of L(S, E) towards F: a block of an exponential of four times the size, and all its derivatives torch's."""
    n, e, f = S.shape[-1], _size(E), _size(F)
    E, F, Z = E / e, F / f, torch.zeros_like(S)
    rows = [[S, E, F, Z], [Z, S, Z, F], [Z, Z, S, E], [Z, Z, Z, S]]
    whole = torch.cat([torch.cat(row, -1) for row in rows], -2)
    return _exp(whole)[..., :n, -n:] * e * f


def _size(t: Tensor) -> Tensor:
    """The largest entry [..., 1, 1], and what zeros may be divided by."""
    return t.detach().abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(t.dtype).tiny)


def _exp(M: Tensor) -> Tensor:
    """exp(M), beside that of the number 1.

    torch.linalg.matrix_exp takes a polynomial by the norm, and those that it has for norms below .6 (in float64, .05) miss
    a tenth of the fifth power and a third of the eighth: 5e-5 (in float64, 2e-10) of the whole.
    """
    n = M.shape[-1]
    one = pad(M.new_ones(1, 1), (n, 0, n, 0))
    return torch.linalg.matrix_exp(pad(M, (0, 1, 0, 1)) + one)[..., :n, :n]
