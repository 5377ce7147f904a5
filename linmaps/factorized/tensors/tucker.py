"""Tucker tensors near a given tensor: a core and a basis for each mode by orthogonal iteration, and back.

T has N modes of sizes s_1..s_N; core [r_1..r_N], factors [s_k, r_k]; real or complex; half precision is computed in float32
and cast back.  Pure, with a fixed number of sweeps, so vmap maps them; derivatives are finite everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from linmaps.checks import size
from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.factorized.tensors.multilinear import SWEEPS, times, unfolded
from linmaps.numerics.dtypes import restored, working_dtype
from linmaps.numerics.singular import left


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
    dtype, T = T.dtype, T.to(working_dtype(T.dtype))
    core, factors = T, []
    for k, r in enumerate(ranks):
        factors.append(left(unfolded(core, k))[:, :r])
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
            factors[k] = left(unfolded(others, k))[:, : old.shape[1]]
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
