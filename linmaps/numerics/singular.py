"""Singular vectors and orthonormal bases with finite derivatives, right for what depends on their spans alone.

M [m, n], real or complex, k = min(m, n).
"""

from __future__ import annotations

import torch
from torch import Tensor

from linmaps.numerics import lapack
from linmaps.numerics.numeric import binade, eye_like


def svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin singular value decomposition U [m, k], s [k], V^H [k, n] of M [m, n], safe to differentiate.

    Numbers are those of torch.linalg.svd with columns made orthonormal to rounding, of a matrix of any size: squares are
    those of M by a power of two.  Derivatives are those of two steps of iterative refinement, right to the second order,
    U <- U + U F + (I - U U^H) M V / s and likewise V, with T = U^H M V, R = I - U^H U, Z = I - V^H V,

        F_ij = (s_j (T_ij + R_ij s_j) + s_i (conj(T_ji) + Z_ij s_j)) / (s_j^2 - s_i^2),
        F_ij = R_ij / 2 where s_i = s_j,    F_ii = R_ii / 2 + i Im(T_ii) / (2 s_i), so that pairs keep a common phase.

    So what depends on spans alone, as U U^H M does but not (U s) V^H, keeps it where singular values coincide within them.
    Where s_r = s_{r+1} or s_r = 0 (the identity cut below its rank, a tensor of lower rank than asked for, T = 0) the best
    tensor of rank r has none, and these are those of the projection onto fixed vectors.  Source: Ogita and Aishima 2020.

    >>> import torch
    >>> svd(torch.diag(torch.tensor([3.0, 4.0])))[1]
    tensor([4., 3.])
    """
    scale, (m, n) = binade(M)[None], M.shape  # with an axis: torch cannot divide an empty ensemble by numbers
    M = M / scale[None]
    U, s, Vh = lapack.svd(M.detach())
    k, U, V = len(s), _orthonormal(U), _orthonormal(Vh.mH)
    rounding = 64 * max(m, n) * torch.finfo(s.dtype).eps * s[:1]
    same, zero = (s[:, None] - s).abs() <= rounding, s <= rounding
    u, sigma, v = U, s, V
    for _ in range(2):
        Mv, Mu = M @ v, M.mH @ u
        T, R, Z = u.mH @ Mv, eye_like(U, k) - u.mH @ u, eye_like(U, k) - v.mH @ v
        sigma = T.diagonal().real / (1 - (R + Z).diagonal().real / 2)
        A, B, row = T + R * sigma, T.mH + Z * sigma, sigma[:, None]
        inverse = torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, sigma))
        phase = eye_like(U, k) * (T - T.mH) * inverse / 4
        gap = torch.where(same, 1.0, (sigma - row) * (sigma + row))
        turn_u = torch.where(same, R / 2 + phase, (A * sigma + row * B) / gap)
        turn_v = torch.where(same, Z / 2 - phase, (row * A + B * sigma) / gap)
        out_u = (Mv - u @ (T + R @ T)) * inverse if m > k else 0.0
        out_v = (Mu - v @ (T.mH + Z @ T.mH)) * inverse if n > k else 0.0
        u, v = u + u @ turn_u + out_u, v + v @ turn_v + out_v
    return U + (u - u.detach()), (s + (sigma - sigma.detach())) * scale, (V + (v - v.detach())).mH


def truncated(M: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of rank r to M [m, n], as a product of left [m, r] and right [r, n], r <= min(m, n).

    P P^H M of the leading left singular vectors P (of a tall M M P P^H of the right ones).  A span near that of P is that of
    P + C K with the other vectors C; it follows M to the second order by two steps of Newton's from K = 0 for its invariance,

        C^H M M^H (P + C K) = K P^H M M^H (P + C K),

    with the derivatives s_i^2 - s_j^2 at K = 0: products of r columns, where `svd` refines all vectors.  Where s_r = s_{r+1}
    those of the pair are left out, as there.

    >>> import torch
    >>> left, right = truncated(torch.diag(torch.tensor([3.0, 4.0])), 1)
    >>> (left @ right).abs()
    tensor([[0., 0.],
            [0., 4.]])
    """
    m, n = M.shape
    if m > n:
        left, right = truncated(M.mH, rank)
        return right.mH, left.mH
    scale = binade(M)[None]
    M = M / scale[None]
    U, s, _ = lapack.svd(M.detach())
    P, C = _orthonormal(U[:, :rank]), U[:, rank:]
    same = s[:rank] - s[rank:, None] <= 64 * n * torch.finfo(s.dtype).eps * s[:1]
    gap = torch.where(same, 1.0, (s[:rank] - s[rank:, None]) * (s[:rank] + s[rank:, None]))
    K = torch.zeros_like(C.mH @ P)
    for _ in range(2):
        moved = M @ (M.mH @ (P + C @ K))
        K = K + torch.where(same, 0.0, C.mH @ moved - K @ (P.mH @ moved)) / gap
        K = K - K.detach()
    span = P + C @ K
    right = span.mH @ M
    return span, (right - K.mH @ (K @ right)) * scale[None]


def _orthonormal(U: Tensor) -> Tensor:
    """Columns that LAPACK left orthonormal to some dozens of roundings, after a step of Newton and Schulz."""
    return U + U @ (eye_like(U, U.shape[1]) - U.mH @ U) / 2


def left(M: Tensor) -> Tensor:
    """The left singular vectors U [m, k] of M [m, n], as of `svd`; of a wide M in a third of its time.

    Those of M Q [m, m] for an orthonormal basis Q of the rows, which follows M to the second order as `basis` does.

    >>> import torch
    >>> left(torch.ones(2, 9)).abs()[:, 0]
    tensor([0.7071, 0.7071])
    """
    m, n = M.shape
    return svd(M @ basis(M.mH) if n > 2 * m else M)[0]


def basis(Y: Tensor) -> Tensor:
    """Q [m, l] of the QR decomposition of Y [m, l], with derivatives that exist where those of QR do not.

    With R constant, X = Y R^-1 has the span of Y and is orthonormal up to what Y changes; two Newton-Schulz steps
    X <- X (3 I - X^H X) / 2 make it so.  What depends on the span alone has its right derivatives; columns of Y that
    depend on those before them, as beyond the rank of a matrix, move nothing.

    >>> import torch
    >>> basis(torch.ones(4, 2)).shape
    torch.Size([4, 2])
    """
    Q, R = torch.linalg.qr(Y.detach())
    size = R.diagonal().abs()
    dependent = size <= 64 * max(Y.shape) * torch.finfo(Y.dtype).eps * size.amax(0, keepdim=True)
    R = torch.where(dependent[:, None] | dependent, torch.eye(len(R), dtype=R.dtype, device=R.device), R)
    moved = torch.linalg.solve_triangular(R, torch.where(dependent, 0.0, Y), upper=True, left=False)
    X = Q + (moved - moved.detach())
    eye = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
    for _ in range(2):
        X = X + X @ (eye - X.mH @ X) / 2
    return Q + (X - X.detach())


def product_svdvals(U: Tensor, V: Tensor) -> Tensor:
    """Singular values of U V for U [n, r], V [r, m], r <= min(n, m), at size r; smooth where those of the product are not."""
    s = lapack.svdvals((basis(U).mT @ U) @ (V @ basis(V.mT)))
    return torch.nn.functional.pad(s, (0, min(len(U), V.shape[-1]) - V.shape[-2]))
