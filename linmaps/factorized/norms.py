"""Squared Frobenius norms of factorized tensors, without the tensor.  R ranks, s_k sizes of the modes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.factorized.decompose import reconstruct_tucker


def cp_squared_norm(weights: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """`weights' (product of the Gram matrices U_k' U_k, entry by entry) weights`, in R^2 sum(s_k) operations.

    >>> import torch
    >>> cp_squared_norm(torch.tensor([2.0]), [torch.ones(3, 1), torch.ones(2, 1)])
    tensor(24.)
    """
    return cp_inner(weights, factors, weights, factors).real


def cp_inner(a: Tensor, us: Sequence[Tensor], b: Tensor, vs: Sequence[Tensor]) -> Tensor:
    """The inner product of two CP tensors of the same sizes, conjugating the first."""
    G = torch.ones(len(a), len(b), dtype=us[0].dtype, device=a.device)
    for U, V in zip(us, vs):
        G = G * (U.mH @ V)
    return a.conj().to(G.dtype) @ G @ b.to(G.dtype)


def tucker_squared_norm(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The norm of the core with each mode times the triangle of its factor's QR decomposition.

    >>> import torch
    >>> round(tucker_squared_norm(torch.ones(1, 1), [torch.ones(3, 1), torch.ones(2, 1)]).item(), 4)
    6.0
    """
    small = reconstruct_tucker(core, [torch.linalg.qr(U).R for U in factors])
    return (small * small.conj()).real.sum()


def tt_squared_norm(cores: Sequence[Tensor]) -> Tensor:
    """The norm of a tensor train, or of a block train, by transfer matrices: E <- sum over the modes of A^H E A.

    >>> import torch
    >>> tt_squared_norm([torch.ones(1, 3, 1), torch.ones(1, 2, 1)])
    tensor(6.)
    """
    return tt_inner(cores, cores).real


def tt_inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The inner product of two trains of the same sizes, conjugating the first."""
    E = left[0].new_ones(1, 1)
    for A, C in zip(left, right):
        A, C = A.reshape(A.shape[0], -1, A.shape[-1]), C.reshape(C.shape[0], -1, C.shape[-1])
        half = torch.tensordot(E, C, dims=([1], [0]))  # [rank of A, mode, rank of C]
        E = A.reshape(-1, A.shape[-1]).mH @ half.reshape(-1, C.shape[-1])
    return E[0, 0]
