"""Matrix scaling: rows and columns of a positive matrix made to sum to 1, by Sinkhorn's steps and Newton's.

L [n, n] logarithms of entries, P [n, n] a non-negative matrix.  Source: Sinkhorn 1964; Newton's steps: Brauer, Clason, Lorenz
and Wirth, arXiv:1710.06635.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linmaps.numerics.numeric import differentiated

NEWTON = 8  # steps: enough from where five of Sinkhorn's lead, for entries down to 1e-8
LONGEST = 2.0  # change of a logarithm in one of them
RIDGE = 1e-13


def doubly_scaled(L: Tensor, n_iters: int) -> Tensor:
    """P = exp(L_ij + u_i + v_j) [n, n], whose rows and columns sum to 1, the columns exactly.

    u maximizes sum(u) - sum_j log sum_i exp(L_ij + u_i), which is concave with the slope 1 - P 1 and the second
    derivative P P' - diag(P 1).  Numbers are found in float64; the derivatives to the second order are those of two
    steps of Newton's method at the solution.
    """
    flat = L.detach().to(torch.float64)
    u = flat.mean() - flat.mean(1)  # geometric means of rows and columns are alike to start with
    for _ in range(n_iters):
        u = u - (flat + u[:, None]).log_softmax(0).logsumexp(1)
    for _ in range(NEWTON):
        P = (flat + u[:, None]).softmax(0)
        step = torch.cholesky_solve((1 - P.sum(1))[:, None], _factor(P))[:, 0]
        step = step - step.mean()
        u = u + step * (LONGEST / step.abs().amax().clamp(min=LONGEST))
    if differentiated(L):
        factor, u0 = _factor((flat + u[:, None]).softmax(0)).to(L.dtype), u.to(L.dtype)
        u = u0
        for _ in range(2):
            off = 1 - (L + u[:, None]).softmax(0).sum(1)
            step = u + torch.cholesky_solve(off[:, None], factor)[:, 0]
            u = u0 + (step - step.detach())
    return (L + u.to(L.dtype)[:, None]).softmax(0)


def _factor(P: Tensor) -> Tensor:
    """Cholesky factor of diag(P 1) - P P', raised where it is 0 by a common shift, and by rounding."""
    n = len(P)
    eye = torch.eye(n, dtype=P.dtype, device=P.device)
    return torch.linalg.cholesky_ex(torch.diag(P.sum(1)) - P @ P.mT + 1 / n + RIDGE * eye)[0]


def doubly_stochastic(P: Tensor) -> Tensor:
    """A doubly stochastic matrix near a non-negative one: sums above 1 are scaled down, the rest is added as one product."""
    P = P / P.sum(1, keepdim=True).clamp(min=1)
    P = P / P.sum(0, keepdim=True).clamp(min=1)
    rows, columns = (1 - P.sum(1)).clamp(min=0), (1 - P.sum(0)).clamp(min=0)
    total = rows.sum()
    return P + rows[:, None] * columns / torch.where(total > 0, total, 1.0)
