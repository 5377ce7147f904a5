"""Sums of rank-one terms near a large tensor: alternating least squares on a small core of it.

T has N modes of sizes s_1..s_N, R terms.  A sum of R terms has ranks r_k <= min(R, s_k), so a Tucker core of these ranks holds
it; its factors times the orthonormal ones of the core are those of T.  Source: Bro and Andersson 1998.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.factorized.tensors.cp import cp_als
from linmaps.factorized.tensors.randomized import check_sketches, randomized_hosvd, tucker_sketches
from linmaps.factorized.tensors.ranks import tucker_feasible


def core_ranks(sizes: Sequence[int], R: int) -> tuple[int, ...] | None:
    """The ranks of the core, or None where it would have as many entries as the tensor.

    >>> core_ranks((9, 9, 9), 2), core_ranks((9, 9, 9), 9)
    ((2, 2, 2), None)
    """
    ranks = tucker_feasible(tuple(min(R, s) for s in sizes))
    return ranks if math.prod(ranks) < math.prod(sizes) else None


def cp_sketches(
    generator: torch.Generator, sizes: Sequence[int], R: int, *, oversampling: int, dtype: torch.dtype
) -> list[Tensor]:
    """Sketches of the core, none where there is no smaller one.

    >>> import torch
    >>> [tuple(t.shape) for t in cp_sketches(torch.Generator(), (9, 9, 9), 2, oversampling=3, dtype=torch.float32)]
    [(81, 5), (18, 5), (4, 0)]
    """
    ranks = core_ranks(sizes, R)
    return [] if ranks is None else tucker_sketches(generator, sizes, ranks, oversampling=oversampling, dtype=dtype)


def compressed_cp(
    T: Tensor, start: int | Sequence[Tensor], sketches: Sequence[Tensor], *, n_power: int = 1, n_sweeps: int = 50
) -> tuple[Tensor, list[Tensor]]:
    """Weights [R] and factors [s_k, R] as of `cp_als`, with the sweeps on a core of T, found from sketches.

    start: R, or factors, which are projected onto those of the core.  A sweep takes as many operations as of the core; what the
    core leaves out of T adds to the squared error.  Without sketches, where no core is smaller, the sweeps are on T.

    ValueError for sketches of other shapes, or another number of them.

    >>> import torch
    >>> T, sketches = (
    ...     torch.ones(5, 6, 7),
    ...     cp_sketches(torch.Generator(), (5, 6, 7), 1, oversampling=2, dtype=torch.float32),
    ... )
    >>> weights, factors = compressed_cp(T, 1, sketches, n_sweeps=2)
    >>> (
    ...     [tuple(U.shape) for U in factors],
    ...     torch.allclose(weights * factors[0][0] * factors[1][0] * factors[2][0], T[0, 0, 0]),
    ... )
    ([(5, 1), (6, 1), (7, 1)], True)
    """
    R = start if isinstance(start, int) else start[0].shape[-1]
    ranks = core_ranks(T.shape, R)
    if ranks is None:
        check_sketches("cp", sketches, [], "linmaps.factorized.sketches(spec, generator)")
        return cp_als(T, start, n_sweeps=n_sweeps)
    core, bases = randomized_hosvd(T, ranks, sketches, n_power=n_power)
    inner = start if isinstance(start, int) else [Q.mH @ U.to(Q.dtype) for Q, U in zip(bases, start)]
    weights, factors = cp_als(core, inner, n_sweeps=n_sweeps)
    return weights, [Q @ U for Q, U in zip(bases, factors)]
