"""Decompositions of a given tensor: tensor train, Tucker, CP.  Pure, with a fixed number of sweeps, so vmap maps them.

T has N modes of sizes s_1..s_N; real or complex; half precision is computed in float32 and cast back.  Derivatives are those
of the singular value decomposition, which has none where singular values repeat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.linalg import solve
from linmaps.numeric import HALF, eye_like, working


def _unfolded(T: Tensor, k: int) -> Tensor:
    """[s_k, the others in their order]."""
    return T.movedim(k, 0).reshape(T.shape[k], -1)


def _times(T: Tensor, A: Tensor, k: int) -> Tensor:
    """Mode k of T replaced by A [r, s_k] applied to it."""
    return torch.tensordot(A, T, dims=([1], [k])).movedim(0, k)


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
    if len(ranks) != T.ndim + 1 or ranks[0] != 1 or ranks[-1] != 1:
        raise ValueError(f"tt_svd: ranks are {tuple(ranks)}, expected {T.ndim + 1} of them with 1 at both ends")
    dtype, rest, cores = T.dtype, T.to(working(T.dtype)), []
    for k, s in enumerate(T.shape[:-1]):
        rest = rest.reshape(ranks[k] * s, -1)
        r = ranks[k + 1]
        if r > min(rest.shape):
            raise ValueError(
                f"tt_svd: rank {k + 1} is {r}, expected at most {min(rest.shape)} for sizes {tuple(T.shape)}"
            )
        U, sigma, V = torch.linalg.svd(rest, full_matrices=False)
        cores.append(U[:, :r].reshape(ranks[k], s, r))
        rest = sigma[:r, None] * V[:r]
    cores.append(rest.reshape(ranks[-2], T.shape[-1], 1))
    return [core.to(dtype) if dtype in HALF else core for core in cores]


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
    if len(ranks) != T.ndim or any(not 1 <= r <= s for r, s in zip(ranks, T.shape)):
        raise ValueError(f"tucker_hosvd: ranks are {tuple(ranks)}, expected {T.ndim} from 1 to {tuple(T.shape)}")
    for k, r in enumerate(ranks):
        others = math.prod(ranks) // r
        if r > others:
            raise ValueError(f"tucker_hosvd: rank {k} is {r}, expected at most {others}, the product of the others")
    dtype, T = T.dtype, T.to(working(T.dtype))
    core, factors = T, []
    for k, r in enumerate(ranks):
        U = torch.linalg.svd(_unfolded(core, k), full_matrices=False).U[:, :r]
        core = _times(core, U.mH, k)
        factors.append(_widened(U, r))
    for _ in range(n_sweeps):
        for k, r in enumerate(ranks):
            projected = T
            for j, U in enumerate(factors):
                projected = projected if j == k else _times(projected, U.mH, j)
            factors[k] = torch.linalg.svd(_unfolded(projected, k), full_matrices=False).U[:, :r]
    core = T
    for k, U in enumerate(factors):
        core = _times(core, U.mH, k)
    cast = (lambda t: t.to(dtype)) if dtype in HALF else (lambda t: t)
    return cast(core), [cast(U) for U in factors]


def _widened(U: Tensor, r: int) -> Tensor:
    """U [s, <= r]: what sequential truncation has cut below r columns is filled up by orthonormal ones."""
    if U.shape[1] == r:
        return U
    return torch.linalg.qr(torch.cat([U, eye_like(U, U.shape[0])], dim=1)).Q[:, :r]


def reconstruct_tucker(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The tensor `core x_1 U_1 x_2 U_2 ...` of a core [r_1..r_N] and factors [s_k, r_k].

    >>> import torch
    >>> reconstruct_tucker(torch.ones(1, 2), [torch.ones(3, 1), torch.ones(4, 2)])[0]
    tensor([2., 2., 2., 2.])
    """
    for k, U in enumerate(factors):
        core = _times(core, U, k)
    return core


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Columns `u_1 (x) u_2 (x) ...` of factors [s_k, R]: [the product of the sizes, R], the first one slowest."""
    K = factors[0]
    for U in factors[1:]:
        K = (K[:, None, :] * U).reshape(-1, K.shape[1])
    return K


def cp_als(
    T: Tensor, start: Sequence[Tensor], *, n_sweeps: int = 50, ridge: float = 1e-10
) -> tuple[Tensor, list[Tensor]]:
    """Weights lambda [R] and factors U_k [s_k, R] with unit columns of a sum of R rank-one terms near T.

    Alternating least squares from the factors `start` [s_k, R], n_sweeps times over all modes:

        U_k = T_(k) conj(K) (G + ridge tr(G) / R I)^-1,    K the Khatri-Rao product of the others, G their Gram matrix.

    Local optima depend on the start, which is an argument so that the function is pure: draw it with a generator.

    ValueError for a start of other shapes.

    >>> import torch
    >>> T = torch.arange(1.0, 7.0).reshape(2, 3, 1)
    >>> g = torch.Generator().manual_seed(0)
    >>> weights, factors = cp_als(T, [torch.randn(s, 2, generator=g) for s in T.shape])
    >>> torch.allclose(reconstruct_cp(weights, factors), T, atol=1e-2)
    True
    """
    shapes = [tuple(U.shape) for U in start]
    if len({shape[-1] for shape in shapes}) != 1 or shapes != [(s, shapes[0][-1]) for s in T.shape]:
        raise ValueError(f"cp_als: start has shapes {shapes}, expected [(s, R) for s in {tuple(T.shape)}]")
    dtype, T = T.dtype, T.to(working(T.dtype))
    factors = [U.to(T.dtype) for U in start]
    R = shapes[0][-1]
    weights = factors[0].real.new_ones(R)
    for _ in range(n_sweeps):
        for k in range(T.ndim):
            others = [U for j, U in enumerate(factors) if j != k]
            G = torch.ones(R, R, dtype=T.dtype, device=T.device)
            for U in others:
                G = G * (U.mT @ U.conj())
            G = G + (ridge * G.diagonal().sum().real / R) * eye_like(G, R)
            M = _unfolded(T, k) @ khatri_rao(others).conj() if others else _unfolded(T, k).expand(-1, R)
            U = solve(G.mT, M.mT).mT
            weights = torch.linalg.vector_norm(U, dim=0)
            factors[k] = U / torch.where(weights > 0, weights, 1.0)
    cast = (lambda t: t.to(dtype)) if dtype in HALF else (lambda t: t)
    return cast(weights.to(T.dtype)), [cast(U) for U in factors]


def reconstruct_cp(weights: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The tensor `sum_r weights_r u_1r (x) u_2r (x) ...` of factors [s_k, R].

    >>> import torch
    >>> reconstruct_cp(torch.tensor([2.0]), [torch.ones(2, 1), torch.ones(1, 1)])
    tensor([[2.],
            [2.]])
    """
    half = (len(factors) + 1) // 2
    left = khatri_rao(factors[:half]) * weights
    right = khatri_rao(factors[half:]) if factors[half:] else weights.new_ones(1, len(weights))
    return (left @ right.mT).reshape([U.shape[0] for U in factors])
