"""Decompositions of a given tensor: tensor train, Tucker, CP.  Pure, with a fixed number of sweeps, so vmap maps them.

T has N modes of sizes s_1..s_N; real or complex; half precision is computed in float32 and cast back.  `svd` says where
derivatives exist: those of trains and of Tucker tensors are finite everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.checks import number, room, size
from linmaps.checks.door import door
from linmaps.checks.precision import HALF
from linmaps.checks.typed import typed
from linmaps.numerics import lapack
from linmaps.numerics.linalg import refined
from linmaps.numerics.numeric import eye_like, working


def svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin singular value decomposition U [m, k], s [k], V^H [k, n] of M [m, n], safe to differentiate.

    Numbers are those of torch.linalg.svd, derivatives those of two steps of iterative refinement, right to the second
    order, U <- U + U F + (I - U U^H) M V / s and likewise V, with T = U^H M V, R = I - U^H U, Z = I - V^H V,

        F_ij = (s_j (T_ij + R_ij s_j) + s_i (conj(T_ji) + Z_ij s_j)) / (s_j^2 - s_i^2),
        F_ij = R_ij / 2 where s_i = s_j,    F_ii = R_ii / 2 + i Im(T_ii) / (2 s_i), so that pairs keep a common phase.

    So what depends on spans alone, as U U^H M does but not (U s) V^H, keeps it where singular values coincide within them.
    Where s_r = s_{r+1} or s_r = 0 (the identity cut below its rank, a tensor of lower rank than asked for, T = 0) the best
    tensor of rank r has none, and these are those of the projection onto fixed vectors.  Source: Ogita and Aishima 2020.

    >>> import torch
    >>> svd(torch.diag(torch.tensor([3.0, 4.0])))[1]
    tensor([4., 3.])
    """
    (m, n), (U, s, Vh) = M.shape, lapack.svd(M.detach())
    k, V = len(s), Vh.mH
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
    return U + (u - u.detach()), s + (sigma - sigma.detach()), (V + (v - v.detach())).mH


