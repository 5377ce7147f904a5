"""Sizes of the modes of a tensorized matrix."""

from __future__ import annotations

import functools
import math

from linmaps.checks.annotations import typed

AXES = 64


@functools.lru_cache(maxsize=256)
def _least_sum(n: int, n_modes: int, low: int) -> tuple[int, ...] | None:
    """Of the non-decreasing sequences of n_modes divisors >= low with product n the one of least sum; None without any."""
    if n_modes == 1:
        return (n,) if n >= low else None
    best: tuple[int, ...] | None = None
    for m in range(low, math.floor(n ** (1 / n_modes) + 1e-9) + 1):
        rest = _least_sum(n // m, n_modes - 1, m) if n % m == 0 else None
        if rest is not None and (best is None or m + sum(rest) < sum(best)):
            best = (m, *rest)
    return best


@typed
def tensorized_shape(n: int, n_modes: int) -> tuple[int, ...]:
    """n as a product of n_modes sizes, as equal as its divisors allow (least sum), in ascending order.

    Always n_modes of them: a size with too few divisors is padded with ones.

    ValueError or TypeError for n or n_modes that are not positive ints, or more modes than a tensor may have axes.

    >>> tensorized_shape(1024, 3), tensorized_shape(784, 3), tensorized_shape(17, 2)
    ((8, 8, 16), (7, 8, 14), (1, 17))
    """
    for key, value in (("n", n), ("n_modes", n_modes)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"tensorized_shape: {key} is {value!r}, expected a positive int; convert with int(...)")
        if value < 1:
            raise ValueError(f"tensorized_shape: {key} is {value}, expected a positive int")
    if n_modes > AXES:
        raise ValueError(
            f"tensorized_shape: n_modes is {n_modes}, expected at most {AXES}, the axes that a tensor may have"
        )
    shape = _least_sum(n, n_modes, 1)
    return shape if shape is not None else (1,) * (n_modes - 1) + (n,)
