"""Eigenvalues, symmetric eigen-decompositions and pseudo-inverses, whose derivatives are right where values repeat.

n, d sizes of a matrix.  Thresholds are relative; half precision is computed in float32 and cast back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linmaps.numerics import lapack
from linmaps.numerics.dtypes import working
from linmaps.numerics.linalg import damped
from linmaps.numerics.numeric import differentiated, is_plain
from linmaps.trees.graphs.tracing import traced

LOW, MORE = 3, 8  # times the rank that the size has to be; combinations of columns beyond the rank


def shifted(m: Tensor) -> Tensor:
    """m [n, n] with a diagonal at the size of rounding, for the eigenvalues of general matrices.

    LAPACK's iteration may fail to converge for a matrix of rank one, such as a constant one; this prevents it, and leaves
    a triangular matrix triangular.
    """
    small = 8 * torch.finfo(m.dtype).eps * m.detach().abs().amax()
    return m + small * torch.diag(torch.linspace(0, 1, len(m), dtype=m.dtype, device=m.device))


def eigvals(m: Tensor) -> Tensor:
    """Eigenvalues [n] of m [n, n], in LAPACK's order, also where its iteration would fail: off by rounding.

    >>> import torch
    >>> eigvals(torch.full((20, 20), 50.0, dtype=torch.float64)).abs().amax()
    tensor(1000.0000, dtype=torch.float64)
    """
    return lapack.eigvals(shifted(m))


def eigh(m: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[n]` ascending and eigenvectors `[n, n]` of a symmetric matrix, safe to differentiate.

    rank: of an m without negative eigenvalues, a bound on how many are not zero; a small one saves half of the time.

    The numbers are those of `plain_eigh`; the derivatives are those of two steps of iterative refinement (Ogita and
    Aishima, 2018), which converge quadratically: with R = I - U'U and S = U'MU,

        lambda_i = S_ii / (1 - R_ii),   U <- U + U E,   E_ij = (S_ij + lambda_j R_ij) / (lambda_j - lambda_i),

    and E_ij = R_ij / 2 where lambda_i = lambda_j, so that no derivative is infinite.  Half precision runs in float32.

    >>> import torch
    >>> eigh(torch.diag(torch.tensor([2.0, 1.0])))[0]
    tensor([1., 2.])
    """
    if working(m) is not m:
        values, vectors = eigh(working(m), rank)
        return values.to(m.dtype), vectors.to(m.dtype)
    low = rank is not None and LOW * rank <= len(m)
    values, vectors = _of_rank(m.detach(), rank) if low and rank is not None else plain_eigh(m.detach())
    if len(m) == 0 or not differentiated(m):
        return values, vectors
    close = (values[None, :] - values[:, None]).abs() <= 64 * len(m) * torch.finfo(m.dtype).eps * values.abs().amax()
    U = vectors
    for _ in range(2):
        R, S, lam = _rayleigh(m, U)
        distance = torch.where(close, 1.0, lam[None, :] - lam[:, None])
        U = U + U @ torch.where(close, R / 2, (S + lam[None, :] * R) / distance)
    lam = _rayleigh(m, U)[2]
    return values + (lam - lam.detach()), vectors + (U - U.detach())


def plain_eigh(m: Tensor) -> tuple[Tensor, Tensor]:
    """`lapack.eigh` of the symmetric part of m, which converges for a singular one too.

    LAPACK's iteration may fail in float32 where rows are zero and the rank is low (second moments of inputs that are
    mostly dead); a diagonal far below rounding prevents it.
    """
    m = (m + m.mH) / 2
    if m.shape[-1] == 0:
        return lapack.eigh(m)
    tiny = torch.finfo(m.dtype).eps ** 2 * m.abs().amax()
    if m.ndim == 2 and is_plain(m) and math.isfinite(shift := tiny.item()):  # in place, and looked at once
        m.diagonal().add_(torch.linspace(0.5 * shift, shift, m.shape[0], dtype=tiny.dtype))
        return lapack.eigh(m, finite=True)
    return lapack.eigh(m + tiny * torch.diag(torch.linspace(0.5, 1, len(m), dtype=tiny.dtype, device=m.device)))


def chirp(rows: int, columns: int, like: Tensor) -> Tensor:
    """`[rows, columns]` of numbers in [-0.5, 0.5), the same every time, and no smooth or sparse vector near them."""
    index = torch.arange(rows * columns, dtype=torch.float64, device=like.device)
    return (0.618033988749895 * index * index % 1 - 0.5).reshape(rows, columns).to(like.dtype)


