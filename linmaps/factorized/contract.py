"""Products of rows with tensorized matrices, and the matrices themselves: sequences of matrix products, never an einsum.

The tensor has modes (o_1..o_p, i_1..i_q), out modes first; W [in, out] has row-major rows (i_1..i_q) and columns
(o_1..o_p).  x is [B, in], results are [B, out].  R ranks; I, O products of in and out modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.factorized.decompose import khatri_rao, reconstruct_tt, reconstruct_tucker


def cp_apply(x: Tensor, weights: Tensor, outs: Sequence[Tensor], ins: Sequence[Tensor]) -> Tensor:
    """`((x K_I) * weights) K_O'` with Khatri-Rao products K of the factors [s_k, R]: 2 B R (I + O) operations.

    >>> import torch
    >>> U = [torch.ones(2, 3), torch.ones(2, 3)]
    >>> cp_apply(torch.ones(1, 4), torch.ones(3), U, U)
    tensor([[12., 12., 12., 12.]])
    """
    return ((x @ khatri_rao(ins)) * weights) @ khatri_rao(outs).mT


def cp_matrix(weights: Tensor, outs: Sequence[Tensor], ins: Sequence[Tensor]) -> Tensor:
    """W [in, out] of CP factors: one matrix product, and memory R (I + O) beside W."""
    return (khatri_rao(ins) * weights) @ khatri_rao(outs).mT


def tucker_apply(x: Tensor, core: Tensor, outs: Sequence[Tensor], ins: Sequence[Tensor]) -> Tensor:
    """x projected on the in factors [i_k, r_k] one by one, times the core [out ranks, in ranks], expanded by the out ones.

    >>> import torch
    >>> tucker_apply(torch.ones(1, 4), torch.ones(1, 1, 1), [torch.ones(3, 1)], [torch.ones(2, 1), torch.ones(2, 1)])
    tensor([[4., 4., 4.]])
    """
    B, p = len(x), len(outs)
    z = x.reshape(B, *(len(U) for U in ins))  # sizes are always spelled out: -1 is ambiguous for an empty batch
    for U in ins:  # the mode in front is used up and its rank comes last: after all of them the order is right
        z = torch.tensordot(z, U, dims=([1], [0]))
    ranks, projected = core.shape[:p], math.prod(core.shape[p:])
    z = z.reshape(B, projected) @ core.reshape(math.prod(ranks), projected).mT
    z = z.reshape(B, *ranks)
    for U in outs:
        z = torch.tensordot(z, U, dims=([1], [1]))
    return z.reshape(B, math.prod(len(U) for U in outs))


def tucker_matrix(core: Tensor, outs: Sequence[Tensor], ins: Sequence[Tensor]) -> Tensor:
    """W [in, out] of a Tucker core and factors, mode by mode."""
    T = reconstruct_tucker(core, [*outs, *ins])
    return T.reshape(math.prod(len(U) for U in outs), -1).mT


def tt_apply(x: Tensor, outs: Sequence[Tensor], ins: Sequence[Tensor]) -> Tensor:
    """x through the in cores [r_{k-1}, i_k, r_k] from the last to the first, then out through the out cores likewise.

    A tensor train of (out, in) modes is a product of two matrices with the middle rank between them.

    >>> import torch
    >>> tt_apply(torch.ones(1, 4), [torch.ones(1, 3, 2)], [torch.ones(2, 2, 2), torch.ones(2, 2, 1)])
    tensor([[16., 16., 16.]])
    """
    B = len(x)
    z, left = x, x.shape[1]
    for core in reversed(ins):
        r, s, after = core.shape
        left //= s
        z = z.reshape(B * left, s * after) @ core.reshape(r, s * after).mT
    z, done = z.reshape(B, ins[0].shape[0], 1), 1  # [B, r, outputs so far]
    for core in reversed(outs):
        r, o, after = core.shape
        done *= o
        z = (core.reshape(r * o, after) @ z).reshape(B, r, done)
    return z.reshape(B, done)


def tt_matrix(outs: Sequence[Tensor], ins: Sequence[Tensor]) -> Tensor:
    """W [in, out] of a tensor train: the product of its two halves."""
    P = reconstruct_tt([*outs, _closing(outs[-1])]).reshape(-1, outs[-1].shape[2])
    Q = reconstruct_tt([_closing(ins[0], first=True), *ins]).reshape(ins[0].shape[0], -1)
    return (P @ Q).mT


def _closing(core: Tensor, *, first: bool = False) -> Tensor:
    """A core that makes the open rank of a half of a train a mode of its own."""
    r = core.shape[0] if first else core.shape[2]
    eye = torch.eye(r, dtype=core.dtype, device=core.device)
    return eye[None] if first else eye[:, :, None]


def blocktt_apply(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """x through the cores [r_{k-1}, o_k, i_k, r_k] from the first to the last.

    >>> import torch
    >>> blocktt_apply(torch.ones(1, 4), [torch.ones(1, 3, 2, 2), torch.ones(2, 1, 2, 1)])
    tensor([[8., 8., 8.]])
    """
    B, done, rest = len(x), 1, x.shape[1]
    z = x[:, None, :]  # [B, outputs so far, rank and inputs to come]
    for core in cores:
        r, o, i, after = core.shape
        rest //= i
        z = z.reshape(B * done, r * i, rest)
        z = core.permute(1, 3, 0, 2).reshape(o * after, r * i) @ z
        done *= o
        z = z.reshape(B, done, after * rest)
    return z.reshape(B, done)


def blocktt_matrix(cores: Sequence[Tensor]) -> Tensor:
    """W [in, out] of a block tensor train, its cores merged from the first to the last."""
    M = cores[0].new_ones(1, 1, 1)  # [inputs so far, outputs so far, rank]
    for core in cores:
        r, o, i, after = core.shape
        n, m, _ = M.shape
        M = (M.reshape(n * m, r) @ core.reshape(r, o * i * after)).reshape(n, m, o, i, after)
        M = M.permute(0, 3, 1, 2, 4).reshape(n * i, m * o, after)
    return M[:, :, 0]
