"""The rank rules of tensorly-torch, for weights trained with it: a fraction of the dense count as it was understood there.

s_k sizes of the N modes, D their product.  Numbers are rounded half to even and may exceed the budget, unlike those of
`linmaps.factorized.tensors.ranks`.  An int or a tuple is taken as it is, even beyond what the sizes allow.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

from linmaps.factorized.tensors.ranks import Rank, Ranks, _ints, fraction


def cp_rank(rank: Rank, sizes: Sequence[int]) -> int:
    """The number of terms of a CP tensor: `R = round(f D / sum(s_k))` for a fraction f, at least 1.

    ValueError or TypeError for ranks that are not positive.  Source: tensorly, `validate_cp_rank`, which also gives 0.

    >>> cp_rank(0.1, (4, 4, 16, 4, 4, 16)), cp_rank("same", (3, 5)), cp_rank(0.01, (3, 5)), cp_rank(7, (3, 5))
    (137, 2, 1, 7)
    """
    share = fraction(rank, "CP")
    if share is None:
        return _ints(rank, 1, "CP")[0]
    return max(1, round(math.prod(sizes) * share / sum(sizes)))


def tucker_rank(rank: Rank, sizes: Sequence[int]) -> Ranks:
    """The ranks of a Tucker tensor: `r_k = max(1, round(c s_k))` with `D c^N + c sum(s_k^2) = f D` for a fraction f.

    Ranks of a fraction are at most the sizes; an int or a tuple may exceed them.

    ValueError or TypeError for ranks that are not positive, or not N of them.  Source: tensorly, `validate_tucker_rank`,
    whose ranks for f > 1 are beyond the sizes.

    >>> tucker_rank(0.1, (4, 16, 16, 4, 16, 16)), tucker_rank(2.0, (4, 4, 4)), tucker_rank(5, (2, 8, 3))
    ((3, 11, 11, 3, 11, 11), (4, 4, 4), (5, 5, 5))
    """
    share, n = fraction(rank, "Tucker"), len(sizes)
    if share is None:
        return _ints(rank, n, "Tucker")
    D, squares = math.prod(sizes), sum(s**2 for s in sizes)
    if share * D >= D + squares:  # c >= 1
        return tuple(sizes)
    c = _root(lambda t: D * t**n + squares * t - share * D, max(share, 1.0))
    return tuple(min(s, max(1, round(s * c))) for s in sizes)


def tt_rank(rank: Rank, sizes: Sequence[int]) -> Ranks:
    """The ranks (1, r_1, ..., r_{N-1}, 1) of a tensor train: `r_k = max(1, round(c d_k))`, `d_k = (s_k + s_{k+1}) / 2`.

    For a fraction f, c >= 0 solves `a c^2 + b c = f D` with `b = s_1 d_1 + s_N d_{N-1}` and a the sum of
    `d_{k-1} s_k d_k` over the inner modes; for N = 2 it is `a = d_1^2 s_1`, and the ranks use a part of the budget.
    N = 1 has the ranks (1, 1).

    ValueError or TypeError for ranks that are not positive, not N + 1 of them, or not 1 at both ends.  Source: tensorly,
    `validate_tt_rank`.

    >>> tt_rank(0.1, (16, 256, 256)), tt_rank("same", (64, 64)), tt_rank(9, (2, 3, 4)), tt_rank(0.5, (7,))
    ((1, 14, 27, 1), (1, 7, 1), (1, 9, 9, 1), (1, 1))
    """
    share, n = fraction(rank, "tensor train"), len(sizes)
    if share is None:
        whole = _ints((1, *(rank,) * (n - 1), 1) if isinstance(rank, int) else rank, n + 1, "tensor train")
        if whole[0] != 1 or whole[-1] != 1:
            raise ValueError(f"tensor train: rank is {whole}, expected 1 at both ends")
        return whole
    if n == 1:
        return (1, 1)
    d = [(s + t) / 2 for s, t in zip(sizes, sizes[1:])]
    a = sum(before * s * after for before, s, after in zip(d, sizes[1:], d[1:])) if n > 2 else d[0] ** 2 * sizes[0]
    b = sizes[0] * d[0] + sizes[-1] * d[-1]
    c = (math.sqrt(b**2 + 4 * a * (math.prod(sizes) * share)) - b) / (2 * a)
    return (1, *(max(1, round(c * mean)) for mean in d), 1)


def _root(f: Callable[[float], float], high: float) -> float:
    """The root of an increasing f in (0, high], by Brent's method.

    Its last digits decide where c s_k + 1/2 is an int: the order of the steps is part of the rule.  Source: Brent 1973,
    chapter 4, with extrapolation by a hyperbola and the tolerances 2e-12 (absolute) and four units of rounding.
    """
    old, x, other = 0.0, high, 0.0  # the last two points, and the one on the other side of the root
    f_old, f_x, f_other = f(old), f(x), 0.0
    last = step = 0.0
    while True:
        if f_old * f_x < 0:
            other, f_other, last, step = old, f_old, x - old, x - old
        if abs(f_other) < abs(f_x):
            old, x, other = x, other, x
            f_old, f_x, f_other = f_x, f_other, f_x
        tolerance, half = (2e-12 + 4 * sys.float_info.epsilon * abs(x)) / 2, (other - x) / 2
        if f_x == 0 or abs(half) < tolerance:
            return x
        trial = math.inf
        if abs(last) > tolerance and abs(f_x) < abs(f_old):
            if old == other:
                trial = -f_x * (x - old) / (f_x - f_old)
            else:
                p, q = (f_old - f_x) / (old - x), (f_other - f_x) / (other - x)
                trial = -f_x * (f_other * q - f_old * p) / (q * p * (f_other - f_old))
        last, step = (step, trial) if 2 * abs(trial) < min(abs(last), 3 * abs(half) - tolerance) else (half, half)
        old, f_old = x, f_x
        x += step if abs(step) > tolerance else math.copysign(tolerance, half)
        f_x = f(x)
