"""Orthonormal directions beside those that are there: along a matrix where it has any, along generic ones elsewhere.

M `[m, n]` what the directions should express, Q `[m, r]` orthonormal columns that are there (or zero ones), k new ones.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from linmaps.numerics.numeric import positive_root
from linmaps.numerics.singular import svd


def rounding(M: Tensor) -> float:
    """What rounding leaves on a singular value that is zero, relative to the largest."""
    return 32 * max(M.shape[-2:]) * torch.finfo(M.dtype).eps


def span(M: Tensor) -> Tensor:
    """An orthonormal basis `[m, min(m, n)]` of the columns of M; zero columns where these are dependent."""
    if M.numel() == 0:
        return M[:, :0]
    U, s, _ = svd(M)
    return torch.where(s.detach() > rounding(M) * s.detach()[:1], U, 0.0)


def away(M: Tensor, Q: Tensor) -> Tensor:
    """(I - Q Q') M, twice: once leaves what rounding makes of a small difference."""
    for _ in range(2 if Q.shape[-1] else 0):
        M = M - Q @ (Q.mH @ M)
    return M


def fresh(found: Tensor, alive: Tensor, Q: Tensor, Z: Tensor) -> Tensor:
    """Orthonormal columns `[m, k]` away from Q: the columns `found` that are alive, which come first, else generic ones Z."""
    columns = torch.where(alive, found, Z)
    for _ in range(2):
        columns, R = torch.linalg.qr(away(columns, Q))
        columns = columns * R.diagonal().detach().sgn()
    return columns


def leading(M: Tensor, Q: Tensor, Z: Tensor, size: Tensor) -> Tensor:
    """k orthonormal columns away from Q: left singular vectors of M, largest first, and columns of Z `[m, k]` beyond its rank.

    M is away from Q already; size: a scalar to which rounding is relative.
    """
    k = Z.shape[1]
    if k == 0:
        return Z
    if M.numel() == 0:
        return fresh(Z, torch.ones_like(Z[0], dtype=torch.bool), Q, Z)
    U, s, _ = svd(M)
    U, s = U[:, :k], s[:k].detach()
    phase = (U.conj() * Z[:, : U.shape[1]]).sum(0).detach().sgn()  # LAPACK's signs depend on rounding; these do not
    alive = pad(s > rounding(M) * size.detach(), (0, k - len(s)))
    return fresh(pad(U * phase, (0, k - len(s))), alive, Q, Z)


def column_size(M: Tensor) -> Tensor:
    """The root mean square norm of the columns of M, to which new ones are scaled; 1 where M is zero."""
    square = (M * M.conj()).real.sum() / max(M.shape[-1], 1)
    return positive_root(torch.where(square > 0, square, 1.0))


def beside(M: Tensor, columns: Tensor) -> Tensor:
    """M with columns after its own."""
    return torch.cat([M, columns.to(M.dtype)], -1)


def with_zeros(t: Tensor, k: int, axis: int) -> Tensor:
    """t with k zeros after the end of an axis."""
    after = t.ndim - 1 - axis % t.ndim
    return pad(t, (0, 0) * after + (0, k))
