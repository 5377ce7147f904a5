"""Products of rows with tensorized matrices, and the matrices themselves: chains of matrix products, never an einsum.

The tensor has modes (o_1..o_p, i_1..i_q), out modes first; W [in, out] has row-major rows (i_1..i_q) and columns
(o_1..o_p).  x is [B, in], results are [B, out].  R ranks.  groups: which neighbours are joined before the chain of
products, so that it has fewer and larger steps; none unless given.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.factorized.tensors.multilinear import khatri_rao
from linmaps.factorized.tensors.plan import Groups, wide


def singles(n: int) -> Groups:
    return tuple((k, k + 1) for k in range(n))


def _step(A: Tensor, z: Tensor) -> Tensor:
    """`A z` for A [m, k] and each block of z [n, k, p]."""
    (m, k), (n, _, p) = A.shape, z.shape
    if p == 1:
        return (z.reshape(n, k) @ A.mT).reshape(n, m, 1)
    if wide(m, k, p):
        return torch.bmm(A.expand(n, m, k), z)
    return (A @ z.transpose(0, 1).reshape(k, n * p)).reshape(m, n, p).transpose(0, 1)


# --- CP: factors [s_k, R] --------------------------------------------------------------------------------------------


def cp_apply(
    x: Tensor,
    weights: Tensor,
    outs: Sequence[Tensor],
    ins: Sequence[Tensor],
    *,
    in_head: int = 0,
    out_head: int = 0,
) -> Tensor:
    """`((x K_I) * weights) K_O'` with Khatri-Rao products K of the factors: B R (in + out) multiplications.

    in_head, out_head: so many modes in front stay out of the large K and are contracted entry by entry, which takes memory
    for B rows of their sizes in place of all of K.

    >>> import torch
    >>> U = [torch.ones(2, 3), torch.ones(2, 3)]
    >>> cp_apply(torch.ones(1, 4), torch.ones(3), U, U)
    tensor([[12., 12., 12., 12.]])
    """
    B, R = len(x), len(weights)
    K = khatri_rao(ins[in_head:])
    z = x.reshape(B * (x.shape[1] // len(K)), len(K)) @ K
    if in_head:
        H = khatri_rao(ins[:in_head])
        z = (z.reshape(B, len(H), R) * H).sum(1)
    z, K = z * weights, khatri_rao(outs[out_head:])
    if not out_head:
        return z @ K.mT
    H = khatri_rao(outs[:out_head])
    return ((z[:, None] * H).reshape(B * len(H), R) @ K.mT).reshape(B, len(H) * len(K))


def cp_matrix(weights: Tensor, outs: Sequence[Tensor], ins: Sequence[Tensor]) -> Tensor:
    """W [in, out] of CP factors: one matrix product, and memory R (in + out) beside W."""
    return (khatri_rao(ins) * weights) @ khatri_rao(outs).mT


# --- Tucker: core [ranks of outs, ranks of ins], factors [s_k, r_k] --------------------------------------------------


def _kronecker(factors: Sequence[Tensor]) -> Tensor:
    """[the product of the sizes, the product of the ranks]."""
    return functools.reduce(torch.kron, factors)


def project(x: Tensor, factors: Sequence[Tensor], groups: Groups | None = None) -> Tensor:
    """Rows x [B, sizes] times the Kronecker product of factors [s_k, r_k], from the last mode to the first."""
    B, left, done = len(x), x.shape[1], 1
    for a, b in reversed(groups or singles(len(factors))):
        K = _kronecker(factors[a:b])
        left //= len(K)
        x = _step(K.mT, x.reshape(B * left, len(K), done))
        done *= K.shape[1]
    return x.reshape(B, done)


def expand(z: Tensor, factors: Sequence[Tensor], groups: Groups | None = None) -> Tensor:
    """Rows z [B, ranks] times the transposed Kronecker product of factors [s_k, r_k], from the first mode to the last."""
    B, done, rest = len(z), 1, z.shape[1]
    for a, b in groups or singles(len(factors)):
        K = _kronecker(factors[a:b])
        rest //= K.shape[1]
        z = _step(K, z.reshape(B * done, K.shape[1], rest))
        done *= len(K)
    return z.reshape(B, done)


def core_matrix(core: Tensor, p: int) -> Tensor:
    """[ranks of outs, ranks of ins]."""
    return core.reshape(math.prod(core.shape[:p]), math.prod(core.shape[p:]))


def tucker_apply(
    x: Tensor,
    core: Tensor,
    outs: Sequence[Tensor],
    ins: Sequence[Tensor],
    *,
    in_groups: Groups | None = None,
    out_groups: Groups | None = None,
) -> Tensor:
    """x projected on the in factors, times the core, expanded by the out factors.

    >>> import torch
    >>> tucker_apply(torch.ones(1, 4), torch.ones(1, 1, 1), [torch.ones(3, 1)], [torch.ones(2, 1), torch.ones(2, 1)])
    tensor([[4., 4., 4.]])
    """
    return expand(project(x, ins, in_groups) @ core_matrix(core, len(outs)).mT, outs, out_groups)


def tucker_matrix(core: Tensor, outs: Sequence[Tensor], ins: Sequence[Tensor]) -> Tensor:
    """W [in, out] of a Tucker core and factors: the core expanded on one side, then on the other."""
    return expand(expand(core_matrix(core, len(outs)), ins).mT, outs)


# --- trains: cores [r_{k-1}, s_k, r_k] -------------------------------------------------------------------------------


def joined(cores: Sequence[Tensor]) -> Tensor:
    """Neighbouring cores of a train as one core [r, the product of the sizes, r']."""
    A = cores[0]
    for C in cores[1:]:
        (r, s, m), (_, t, q) = A.shape, C.shape
        A = (A.reshape(r * s, m) @ C.reshape(m, t * q)).reshape(r, s * t, q)
    return A


def tt_apply(
    x: Tensor,
    outs: Sequence[Tensor],
    ins: Sequence[Tensor],
    *,
    in_groups: Groups | None = None,
    out_groups: Groups | None = None,
) -> Tensor:
    """x through the in cores from the last to the first, then out through the out cores likewise.

    A tensor train of (out, in) modes is a product of two matrices with the middle rank between them.

    >>> import torch
    >>> tt_apply(torch.ones(1, 4), [torch.ones(1, 3, 2)], [torch.ones(2, 2, 2), torch.ones(2, 2, 1)])
    tensor([[16., 16., 16.]])
    """
    B, z, left = len(x), x, x.shape[1]
    for a, b in reversed(in_groups or singles(len(ins))):
        A = joined(ins[a:b])
        r, s, after = A.shape
        left //= s
        z = z.reshape(B * left, s * after) @ A.reshape(r, s * after).mT
    z, done = z.reshape(B, ins[0].shape[0], 1), 1  # [B, r, outputs so far]
    for a, b in reversed(out_groups or singles(len(outs))):
        A = joined(outs[a:b])
        r, o, after = A.shape
        done *= o
        z = _step(A.reshape(r * o, after), z).reshape(B, r, done)
    return z.reshape(B, done)


def tt_matrix(outs: Sequence[Tensor], ins: Sequence[Tensor]) -> Tensor:
    """W [in, out] of a tensor train: the product of its two halves."""
    P, Q = joined(outs), joined(ins)
    return Q.reshape(Q.shape[:2]).mT @ P.reshape(P.shape[1:]).mT


# --- block trains: cores [r_{k-1}, o_k, i_k, r_k] --------------------------------------------------------------------


def block_joined(cores: Sequence[Tensor]) -> Tensor:
    """Neighbouring cores of a block train as one core [r, outs, ins, r'], from the smaller end."""
    return (
        functools.reduce(_joined, cores)
        if _forward(cores)
        else functools.reduce(lambda C, A: _joined(A, C), cores[::-1])
    )


def _forward(cores: Sequence[Tensor]) -> bool:
    return cores[0].shape[1] * cores[0].shape[2] <= cores[-1].shape[1] * cores[-1].shape[2]


def _joined(A: Tensor, C: Tensor) -> Tensor:
    (r, o, i, m), (_, p, j, q) = A.shape, C.shape
    whole = A.reshape(r * o * i, m) @ C.reshape(m, p * j * q)
    return whole.reshape(r, o, i, p, j, q).permute(0, 1, 3, 2, 4, 5).reshape(r, o * p, i * j, q)


def blocktt_apply(x: Tensor, cores: Sequence[Tensor], *, groups: Groups | None = None, forward: bool = True) -> Tensor:
    """x through the cores from the first to the last, or, with forward=False, from the last to the first.

    >>> import torch
    >>> blocktt_apply(torch.ones(1, 4), [torch.ones(1, 3, 2, 2), torch.ones(2, 1, 2, 1)])
    tensor([[8., 8., 8.]])
    """
    B, done, left, z = len(x), 1, x.shape[1], x
    groups = groups or singles(len(cores))
    for a, b in groups if forward else reversed(groups):
        A = block_joined(cores[a:b])
        r, o, i, after = A.shape
        left //= i
        if forward:  # [B outputs so far, rank and inputs, inputs to come]
            z = _step(A.permute(1, 3, 0, 2).reshape(o * after, r * i), z.reshape(B * done, r * i, left))
        else:  # [B inputs to come, inputs and rank, outputs so far]
            z = _step(A.reshape(r * o, i * after), z.reshape(B * left, i * after, done))
        done *= o
    return z.reshape(B, done)


def blocktt_matrix(cores: Sequence[Tensor]) -> Tensor:
    """W [in, out] of a block train, a view of its transpose."""
    W = block_joined(cores)
    return W.reshape(W.shape[1:3]).mT
