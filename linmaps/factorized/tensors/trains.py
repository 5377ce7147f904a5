"""Tensor trains of a given tensor: truncated singular value decompositions from mode to mode, and back.

T has N modes of sizes s_1..s_N; cores [r_{k-1}, s_k, r_k]; real or complex; half precision is computed in float32 and cast
back.  Derivatives are finite everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.numerics.dtypes import restored, working_dtype
from linmaps.numerics.singular import left


def check_tt_ranks(what: str, sizes: Sequence[int], ranks: Sequence[int]) -> None:
    """ValueError for ranks that no tensor train of these sizes can make use of."""
    N, cure = len(sizes), "linmaps.factorized.tt_rank makes ranks that fit"
    if len(ranks) != N + 1 or ranks[0] != 1 or ranks[-1] != 1:
        raise ValueError(f"{what}: ranks are {tuple(ranks)}, expected {N + 1} of them with 1 at both ends; {cure}")
    for k in range(1, N):
        most = min(ranks[k - 1] * sizes[k - 1], math.prod(sizes[k:]))
        if not 1 <= ranks[k] <= most:
            raise ValueError(f"{what}: rank {k} is {ranks[k]}, expected 1 to {most} for sizes {tuple(sizes)}; {cure}")


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
    rest, cores = T.to(working_dtype(T.dtype)), []
    for k, s in enumerate(T.shape[:-1]):
        rest = rest.reshape(ranks[k] * s, math.prod(T.shape[k + 1 :]))
        U = left(rest)[:, : ranks[k + 1]]
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
