"""Sums of rank-one terms near a given tensor (CP) by alternating least squares, and back.

T has N modes of sizes s_1..s_N; weights [R], factors [s_k, R]; real or complex; half precision is computed in float32 and
cast back.  Pure, with a fixed number of sweeps, so vmap maps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.checks import number, room, size
from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.factorized.tensors.multilinear import SWEEPS, khatri_rao, unfolded
from linmaps.numerics.dtypes import restored, working_dtype
from linmaps.numerics.linalg import refined
from linmaps.numerics.numeric import binade, eye_like
from linmaps.numerics.singular import svd


@door
@typed
def cp_start(T: Tensor, R: int) -> list[Tensor]:
    """Factors [s_k, R] to start alternating least squares from, without random numbers.

    Leading left singular vectors of each unfolding; missing columns (R > s_k) are the unit vectors of a Weyl
    sequence, entries proportional to `sin(phase)` or, for a complex T, `exp(i phase)`, with `phase = sqrt(k^2 + 1) j r (j + r)`
    in row j, column r.  It also fixes the signs or phases of the singular vectors: inner products with it are positive.

    >>> import torch
    >>> [tuple(U.shape) for U in cp_start(torch.ones(2, 3), 4)]
    [(2, 4), (3, 4)]
    """
    if not isinstance(R, int) or isinstance(R, bool) or R < 1:
        raise ValueError(f"cp_start: R is {R!r}, expected a positive int, the number of terms; convert with int(...)")
    room(R * sum(T.shape), f"cp_start of {R} terms", "numbers", "fewer terms")
    dtype, T, start = T.dtype, T.to(working_dtype(T.dtype)), []
    for k, s in enumerate(T.shape):
        i, j = (torch.arange(1, n + 1, dtype=torch.float64, device="cpu") for n in (s, R))
        phase = math.sqrt((k + 1) ** 2 + 1) * i[:, None] * j * (i[:, None] + j)
        W = torch.polar(torch.ones_like(phase), phase) if T.is_complex() else phase.sin()
        W = (W / torch.linalg.vector_norm(W, dim=0)).to(T.device, T.dtype)
        U = svd(unfolded(T, k))[0][:, :R]
        r = U.shape[1]
        start.append(torch.cat([U * (W[:, :r] * U.conj()).sum(0).sgn(), W[:, r:]], dim=1))
    return restored(dtype, start)


@door
@typed
def cp_als(
    T: Tensor, start: int | Sequence[Tensor], *, n_sweeps: int = 50, ridge: float = 1e-4
) -> tuple[Tensor, list[Tensor]]:
    """Weights lambda [R] and factors U_k [s_k, R] with unit columns of a sum of R rank-one terms near T.

    Alternating least squares from the factors `start` [s_k, R], or from `cp_start(T, R)` for an int, n_sweeps times over
    all modes; U_k carries the weights, K is the Khatri-Rao product of the others and G their Gram matrix:

        U_k <- U_k + (T_(k) conj(K) - U_k G) (G + mu I)^-1,    mu = max(ridge, 8 R eps) tr(G) / R.

    The ridge pulls towards the U_k before, not towards 0: no sweep makes the error larger, and exact tensors stay exact.
    Products with T are shared by the modes of either half of T, so that a sweep takes two large ones, 4 R prod(s)
    operations.  The optimum is local and depends on the start.  Convergence is linear, and through swamps: exact tensors of
    R random terms, R below the sizes, are nearly all at rounding after 500 sweeps, though many not after 50; with larger R
    errors of some per cent can last for hundreds of sweeps, or for ever.  Derivatives are those of the sweeps: 0 at T = 0,
    and huge where R exceeds the rank of T, whose surplus terms have no direction.
    Source: Kolda and Bader 2009; Phan et al. 2013; Navasca et al. 2008.

    ValueError for a start of other shapes.

    >>> import torch
    >>> T = torch.arange(1.0, 7.0).reshape(2, 3, 1)
    >>> torch.allclose(reconstruct_cp(*cp_als(T, 2)), T, atol=1e-4)
    True
    """
    size(n_sweeps, "n_sweeps", 0, SWEEPS)
    number(ridge, "ridge", low=0)
    own = isinstance(start, int)
    start = cp_start(T, start) if isinstance(start, int) else start
    shapes, sizes = [tuple(U.shape) for U in start], tuple(T.shape)
    R = shapes[0][-1] if shapes and shapes[0] else 0
    if shapes != [(s, R) for s in sizes] or R < 1:
        raise ValueError(f"cp_als: start has shapes {shapes}, expected [(s, R) for s in {sizes}]; see cp_start(T, R)")
    dtype, T = T.dtype, T.to(working_dtype(T.dtype))
    scale = binade(T)[None]  # squares are those of T by a power of two
    T = T / scale
    units = [_normalized(U.to(T.dtype), U.to(T.dtype)) for U in start]
    factors, weights = [U for U, _ in units], torch.stack([size for _, size in units]).prod(0)
    weights = weights if own else weights / scale  # unit columns of one's own are of the size of T
    grams = [U.mT @ U.conj() for U in factors]

    def update(M: Tensor, first: int, last: int) -> None:
        """The modes from first to last, M being T times all others [their sizes, R]."""
        nonlocal weights
        if last - first > 1:
            middle = (first + last) // 2
            M = M.reshape(math.prod(sizes[first:middle]), math.prod(sizes[middle:last]), R)
            update((M * khatri_rao(factors[middle:last]).conj()).sum(1), first, middle)
            update((M * khatri_rao(factors[first:middle]).conj()[:, None]).sum(0), middle, last)
            return
        G = torch.ones_like(grams[first])
        for gram in (*grams[:first], *grams[last:]):
            G = G * gram
        old = factors[first] * weights
        new = old + _divided(M - old @ G, G, max(ridge, 8 * R * torch.finfo(T.dtype).eps))
        factors[first], weights = _normalized(new, factors[first])
        grams[first] = factors[first].mT @ factors[first].conj()

    # the two halves of the modes with the smallest Khatri-Rao products
    half = min(range(1, T.ndim), key=lambda k: math.prod(sizes[:k]) + math.prod(sizes[k:]), default=0)
    matrix = T.reshape(math.prod(sizes[:half]), math.prod(sizes[half:]))
    for _ in range(n_sweeps):
        if half:
            update(matrix @ khatri_rao(factors[half:]).conj(), 0, half)
            update(matrix.mT @ khatri_rao(factors[:half]).conj(), half, T.ndim)
        else:
            update(T[:, None].expand(sizes[0], R), 0, 1)
    return restored(dtype, [weights.to(T.dtype) * scale])[0], restored(dtype, factors)


def _normalized(U: Tensor, otherwise: Tensor) -> tuple[Tensor, Tensor]:
    """Unit columns and their sizes; in place of a column 0 that of `otherwise`, which a later sweep can revive."""
    sizes = torch.linalg.vector_norm(U, dim=0)
    return torch.where(sizes > 0, U / torch.where(sizes > 0, sizes, 1.0), otherwise), sizes


def _divided(B: Tensor, G: Tensor, ridge: float) -> Tensor:
    """B (G + ridge mean(diagonal) I)^-1 for a positive semidefinite Hermitian G."""
    mean = G.diagonal().real.mean(0, keepdim=True)
    G = G + ridge * torch.where(mean > 0, mean, 1.0) * eye_like(G, G.shape[0])
    L = torch.linalg.cholesky_ex(G.detach()).L
    return refined(lambda b: torch.cholesky_solve(b.mH, L).mH, lambda X: X @ G, B, B.detach())


@door
@typed
def reconstruct_cp(weights: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The tensor `sum_r weights_r u_1r (x) u_2r (x) ...` of factors [s_k, R].

    >>> import torch
    >>> reconstruct_cp(torch.tensor([2.0]), [torch.ones(2, 1), torch.ones(1, 1)])
    tensor([[2.],
            [2.]])
    """
    half = (len(factors) + 1) // 2
    left = khatri_rao(factors[:half]) * weights
    right = khatri_rao(factors[half:]) if factors[half:] else left.new_ones(1, len(weights))
    return (left @ right.mT).reshape([U.shape[0] for U in factors])
