"""Lanczos: extreme eigenpairs and functions of a symmetric operator from products with it alone.

d unknowns, a flat vector `[d]`; m steps; T `[m, m]` tridiagonal, Q `[m, d]` orthonormal rows with Q A Q' = T.
Members of an ensemble by vmap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.numerics import dtypes
from linmaps.numerics.eigen import plain_eigh

Operator = Callable[[Tensor], Tensor]


def _singly(fn: Any) -> Any:
    """fn(operator, start, ...) with all but the operator in float32, where start is of half precision."""

    @functools.wraps(fn)
    def run(operator: Operator, start: Tensor, *args: Any, **options: Any) -> Any:
        dtype, wide = start.dtype, dtypes.working_dtype(start.dtype)
        if dtype == wide:
            return fn(operator, start, *args, **options)
        found = fn(lambda v: operator(v.to(dtype)).to(wide), start.to(wide), *args, **options)
        return trees.map(lambda t: t.to(dtype), found)

    return run


@_singly
def tridiagonal(operator: Operator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(T `[m, m]`, Q `[m, d]`) after m = min(steps, d) steps from `start` `[d]`, with full reorthogonalisation.

    Where the Krylov space ends before, it goes on from a fixed other vector orthogonal to it, so that m = d finds all
    eigenvalues with their multiplicities.  m products, 4 m^2 d more.  The numbers only: without derivatives.
    Lanczos (1950); Golub and Van Loan, Matrix Computations, section 10.3.

    >>> import torch
    >>> T, Q = tridiagonal(lambda v: torch.tensor([1.0, 2.0]) * v, torch.ones(2), 2)
    >>> torch.linalg.eigvalsh(T).round()
    tensor([1., 2.])
    """
    check_steps(steps)
    d = start.shape[-1]
    m, eps = min(steps, d), torch.finfo(start.dtype).eps
    start = start.detach()
    rows = start.new_zeros(0, d)
    q = _normalized(_orthogonal(_other(start, 0), rows), _orthogonal(start, rows), 0.0)[0]
    alphas, betas, size = [], [], start.new_zeros(())
    for k in range(m):
        rows = torch.cat([rows, q[None]])
        applied = operator(q).detach()
        alphas.append(q @ applied)
        size = torch.maximum(size, torch.linalg.vector_norm(applied))
        if k + 1 < m:
            q, beta = _normalized(_orthogonal(_other(start, k + 1), rows), _orthogonal(applied, rows), 10 * eps * size)
            betas.append(beta)
    off = torch.diag(torch.stack(betas), 1) if betas else 0.0
    off_transposed = torch.diag(torch.stack(betas), -1) if betas else 0.0
    return torch.diag(torch.stack(alphas)) + off + off_transposed if alphas else start.new_zeros(0, 0), rows


def _orthogonal(v: Tensor, rows: Tensor) -> Tensor:
    for _ in range(2):  # twice is enough (Parlett, The Symmetric Eigenvalue Problem, section 6.9)
        v = v - (rows @ v) @ rows
    return v


def _normalized(other: Tensor, v: Tensor, least: float | Tensor) -> tuple[Tensor, Tensor]:
    """(v / |v|, |v|), or (other / |other|, 0) where v is no more than `least` long."""
    length = torch.linalg.vector_norm(v)
    alive = length > least
    chosen = torch.where(alive, v, other)
    return chosen / torch.linalg.vector_norm(chosen), torch.where(alive, length, 0.0)


def _other(like: Tensor, k: int) -> Tensor:
    """Fixed vectors in general position."""
    n = torch.arange(1, like.shape[-1] + 1, dtype=like.dtype, device=like.device)
    return torch.cos((1.6180339887 + 0.7548776662 * k) * n * n.sqrt() + k)


@_singly
def eigenpairs(operator: Operator, start: Tensor, k: int, steps: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(values `[k]` ascending, vectors `[k, d]`, residuals `[k]`) of the k largest eigenvalues, by Lanczos.

    residuals are |A v - value v|.  steps: None is 2 k + 30, at most d; more steps make them smaller.
    Raises ValueError for k < 1 or steps < k.  Derivatives of the values are those of v'A v (Hellmann and Feynman), right
    to the first order where the pair has converged and is simple; the vectors have none.

    >>> import torch
    >>> eigenpairs(lambda v: torch.tensor([1.0, 3.0, 2.0]) * v, torch.ones(3), 2)[0].round()
    tensor([2., 3.])
    """
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1 eigenpair")
    k = min(k, start.shape[-1])
    steps = 2 * k + 30 if steps is None else steps
    if steps < k:
        raise ValueError(f"steps: got {steps}, expected at least k = {k}")
    T, Q = tridiagonal(operator, start, steps)
    theta, S = plain_eigh(T)
    vectors = S[:, -k:].mT @ Q
    applied = torch.func.vmap(operator)(vectors)
    rayleigh = (vectors * applied).sum(1)
    values = theta[-k:] + (rayleigh - rayleigh.detach())
    residuals = torch.linalg.vector_norm(applied.detach() - theta[-k:, None] * vectors, dim=1)
    return values, vectors, residuals


@_singly
def extreme(operator: Operator, start: Tensor, steps: int | None = None) -> Tensor:
    """The largest absolute eigenvalue, a scalar: the spectral norm; steps: None is 60, at most d.

    >>> import torch
    >>> extreme(lambda v: torch.tensor([1.0, -3.0]) * v, torch.ones(2))
    tensor(3.)
    """
    T, Q = tridiagonal(operator, start, 60 if steps is None else steps)
    theta, S = plain_eigh(T)
    if theta.shape[0] == 0:
        return start.new_zeros(())
    vector = S[:, theta.abs().argmax()] @ Q
    rayleigh = vector @ operator(vector)
    value = theta.abs().amax()
    return value + torch.sign(rayleigh.detach()) * (rayleigh - rayleigh.detach())


@_singly
def log_quadrature(operator: Operator, probes: Tensor, steps: int | None = None) -> Tensor:
    """Estimate of log det A = tr log A of a positive definite operator, by stochastic Lanczos quadrature.

        mean over probes z `[p, d]` of |z|^2 e_1' log(T_z) e_1

    Unbiased for probes of identity covariance up to the quadrature's error, which falls geometrically with the steps
    (None: 40, at most d).  The derivative is the estimate mean of z' A^-1 dA z of tr(A^-1 dA), to the first order.
    Ubaru, Chen and Saad (2017).  NaN where A has an eigenvalue below 0.

    >>> import torch
    >>> probes = 2**0.5 * torch.eye(2)
    >>> log_quadrature(lambda v: torch.tensor([1.0, 2.0]) * v, probes).exp()
    tensor(2.0000)
    """

    def one(z: Tensor) -> Tensor:
        T, Q = tridiagonal(operator, z, 40 if steps is None else steps)
        theta, S = plain_eigh(T)
        z = z.detach()
        value = (z @ z) * (S[0] ** 2 * theta.log()).sum()
        solved = torch.linalg.vector_norm(z) * ((S[0] / theta) @ S.mT @ Q)
        slope = solved @ operator(z)
        return value + (slope - slope.detach())

    return torch.func.vmap(one)(probes).mean()


def check_steps(steps: int) -> None:
    """Raise unless there is at least one step."""
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
