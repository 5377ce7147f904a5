"""Ranks of a tensor train: cores `[r_{k-1}, s_k, r_k]`, T `[s_1..s_N]` the tensor; a bond lies between neighbours.

Interfaces are kept as orthonormal columns times a small matrix: those left of a bond Q `[s_1 .. s_k, p]` L `[p, r_k]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growth.closed_form.draws import Draw
from growth.rank.directions import beside, column_size, leading, span, with_zeros
from growth.rank.matrices import residual
from linmaps.numerics.eigen import pinv
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.singular import svd


def noise(shapes: Sequence[tuple[int, ...]], more: tuple[int, ...], draw: Draw) -> list[Tensor]:
    """Generic columns `[r s, k]` for each bond of cores of these shapes, r with what the bond before has got."""
    before = (0, *more)
    return [draw((shape[0] + before[a]) * shape[1], k) for a, (shape, k) in enumerate(zip(shapes, more))]


def grow(cores: Sequence[Tensor], generic: Sequence[Tensor], T: Tensor | None) -> list[Tensor]:
    """Bond by bond from left to right: the core before gets new columns P, the core after rows of zeros.

        A -> [A, P],    C -> [C; 0],    so that A C stays.

    P is away from the columns of A `[r s, r']`: generic, or, for a gradient T, the leading left singular vectors of what
    neither A nor C can express of the two-site gradient, which is T in orthonormal bases of the interfaces beyond A and C
    (as in density matrix renormalization, and the enrichment of Dolgov and Savostyanov 2014).  The bonds to the left count
    with their new columns, so that P may start from these.
    """
    cores = list(cores)
    rights = None if T is None else _rights(cores, T)
    gathered: list[Tensor] = []  # orthonormal [p s, p'] of each core on the left
    L = cores[0].new_ones(1, 1)
    for a, Z in enumerate(generic):
        A, k = cores[a], Z.shape[1]
        flat = A.reshape(-1, A.shape[-1])
        P = leading(flat[:, :0], span(flat), Z, column_size(flat))
        if rights is not None and T is not None:
            C, (G, R) = cores[a + 1], rights[a + 2]
            for Q in gathered:
                G = Q.mH @ G.reshape(Q.shape[0], math.prod(G.shape) // Q.shape[0])
            before, after = _times(L, A), C.reshape(-1, C.shape[-1]) @ R
            M = G.reshape(before.shape[0], math.prod(G.shape) // before.shape[0])
            after = after.reshape(C.shape[0], M.shape[1])
            seen = _times(L, Z.reshape(*A.shape[:2], k))
            u = leading(residual(M, before, after), span(before), seen, frobenius(M))
            P = _solved(L, u.reshape(L.shape[0], A.shape[1] * k), P)
        cores[a] = beside(A, (column_size(flat) * P).reshape(*A.shape[:2], k))
        cores[a + 1] = with_zeros(cores[a + 1], k, 0)
        if rights is not None:
            joined = _times(L, cores[a])
            gathered.append(span(joined))
            L = gathered[-1].mH @ joined
    return cores


def _times(L: Tensor, A: Tensor) -> Tensor:
    """L `[p, r]` times a core `[r, s, r']`: `[p s, r']`."""
    return (L @ A.reshape(A.shape[0], -1)).reshape(L.shape[0] * A.shape[1], A.shape[2])


def _solved(L: Tensor, u: Tensor, otherwise: Tensor) -> Tensor:
    """Unit columns P `[r s, k]` with L P = u `[p, s k]` up to scale; those of `otherwise` where L reaches none of u."""
    P = (pinv(L.mT @ L) @ (L.mT @ u)).reshape(otherwise.shape)
    norms = torch.linalg.vector_norm(P, dim=0)
    alive = norms.detach() > 0
    return torch.where(alive, P / torch.where(alive, norms, 1.0), otherwise)


def _rights(cores: Sequence[Tensor], T: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each k the tensor T with modes k, k+1, .. in the basis of the interface `[.., p]`, and R `[r_{k-1}, p]` of it."""
    found = [(T, cores[-1].new_ones(1, 1))]
    for A in reversed(cores[1:]):
        G, R = found[-1]
        rows = (A.reshape(-1, A.shape[-1]) @ R).reshape(A.shape[0], A.shape[1] * R.shape[1])
        basis = span(rows.mH)
        G = G.reshape(math.prod(G.shape) // len(basis), len(basis)) @ basis
        found.append((G, rows @ basis))
    return [(T, R), *reversed(found)]


def reduce(cores: Sequence[Tensor], ranks: tuple[int, ...]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Rounding of a train to ranks of its bonds, the distance, which is exact, and the norm.

    Orthonormal rows from right to left, then truncated singular value decompositions from left to right, whose errors are
    orthogonal to each other.  Source: Oseledets 2011, algorithm 2.
    """
    cores = list(cores)
    for a in range(len(cores) - 1, 0, -1):
        A = cores[a]
        rows = A.reshape(A.shape[0], A.shape[1] * A.shape[2])
        Q = svd(rows.mH)[0]
        cores[a] = Q.mH.reshape(Q.shape[1], *A.shape[1:])
        cores[a - 1] = cores[a - 1] @ (rows @ Q)
    error, norm = [], frobenius(cores[0])
    for a, r in enumerate(ranks):
        A = cores[a]
        M = A.reshape(A.shape[0] * A.shape[1], A.shape[2])
        U, s, _ = svd(M)
        error.append(s[r:])
        cores[a] = U[:, :r].reshape(*A.shape[:2], r)
        C = cores[a + 1]
        cores[a + 1] = ((U[:, :r].mH @ M) @ C.reshape(C.shape[0], -1)).reshape(r, *C.shape[1:])
    return cores, frobenius(*error) if error else 0 * norm, norm