def _of_rank(m: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`plain_eigh` of an m `[n, n]` without negative eigenvalues and with so many positive ones, at most.

    An orthonormal basis Q of generic combinations of m's columns, completed to all directions, holds the range in its first
    columns R, whatever the spectrum, up to rounding of the size of m; so R (eigenvectors of R'mR) and the rest are those of m.
    """
    n, k = len(m), min(len(m), rank + MORE)
    Q = lapack.qr(m @ chirp(n, k, m), mode="complete")[0]
    R, null = Q[:, :k].contiguous(), Q[:, k:]
    values, V = plain_eigh(R.mT @ (m @ R))
    return torch.cat([values.new_zeros(n - k), values.clamp_min(0)]), torch.cat([null, R @ V], 1)


def constant_eigh(m: Tensor) -> tuple[Tensor, Tensor]:
    """`plain_eigh` without derivatives; half precision runs in float32."""
    values, vectors = plain_eigh(working(m.detach()))
    if values.dtype == m.dtype:
        return values, vectors
    return values.to(m.dtype), vectors.to(m.dtype)


def denoised(values: Tensor, cut: float | None = None) -> Tensor:
    """Eigenvalues with zero for those up to `cut` times the largest: None for what float64 leaves on a null direction."""
    if len(values) == 0 or cut == 0.0:
        return values
    cut = cutoff(len(values), torch.float64) if cut is None else cut
    return torch.where(values.abs() > cut * values.abs().amax(), values, 0.0)


def cutoff(n: int, dtype: torch.dtype) -> float:
    """What rounding leaves on a null direction of a product X'X `[n, n]`, relative: measured 0.5 to 1.5 eps."""
    return max(8.0, 4 * n**0.5) * torch.finfo(dtype).eps


def rounding(values: Tensor) -> float:
    """`cutoff` for eigenvalues `[n]`."""
    return cutoff(len(values), values.dtype)


def _rayleigh(m: Tensor, U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    R = torch.eye(len(m), dtype=m.dtype, device=m.device) - U.mT @ U
    S = U.mT @ m @ U
    return R, S, S.diagonal() / (1 - R.diagonal())


def pinv(
    a: Tensor,
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
    *,
    size: Tensor | None = None,
    atol: float | Tensor = 0.0,
) -> Tensor:
    """Pseudo-inverse of the symmetric `a + ridge I` `[d, d]`.

    Eigenvalues up to `rtol` times the largest, or up to `atol`, count as zero (None: max(8, 4 √d) machine epsilons;
    rounding puts one or two on a null direction of a product X'X).  size: a scalar in place of the largest eigenvalue, for
    an `a` that is a difference of larger terms.

    In the eigenbasis V of the values, taken as constant, a matrix of constant rank is

        V'aV = [D, C'; C, C D^-1 C'],    a⁺ = V [I; F] H D^-1 H [I, F'] V',    F = C D^-1,   H = (I + F'F)^-1,

    with C = 0 and D diagonal at the values themselves: two Newton steps for D^-1 and two terms of H make derivatives up
    to the third order exact, in any mode, with an error that grows like the condition number (the derivative of
    `torch.linalg.pinv` loses its square: its null-space terms do not vanish at full rank).  Where none is asked for, the
    first order of the same takes away what rounding left of V'aV beside the values: `corrected`.
    """
    d = a.shape[-1]
    if d == 0:
        return a
    if working(a) is not a:
        rtol = cutoff(d, a.dtype) if rtol is None else rtol
        return pinv(working(a), ridge, rtol, size=size, atol=atol).to(a.dtype)
    a = (a + a.mT) / 2
    if isinstance(ridge, Tensor) or ridge:
        a = damped(a, ridge)
    start, v = inverse_spectrum(a, rtol, size=size, atol=atol)
    if not differentiated(a) and not traced():
        return v @ corrected(v.mT @ a @ v, start) @ v.mT
    kept = start != 0
    b = v.mT @ a @ v
    core = torch.where(kept[:, None] & kept, b, 0.0)
    x = 2 * torch.diag(start) - start[:, None] * core * start
    x = 2 * x - x @ core @ x
    f = torch.where(~kept[:, None] & kept, b, 0.0) @ x
    left = torch.diag(kept.to(a.dtype)) + f
    left = left - left @ (f.mT @ f)
    return v @ (left @ x @ left.mT) @ v.mT


def inverse_spectrum(
    a: Tensor, rtol: float | None = None, *, size: Tensor | None = None, atol: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """(w `[d]`, V `[d, d]`): V diag(w) V' is `pinv` of a symmetric a, before its correction; w is 0 where it cuts.  Constants."""
    values, v = plain_eigh(a.detach())
    kept = values.abs() > (rounding(values) if rtol is None else rtol) * (
        values.abs().amax() if size is None else size.detach()
    )
    kept = kept & (values.abs() > (atol.detach() if isinstance(atol, Tensor) else atol))
    return torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0), v


def corrected(b: Tensor, w: Tensor) -> Tensor:
    """V'a⁺V to the first order in what b = V'aV `[d, d]` has beside 1 / w, at rows kept (w != 0), K, and cut, C:

        G_KK = 2 diag(w) - w b_KK w,     G_CK = b_CK w²,     G_CC = 0

    The eigenvectors of LAPACK leave rounding of the size of a there, whose share of a small eigenvalue is large: without
    this a⁺ of float32 loses two digits more than a itself lacks.
    """
    kept, column = w != 0, w[:, None]
    return (
        torch.diag(2 * w)
        - column * b * w
        + torch.where(kept, 0.0, column**2 * b)
        + torch.where(kept[:, None], 0.0, b * w**2)
    )
