"""Levels of a butterfly applied to rows, fused a few at a time into batched matrix products.

N = 2^m.  At level l, of stride s = 2^l, coordinates i and i + s of each run of 2 s are mixed; such a pair is (g, j): the
run and the place in it, i = g 2 s + j.  S stacks, R rows of x.  Blocks of a level: [S, G, s, 2, 2], with G = 1 in place
of the N / (2 s) runs where all runs share them.  A twiddle holds them level by level: [S, m, N / 2, 2, 2], or where runs
share [S, N - 1, 2, 2].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

# in multiplications of a matrix product, measured: a pass over an entry of x, and a new entry of a fused factor
PASS, FUSE = 80, 32


def levels_of(twiddle: Tensor, increasing: bool) -> list[Tensor]:
    """Blocks of the levels, those of increasing order for W or for its transpose."""
    T = twiddle if increasing else twiddle.mT
    S = len(T)
    if T.ndim == 4:
        m = T.shape[1].bit_length()
        return [T[:, 2**l - 1 : 2 ** (l + 1) - 1].reshape(S, 1, 2**l, 2, 2) for l in range(m)]
    m = T.shape[1]
    return [T[:, l].reshape(S, 2 ** (m - 1 - l), 2**l, 2, 2) for l in range(m)]


def fused(blocks: list[Tensor]) -> Tensor:
    """Successive levels [S, G, s, C, C], low to high, as one of larger blocks: [S, G_last, s_first, product of C, the same].

    With u and v an output and an input of the levels before, and a and b of the next, one path leads from (b, v) to
    (a, u): by the earlier block of run (g, b), then by the later one of place (u, j).  So no sum is needed.

    >>> import torch
    >>> low, high = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    >>> both = fused([low.expand(1, 2, 1, 2, 2), high.expand(1, 1, 2, 2, 2)])
    >>> torch.equal(both[0, 0, 0], torch.kron(high, low))
    True
    """
    D = blocks[0]
    for T in blocks[1:]:
        S, G, _, C, _ = T.shape
        s, size = D.shape[2], D.shape[-1]
        later = T.reshape(S, G, size, s, C, C).permute(0, 1, 3, 4, 2, 5)[..., None]
        earlier = D.reshape(S, G, D.shape[1] // G, s, size, size).permute(0, 1, 3, 4, 2, 5)[:, :, :, None]
        D = (later * earlier).reshape(S, G, s, C * size, C * size)
    return D


def cost(parts: Sequence[int], rows: int) -> int:
    """What so many levels at once cost by entry of x, in multiplications of a matrix product."""
    return sum(rows * (2**k + PASS) + FUSE * 2**k for k in parts)


def cheapest_parts(m: int, rows: int) -> list[int]:
    """How many levels to take at once, from low to high: the cheapest of the even divisions of two parts or more.

    >>> cheapest_parts(10, 1000)
    [5, 5]
    """
    divisions = ([m // count + (i >= count - m % count) for i in range(count)] for count in range(min(2, m), m + 1))
    return min([(cost(parts, rows), parts) for parts in divisions], default=(0, []))[
        1
    ]  # no key: torch.compile knows none


def through(twiddle: Tensor, x: Tensor, increasing: bool, parts: Sequence[int] | None = None) -> Tensor:
    """The levels applied to x [R, in], zeros behind: [R, S N].

    >>> import torch
    >>> hadamard = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).expand(1, 3, 2, 2)
    >>> through(hadamard, torch.tensor([[1.0, 2.0]]), True)
    tensor([[ 3., -1.,  3., -1.]])
    """
    levels, S, R = levels_of(twiddle, increasing), len(twiddle), len(x)
    N = 2 ** len(levels)
    parts = cheapest_parts(len(levels), R) if parts is None else parts
    starts = [sum(parts[:i]) for i in range(len(parts))]
    # coordinates before rows: then the batched products take strided operands and nothing is moved between them
    y = pad(x, (0, N - x.shape[-1])).mT[None]
    for k, l in list(zip(parts, starts))[:: 1 if increasing else -1]:
        s, C, G = 2**l, 2**k, N // 2 ** (l + k)
        D = fused(levels[l : l + k])
        D = (D if increasing else D.mT).expand(S, G, s, C, C).reshape(S * G * s, C, C)
        v = y.reshape(len(y), G, C, s, R).transpose(2, 3).expand(S, G, s, C, R).reshape(S * G * s, C, R)
        y = torch.bmm(D, v).reshape(S, G, s, C, R).transpose(2, 3)
    return y.reshape(len(y) * N, R).mT
