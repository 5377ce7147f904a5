"""Pairs of coordinates that a part of a butterfly depends on, and where the numbers of these stand.

N = 2^m coordinates, n of them in use; a path from input i to output o has the high bits of i and the low bits of o when it
comes to a level.  So of the pairs (g, j) of the level of stride s that are complete, g 2 s + j + s < n, those count, are
live, with g 2 s < high and j < low: (high, low) = (in, out), or exchanged for decreasing strides; n = max(in, out).
"""

from __future__ import annotations

import torch
from torch import Tensor


def live_pairs(level: int, high: int, low: int, tied: bool) -> int:
    """How many pairs of the level are live; tied: how many places, where all runs share their blocks.

    >>> [live_pairs(level, 3, 3, tied=False) for level in range(2)]
    [1, 1]
    """
    n, s = max(high, low), 2**level
    places = min(s, low)
    if tied:
        return min(places, n - s)
    runs, complete = -(-high // (2 * s)), max(0, (n - s - places) // (2 * s) + 1)
    return places * min(runs, complete) + (max(0, n - s - 2 * s * complete) if complete < runs else 0)


def placed(packed: Tensor, otherwise: int, high: int, low: int, tied: bool) -> Tensor:
    """Packed numbers of the live pairs at their places [m, N / 2] (or [N - 1], tied); `otherwise` where a pair has none.

    >>> import torch
    >>> placed(torch.tensor([0.5, 0.7]), 0, 3, 3, tied=False)
    tensor([[0.5000, 0.0000],
            [0.7000, 0.0000]])
    """
    n = max(high, low)
    m = (n - 1).bit_length()
    N = 2**m
    complete = N - 1 if tied else m * N // 2
    if n == N and len(packed) == complete:
        return packed if tied else packed.reshape(m, N // 2)
    s = 2 ** torch.arange(m, device=packed.device)[:, None]
    place = torch.arange(N // 2, device=packed.device)
    first, j = place // s * 2 * s, place % s
    live = (first + j + s < n) & (first < high) & (j < low)
    if tied:
        counts = [live_pairs(level, high, low, tied) for level in range(m)]
        index = j + torch.tensor([0, *counts], device=packed.device).cumsum(0)[:m, None]
    else:
        index = live.reshape(-1).cumsum(0).reshape(m, N // 2) - 1
    index = torch.where(live, index, len(packed)).reshape(-1)
    return torch.cat([packed, packed.new_full((1,), otherwise)]).index_select(0, index).reshape(m, N // 2)
