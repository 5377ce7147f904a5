"""Inner products and squared norms of factorized tensors, without the tensor.  R ranks, s_k sizes of the modes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.factorized.tensors.chains import expand


def cp_inner(a: Tensor, us: Sequence[Tensor], b: Tensor, vs: Sequence[Tensor]) -> Tensor:
    """`a' (product of the matrices U_k' V_k, entry by entry) b`, of CP tensors of the same sizes, conjugating the first.

    >>> import torch
    >>> U = [torch.ones(3, 1), torch.ones(2, 1)]
    >>> cp_inner(torch.tensor([2.0]), U, torch.tensor([2.0]), U)
    tensor(24.)
    """
    G = torch.ones(len(a), len(b), dtype=us[0].dtype, device=a.device)
    for U, V in zip(us, vs):
        G = G * (U.mH @ V)
    return a.conj().to(G.dtype) @ G @ b.to(G.dtype)


def tucker_inner(core: Tensor, us: Sequence[Tensor], other: Tensor, vs: Sequence[Tensor]) -> Tensor:
    """The inner product of two Tucker tensors of the same sizes, conjugating the first: one core, each mode times U_k' V_k.

    >>> import torch
    >>> U = [torch.ones(3, 1), torch.ones(2, 1)]
    >>> tucker_inner(torch.ones(1, 1), U, torch.ones(1, 1), U)
    tensor(6.)
    """
    small = expand(other.reshape(1, -1), [U.mH @ V for U, V in zip(us, vs)])
    return (core.conj().reshape(1, -1) * small).sum()


def tt_inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The inner product of two trains, or block trains, of the same sizes: E <- sum over the modes of A' E C.

    >>> import torch
    >>> cores = [torch.ones(1, 3, 1), torch.ones(1, 2, 1)]
    >>> tt_inner(cores, cores)
    tensor(6.)
    """
    E = left[0].new_ones(1, 1)
    for A, C in zip(left, right):
        A, C = A.reshape(A.shape[0], -1, A.shape[-1]), C.reshape(C.shape[0], -1, C.shape[-1])
        half = torch.tensordot(E, C, dims=([1], [0]))  # [rank of A, mode, rank of C]
        E = A.reshape(-1, A.shape[-1]).mH @ half.reshape(-1, C.shape[-1])
    return E[0, 0]
