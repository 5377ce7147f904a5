"""exp(S) of a skew matrix, orthonormal to rounding, and its derivatives.  S [..., n, n].

A polynomial of degree 18 by five products, of S by a power of two, and squares of it: all derivatives are those of the products,
in every mode.  Source: Bader, Blanes and Casas 2019, doi:10.3390/math7121174.  How many squares is told by S, whose powers have
no eigenvalue beyond their norms: the 2-norm of a skew S is at most |S^3|^(1/3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import constant_pad_nd as pad

from linmaps.checks import values
from linmaps.numerics.dtypes import precise

POWERS = (0, 1, 2, 3, 6)
COMBINED = (  # B1 to B5, each of these powers; exp = B2 + (B3 + C) C with C = B1 B5 + B4
    (0.0, -0.10036558103014462, -0.00802924648241157, -0.00089213849804573, 0.0),
    (0.0, 0.3978497494996451, 1.3678377846041172, 0.4982896225253824, -0.0006378981945947233),
    (-10.967639605296206, 1.680158138789062, 0.057177984647886554, -0.0069821012248805206, 3.3497501708607046e-05),
    (-0.09043168323908105, -0.0676404519071382, 0.0675961301770460, 0.02955525704293155, -1.391802575160607e-05),
    (0.0, 0.0, -0.09233646193671186, -0.016936493900208172, -1.4008679818203610e-05),
)
NEAR = {torch.float64: 1.0, torch.float32: 3.0}  # what is left out is below rounding up to this norm
DOUBLE = 96  # rows: up to these the products of float64 cost less than the QR that is spared


def orthonormal_part(W: Tensor) -> Tensor:
    """W [..., n, r], whose columns are orthonormal but for rounding, without what rounding left.

    The rounding of an exponential or an inverse of S grows with |S|, that of a QR decomposition does not.
    """
    Q, R = torch.linalg.qr(W)
    signs = R.diagonal(dim1=-2, dim2=-1)
    return Q * torch.ones_like(signs).copysign(signs).unsqueeze(-2)


def skew_exponential(S: Tensor) -> Tensor:
    """exp(S) of a skew S.

    >>> import torch
    >>> skew_exponential(torch.zeros(2, 2)) + 0.0
    tensor([[1., 0.],
            [0., 1.]])
    """
    n = S.shape[-1]
    wide = precise(S.dtype, S.device, n) if n <= DOUBLE else S.dtype
    if wide != S.dtype:
        return _exp(S.to(wide)).to(S.dtype)
    W = _exp(S)
    return orthonormal_part(W.detach()) + (W - W.detach())


def _exp(S: Tensor) -> Tensor:
    S2 = S @ S
    S3 = S2 @ S
    size = torch.linalg.vector_norm(S3.detach(), dim=(-2, -1), keepdim=True)
    squares = (size.log2() / 3 - math.log2(NEAR[S.dtype])).ceil().nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    known = values(squares)
    if known is None:
        return _in_a_graph(S)
    powers = torch.stack([torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S), S, S2, S3, S3 @ S3], -3)
    scales = torch.exp2(-squares * torch.tensor(POWERS, dtype=S.dtype, device=S.device))
    weights = torch.tensor(COMBINED, dtype=S.dtype, device=S.device) * scales
    B = (weights @ powers.flatten(-2)).unflatten(-1, S.shape[-2:]).unbind(-3)
    C = B[0] @ B[4] + B[3]
    W = B[1] + (B[2] + C) @ C
    if not known.numel():
        return W
    fewest, most = (int(k) for k in known.aminmax())
    for k in range(most):
        W = W @ W if k < fewest else torch.where(k < squares, W @ W, W)
    return W


def _in_a_graph(M: Tensor) -> Tensor:
    """exp(M) where torch traces and no number is known, beside that of the number 1.

    torch.linalg.matrix_exp takes a polynomial by the norm, and those that it has for norms below .6 (in float64, .05) miss
    a tenth of the fifth power and a third of the eighth: 5e-5 (in float64, 2e-10) of the whole.
    """
    n = M.shape[-1]
    one = pad(M.new_ones(1, 1), (n, 0, n, 0))
    return torch.linalg.matrix_exp(pad(M, (0, 1, 0, 1)) + one)[..., :n, :n]
