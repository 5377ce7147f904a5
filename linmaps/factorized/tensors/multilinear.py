"""Multilinear algebra: unfoldings, products with one mode, Khatri-Rao products, some places of a mode, a mode more.

T has N modes of sizes s_1..s_N; factors [s_k, R].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

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


def taken(T: Tensor, axis: int, places: range) -> Tensor:
    """T at these places of an axis, in their order, as a view unless it runs backward.

    >>> taken(torch.arange(5), 0, range(4, -1, -2))
    tensor([4, 2, 0])
    """
    backward = places.step < 0
    up = places[::-1] if backward else places
    T = T[(*(slice(None),) * axis, slice(up.start, up.stop, up.step))]
    return T.flip(axis) if backward else T


def amid(T: Tensor, axis: int, size: int) -> Tensor:
    """A new axis of that size in front of another one: T at its middle, place (size - 1) // 2, and zeros elsewhere.

    >>> amid(torch.ones(2), 0, 3)
    tensor([[0., 0.],
            [1., 1.],
            [0., 0.]])
    """
    before = middle(size)
    return functional.pad(T.unsqueeze(axis), [0, 0] * (T.ndim - axis) + [before, size - 1 - before])


def middle(size: int) -> int:
    """The place in the middle, of an even number the first of the two, which convolutions with padding="same" centre on."""
    return (size - 1) // 2
