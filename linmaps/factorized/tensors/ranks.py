"""Ranks from a budget of parameters: one rule for all kinds.  s sizes of the N modes, D their product.

A rule gives each rank r_k a target proportional to d_k and a largest useful value. The ranks are the largest c with

    r_k = clip(round(c d_k), 1, most_k),    count(r) <= budget,

cut to what the other ranks can make use of, after which single ranks grow by one while the budget lasts: what clipping
frees is used.  A fraction below 1 is a ceiling, unless even ranks of one exceed it.  An int, or a tuple of ints, is cut
to what is feasible likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from linmaps.checks.annotations import typed

Rank = Literal["same"] | float | Sequence[int]  # a fraction of the dense count, an int, or a tuple of ints
Ranks = tuple[int, ...]
Count = Callable[[Sequence[int]], int]


def fit(
    targets: Sequence[float],
    most: Sequence[int],
    count: Count,
    budget: float,
    feasible: Callable[[Ranks], Ranks] = lambda ranks: ranks,
) -> Ranks:
    """The ranks for a budget; all ones where even they exceed it.  feasible: cuts ranks to what the others can use.

    >>> fit([1.0, 1.0], [4, 9], lambda r: 10 * r[0] + r[1], 27)
    (2, 7)
    """

    def ranks(c: float) -> Ranks:
        return feasible(tuple(min(m, max(1, math.floor(c * d + 0.5))) for d, m in zip(targets, most)))

    # ranks change only where c d_k + 1/2 is an int
    edges = sorted({0.0, *((j - 0.5) / d for d, m in zip(targets, most) for j in range(2, m + 1))})
    low, high = 0, len(edges)
    while high - low > 1:
        middle = (low + high) // 2
        fits = count(ranks(math.nextafter(edges[middle], math.inf))) <= budget
        low, high = (middle, high) if fits else (low, middle)
    best = ranks(math.nextafter(edges[low], math.inf)) if low else tuple(1 for _ in targets)
    while True:
        grown = [(*best[:k], best[k] + 1, *best[k + 1 :]) for k in range(len(best)) if best[k] < most[k]]
        fitting = [r for r in grown if feasible(r) == r and count(r) <= budget]
        if not fitting:
            return best
        # the rank that is furthest behind its target
        best = min(fitting, key=lambda r: max(new / d for new, d, old in zip(r, targets, best) if new != old))


def fraction(rank: Rank, what: str) -> float | None:
    """The fraction that a rank asks for, or None for ranks given as ints; ValueError or TypeError for anything else."""
    if isinstance(rank, str):
        if rank != "same":
            raise ValueError(f"{what}: rank is {rank!r}, expected 'same', a fraction, an int or a tuple of ints")
        return 1.0
    if isinstance(rank, bool) or not isinstance(rank, (int, float, tuple, list)):
        raise TypeError(
            f"{what}: rank is {type(rank).__name__}, expected 'same', a fraction, an int or a tuple of ints; "
            "convert numbers of other libraries with float(...) or int(...)"
        )
    if isinstance(rank, float):
        if not (math.isfinite(rank) and rank > 0):
            raise ValueError(f"{what}: rank is {rank}, expected a fraction > 0 of the dense number of parameters")
        return rank
    return None


def _ints(rank: Any, n: int, what: str) -> Ranks:
    """A rank of ints as n of them."""
    values = (rank,) * n if isinstance(rank, int) else tuple(rank)
    if len(values) != n:
        raise ValueError(f"{what}: rank has {len(values)} entries, expected {n}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{what}: rank contains {value!r}, expected positive ints")
        if value < 1:
            raise ValueError(f"{what}: rank contains {value}, expected positive ints")
    return values


@typed
def low_rank(rank: Rank, rows: int, columns: int) -> int:
    """The rank R of a matrix U V [rows, columns], with R (rows + columns) parameters, at most min(rows, columns).

    >>> low_rank(0.1, 256, 784), low_rank("same", 256, 784), low_rank(7, 256, 784)
    (19, 192, 7)
    """
    share, most = fraction(rank, "low rank"), min(rows, columns)
    if share is None:
        return min(most, _ints(rank, 1, "low rank")[0])
    return min(most, max(1, math.floor(min(share, 1.0) * rows * columns / (rows + columns))))


@typed
def cp_rank(rank: Rank, sizes: Sequence[int]) -> int:
    """The number of terms R of a CP tensor, with R (1 + sum of sizes) parameters; a fraction above 1 counts as 1.

    >>> cp_rank(0.1, (4, 4, 16, 4, 4, 16)), cp_rank("same", (2, 2))
    (133, 1)
    """
    share = fraction(rank, "CP")
    if share is None:
        return _ints(rank, 1, "CP")[0]
    return max(1, math.floor(min(share, 1.0) * math.prod(sizes) / (1 + sum(sizes))))


def tucker_count(ranks: Sequence[int], sizes: Sequence[int]) -> int:
    """Parameters of a Tucker tensor: the core and one factor for each mode."""
    return math.prod(ranks) + sum(r * s for r, s in zip(ranks, sizes))


def tucker_feasible(ranks: Ranks) -> Ranks:
    """Each rank at most the product of the others: the unfolding of the core has no more rows than columns."""
    for k in range(len(ranks)):
        others = math.prod(ranks) // ranks[k]
        ranks = (*ranks[:k], min(ranks[k], others), *ranks[k + 1 :]) if len(ranks) > 1 else ranks
    return ranks


@typed
def tucker_rank(rank: Rank, sizes: Sequence[int]) -> Ranks:
    """The ranks of a Tucker tensor, one for each mode, at most its size and the product of the other ranks.

    "same" and fractions >= 1 give the full ranks, with which every tensor is exact.

    >>> tucker_rank(0.1, (4, 4, 4, 4, 4, 4)), tucker_count(tucker_rank(0.1, (4,) * 6), (4,) * 6) / 4**6
    ((3, 3, 3, 3, 2, 2), 0.0947265625)
    >>> tucker_rank("same", (2, 3)), tucker_rank(5, (2, 8, 3))
    ((2, 2), (2, 5, 3))
    """
    share = fraction(rank, "Tucker")
    most = [min(s, math.prod(sizes) // s) for s in sizes]
    if share is None:
        return tucker_feasible(tuple(map(min, most, _ints(rank, len(sizes), "Tucker"))))
    if share >= 1:
        return tuple(most)
    return fit(sizes, most, lambda r: tucker_count(r, sizes), share * math.prod(sizes), tucker_feasible)


def tt_count(ranks: Sequence[int], sizes: Sequence[int]) -> int:
    """Parameters of a tensor train with ranks (1, r_1, ..., r_{N-1}, 1)."""
    return sum(a * s * b for a, s, b in zip(ranks, sizes, ranks[1:]))


def tt_feasible(ranks: Ranks, sizes: Sequence[int]) -> Ranks:
    """Inner ranks (r_1, ..., r_{N-1}) with r_k <= r_{k-1} s_k and r_k <= s_{k+1} r_{k+1}: no core has more than full rank."""
    cut, r = [], 1
    for s, own in zip(sizes, ranks):
        r = min(own, r * s)
        cut.append(r)
    back, r = [], 1
    for s, own in zip(sizes[::-1], cut[::-1]):
        r = min(own, r * s)
        back.append(r)
    return tuple(back[::-1])


@typed
def tt_rank(rank: Rank, sizes: Sequence[int]) -> Ranks:
    """The ranks (1, r_1, ..., r_{N-1}, 1) of a tensor train, r_k at most the products of the sizes on either side.

    "same" and fractions >= 1 give the full ranks, with which every tensor is exact.

    >>> tt_rank(0.1, (16, 16, 28, 28)), tt_rank(3, (2, 8, 8)), tt_rank("same", (2, 3, 4)), tt_rank(0.5, (7,))
    ((1, 15, 20, 25, 1), (1, 2, 3, 1), (1, 2, 4, 1), (1, 1))
    """
    share, n = fraction(rank, "tensor train"), len(sizes)
    most = [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, n)]
    if share is None:
        whole = (1, *(rank,) * (n - 1), 1) if isinstance(rank, int) else _ints(rank, n + 1, "tensor train")
        if whole[0] != 1 or whole[-1] != 1:
            raise ValueError(f"tensor train: rank is {whole}, expected 1 at both ends")
        _ints(whole, n + 1, "tensor train")
        return (1, *tt_feasible(tuple(whole[1:-1]), sizes), 1)
    if share >= 1:
        return (1, *most, 1)
    targets = [(a + b) / 2 for a, b in zip(sizes, sizes[1:])]
    if n == 1:
        return (1, 1)
    count = lambda r: tt_count((1, *r, 1), sizes)
    return (1, *fit(targets, most, count, share * math.prod(sizes), lambda r: tt_feasible(r, sizes)), 1)
