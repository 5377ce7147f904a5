"""Equations of Lyapunov and Stein for stable matrices, by a doubled series: products alone, right in every mode.

n rows and columns; P, X and Q symmetric.
"""

from __future__ import annotations

from torch import Tensor

from linmaps.numerics.linalg import inv
from linmaps.numerics.numeric import eye_like

DOUBLINGS = 30  # 2^30 terms, enough for a spectral radius of 1 - 1e-7


def solve_stein(A: Tensor, Q: Tensor) -> Tensor:
    """X of `X = A X A' + Q`, the sum of A^k Q A'^k, for A of a spectral radius below 1.  Source: Smith 1968.

    >>> import torch
    >>> solve_stein(torch.tensor([[0.5]]), torch.tensor([[3.0]]))
    tensor([[4.]])
    """
    for _ in range(DOUBLINGS):
        Q, A = Q + A @ Q @ A.mT, A @ A
    return Q


def solve_lyapunov(M: Tensor, g: Tensor) -> Tensor:
    """X of Lyapunov's equation `M X + X M' = -2 I`, for M whose eigenvalues have negative real parts.

    For any g > 0 and A = (g I - M)^-1 (g I + M) it reads X = A X A' + 4 g (g I - M)^-1 (g I - M')^-1; g of the size of M's
    eigenvalues makes the series short.

    >>> import torch
    >>> solve_lyapunov(torch.tensor([[-0.5]]), torch.tensor(1.0))
    tensor([[2.]])
    """
    eye = eye_like(M, len(M))
    left = inv(g * eye - M)
    return solve_stein(left @ (g * eye + M), 4 * g * left @ left.mT)
