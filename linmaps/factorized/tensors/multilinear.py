"""Multilinear algebra: unfoldings, products with one mode, Khatri-Rao products.

T has N modes of sizes s_1..s_N; factors [s_k, R].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SWEEPS = 100_000  # over the modes; more is a mistake: none of the decompositions needs a tenth of it


def unfolded(T: Tensor, k: int) -> Tensor:
    """[s_k, the others in their order]."""
    return T.movedim(k, 0).reshape(T.shape[k], math.prod(T.shape) // T.shape[k])


def times(T: Tensor, A: Tensor, k: int) -> Tensor:
    """Mode k of T replaced by A [r, s_k] applied to it."""
    return torch.tensordot(A, T, dims=([1], [k])).movedim(0, k)


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Columns `u_1 (x) u_2 (x) ...` of factors [s_k, R]: [the product of the sizes, R], the first one slowest."""
    K = factors[0]
    for U in factors[1:]:
        K = (K[:, None, :] * U).reshape(K.shape[0] * U.shape[0], K.shape[1])
    return K
