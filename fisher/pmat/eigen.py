"""Symmetric eigen-decomposition with derivatives of every order up to the third, in every mode.

torch's own rule gives NaN when reverse mode is taken over forward mode, and infinities at repeated eigenvalues.
"""

from __future__ import annotations

import torch
from torch import Tensor


def eigh(m: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[n]` ascending and eigenvectors `[n, n]` of a symmetric matrix; values below rounding are zero.

    The numbers are those of torch.linalg.eigh; the derivatives are those of two steps of iterative refinement (Ogita and
    Aishima, 2018), which converge quadratically: with R = I - U'U and S = U'MU,

        lambda_i = S_ii / (1 - R_ii),   U <- U + U E,   E_ij = (S_ij + lambda_j R_ij) / (lambda_j - lambda_i),

    and E_ij = R_ij / 2 where lambda_i = lambda_j, so that no derivative is infinite.  Half precision runs in float32.

    >>> import torch
    >>> eigh(torch.diag(torch.tensor([2.0, 1.0])))[0]
    tensor([1., 2.])
    """
    if m.dtype in (torch.float16, torch.bfloat16):
        values, vectors = eigh(m.float())
        return values.to(m.dtype), vectors.to(m.dtype)
    values, vectors = constant_eigh(m)
    gap = values[None, :] - values[:, None]
    close = gap.abs() <= _rounding(values)
    U = vectors
    for _ in range(2):
        R, S, lam = _rayleigh(m, U)
        distance = torch.where(close, 1.0, lam[None, :] - lam[:, None])
        U = U + U @ torch.where(close, R / 2, (S + lam[None, :] * R) / distance)
    lam = _rayleigh(m, U)[2]
    return values + (lam - lam.detach()), vectors + (U - U.detach())


def constant_eigh(m: Tensor) -> tuple[Tensor, Tensor]:
    """The same without derivatives."""
    if m.dtype in (torch.float16, torch.bfloat16):
        values, vectors = constant_eigh(m.float())
        return values.to(m.dtype), vectors.to(m.dtype)
    values, vectors = torch.linalg.eigh(m.detach())
    # what is below rounding is zero: else its noise, not the damping, would rule the null space
    return torch.where(values.abs() > _rounding(values), values, 0.0), vectors


def _rounding(values: Tensor) -> Tensor:
    return len(values) * torch.finfo(values.dtype).eps * values.abs().amax()


def _rayleigh(m: Tensor, U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    R = torch.eye(len(m), dtype=m.dtype, device=m.device) - U.mT @ U
    S = U.mT @ m @ U
    return R, S, S.diagonal() / (1 - R.diagonal())