def unfolded(T: Tensor, k: int) -> Tensor:
    """[s_k, the others in their order]."""
    return T.movedim(k, 0).reshape(T.shape[k], math.prod(T.shape) // T.shape[k])


def times(T: Tensor, A: Tensor, k: int) -> Tensor:
    """Mode k of T replaced by A [r, s_k] applied to it."""
    return torch.tensordot(A, T, dims=([1], [k])).movedim(0, k)


def restored(dtype: torch.dtype, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Results back in half precision where T was."""
    return [t.to(dtype) if dtype in HALF else t for t in tensors]


def check_tt_ranks(what: str, sizes: Sequence[int], ranks: Sequence[int]) -> None:
    """ValueError for ranks that no tensor train of these sizes can make use of."""
    N, cure = len(sizes), "linmaps.factorized.tt_rank makes ranks that fit"
    if len(ranks) != N + 1 or ranks[0] != 1 or ranks[-1] != 1:
        raise ValueError(f"{what}: ranks are {tuple(ranks)}, expected {N + 1} of them with 1 at both ends; {cure}")
    for k in range(1, N):
        most = min(ranks[k - 1] * sizes[k - 1], math.prod(sizes[k:]))
        if not 1 <= ranks[k] <= most:
            raise ValueError(f"{what}: rank {k} is {ranks[k]}, expected 1 to {most} for sizes {tuple(sizes)}; {cure}")


SWEEPS = 100_000  # more is a mistake: none of the decompositions needs a tenth of it


@door
@typed
def tt_svd(T: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Cores [r_{k-1}, s_k, r_k] of a tensor train near T, for ranks (1, r_1, ..., r_{N-1}, 1).

    Truncated singular value decompositions from left to right; the error is at most sqrt(N - 1) times that of the best
    tensor train of these ranks, and 0 at full ranks.  Source: Oseledets 2011, algorithm 1.

    ValueError for ranks that the sizes do not allow.

    >>> import torch
    >>> T = torch.arange(24.0).reshape(2, 3, 4)
    >>> torch.allclose(reconstruct_tt(tt_svd(T, (1, 2, 2, 1))), T, atol=1e-4)
    True
    """
    check_tt_ranks("tt_svd", T.shape, ranks)
    rest, cores = T.to(working(T.dtype)), []
    for k, s in enumerate(T.shape[:-1]):
        rest = rest.reshape(ranks[k] * s, math.prod(T.shape[k + 1 :]))
        U = svd(rest)[0][:, : ranks[k + 1]]
        cores.append(U.reshape(ranks[k], s, ranks[k + 1]))
        rest = U.mH @ rest
    return restored(T.dtype, [*cores, rest.reshape(ranks[-2], T.shape[-1], 1)])


@door
@typed
def reconstruct_tt(cores: Sequence[Tensor]) -> Tensor:
    """The tensor `T[j] = A_1[:, j_1] A_2[:, j_2] ...` of a train of cores [r_{k-1}, s_k, r_k].

    >>> import torch
    >>> reconstruct_tt([torch.ones(1, 2, 3), torch.ones(3, 4, 1)]).shape
    torch.Size([2, 4])
    """
    T = cores[0]
    for core in cores[1:]:
        T = torch.tensordot(T, core, dims=([T.ndim - 1], [0]))
    return T.reshape(T.shape[1:-1])


def check_tucker_ranks(what: str, sizes: Sequence[int], ranks: Sequence[int]) -> None:
    """ValueError for ranks that no Tucker tensor of these sizes can make use of."""
    cure = "linmaps.factorized.tucker_rank makes ranks that fit"
    if len(ranks) != len(sizes) or any(not 1 <= r <= s for r, s in zip(ranks, sizes)):
        raise ValueError(f"{what}: ranks are {tuple(ranks)}, expected {len(sizes)} from 1 to {tuple(sizes)}; {cure}")
    for k, r in enumerate(ranks):
        if r > (others := math.prod(ranks) // r):
            raise ValueError(f"{what}: rank {k} is {r}, expected at most {others}, the product of the others; {cure}")


@door
@typed
def tucker_hosvd(T: Tensor, ranks: Sequence[int], *, n_sweeps: int = 2) -> tuple[Tensor, list[Tensor]]:
    """Core [r_1..r_N] and factors U_k [s_k, r_k] with orthonormal columns of a Tucker tensor near T.

    A start by sequentially truncated singular value decompositions, whose error is at most sqrt(N) times the best one,
    then n_sweeps of higher-order orthogonal iteration: each U_k spans the leading left singular vectors of T projected on
    all others.  No sweep makes the error larger.  Source: Vannieuwenhoven et al. 2012; De Lathauwer et al. 2000.

    ValueError for ranks outside 1..s_k or beyond the product of the other ranks.

    >>> import torch
    >>> T = torch.arange(24.0).reshape(2, 3, 4)
    >>> torch.allclose(reconstruct_tucker(*tucker_hosvd(T, (2, 2, 2))), T, atol=1e-4)
    True
    """
    check_tucker_ranks("tucker_hosvd", T.shape, ranks)
    dtype, T = T.dtype, T.to(working(T.dtype))
    core, factors = T, []
    for k, r in enumerate(ranks):
        factors.append(svd(unfolded(core, k))[0][:, :r])
        core = times(core, factors[k].mH, k)
    core, factors = swept(T, core, factors, n_sweeps)
    return restored(dtype, [core])[0], restored(dtype, factors)


def swept(T: Tensor, core: Tensor, factors: Sequence[Tensor], n_sweeps: int) -> tuple[Tensor, list[Tensor]]:
    """Core and factors after n_sweeps of higher-order orthogonal iteration."""
    size(n_sweeps, "n_sweeps", 0, SWEEPS)
    factors = list(factors)
    for _ in range(n_sweeps):
        for k, old in enumerate(factors):
            others = T
            for j, U in enumerate(factors):
                others = others if j == k else times(others, U.mH, j)
            factors[k] = svd(unfolded(others, k))[0][:, : old.shape[1]]
            core = times(others, factors[k].mH, k)
    return core, factors


@door
@typed
def reconstruct_tucker(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The tensor `core x_1 U_1 x_2 U_2 ...` of a core [r_1..r_N] and factors [s_k, r_k].

    >>> import torch
    >>> reconstruct_tucker(torch.ones(1, 2), [torch.ones(3, 1), torch.ones(4, 2)])[0]
    tensor([2., 2., 2., 2.])
    """
    for k, U in enumerate(factors):
        core = times(core, U, k)
    return core


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Columns `u_1 (x) u_2 (x) ...` of factors [s_k, R]: [the product of the sizes, R], the first one slowest."""
    K = factors[0]
    for U in factors[1:]:
        K = (K[:, None, :] * U).reshape(K.shape[0] * U.shape[0], K.shape[1])
    return K


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
    dtype, T, start = T.dtype, T.to(working(T.dtype)), []
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
    start = cp_start(T, start) if isinstance(start, int) else start
    shapes, sizes = [tuple(U.shape) for U in start], tuple(T.shape)
    R = shapes[0][-1] if shapes and shapes[0] else 0
    if shapes != [(s, R) for s in sizes] or R < 1:
        raise ValueError(f"cp_als: start has shapes {shapes}, expected [(s, R) for s in {sizes}]; see cp_start(T, R)")
    dtype, T = T.dtype, T.to(working(T.dtype))
    units = [_normalized(U.to(T.dtype), U.to(T.dtype)) for U in start]
    factors, weights = [U for U, _ in units], torch.stack([size for _, size in units]).prod(0)
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
    return restored(dtype, [weights.to(T.dtype)])[0], restored(dtype, factors)


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
