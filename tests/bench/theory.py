"""What each way must cost, as formulas: multiplications and additions, numbers that pass through memory, decompositions.

A count becomes a time by three rates, so that a sum of terms grows as that sum does, whichever of them leads.  The rates are
those of a small working set, or those of torch's own product and sum on operands as large as the largest tensor of the call:
what no cache holds goes through memory, and large results are new pages, which no way of writing the call avoids.

A network is an MLP of `depth` hidden layers of one width; K = classes - 1 columns of the exact Fisher.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable

import torch


@dataclasses.dataclass(frozen=True)
class Cost:
    """flops of matrix products; numbers read and written by what is done entry by entry; n^3 of decompositions [n, n].

    largest: how many numbers the largest tensor has, or those that are in use together.
    """

    flops: float = 0.0
    numbers: float = 0.0
    cubes: float = 0.0
    largest: int = 1

    def __add__(self, other: Cost) -> Cost:
        sums = self.flops + other.flops, self.numbers + other.numbers, self.cubes + other.cubes
        return Cost(*sums, max(self.largest, other.largest))


@dataclasses.dataclass(frozen=True)
class Rates:
    """How many of each a second."""

    flops: float
    numbers: float
    cubes: float

    def seconds(self, cost: Cost) -> float:
        return cost.flops / self.flops + cost.numbers / self.numbers + cost.cubes / self.cubes


@dataclasses.dataclass(frozen=True)
class Net:
    width: int = 256
    batch: int = 128
    classes: int = 10
    depth: int = 2

    @property
    def sizes(self) -> list[int]:
        return [self.width] * (self.depth + 1) + [self.classes]

    @property
    def layers(self) -> list[tuple[int, int]]:
        return list(zip(self.sizes, self.sizes[1:]))


def fastest(way: Callable[[], object], seconds: float, rounds: int = 3) -> float:
    """The least processor time of a call, of so many rounds at least and as many as go into so many seconds."""
    way()
    best, spent, done = float("inf"), 0.0, 0
    while done < rounds or spent < seconds:
        start = time.process_time()
        way()
        took = time.process_time() - start
        best, spent, done = min(best, took), spent + took, done + 1
    return best


@functools.lru_cache
def rates(largest: int = 2**16) -> Rates:
    """Of one thread, with operands of about so many numbers.

    A product of 64 rows with a square, a sum of two vectors, and a symmetric eigenproblem of 192.
    """
    g = torch.Generator().manual_seed(0)
    n = math.isqrt(largest)
    x, W, S = (torch.randn(s, n, generator=g) for s, n in ((64, n), (n, n), (192, 192)))
    S = S + S.mT
    product, entries = (fastest(way, 0.05) for way in (lambda: x @ W, lambda: W + W))
    return Rates(128 * n**2 / product, 3 * n**2 / entries, 192**3 / fastest(lambda: torch.linalg.eigh(S), 0.05))


def seconds(cost: Cost, *, cached: bool) -> float:
    """By the rates of a small working set, or of one as large as the call's, to the next power of four."""
    return rates(2**16 if cached else max(2**12, 4 ** round(math.log(cost.largest, 4)))).seconds(cost)


# --- networks: B examples, K columns ---------------------------------------------------------------------------------


def largest(net: Net, columns: int = 1) -> int:
    """Numbers of the largest weight, or of a layer's outputs."""
    return max(net.width**2, columns * net.batch * max(net.sizes))


def forward(net: Net, times: float = 1) -> Cost:
    """`times` passes through all products, in either direction: each weight once, each layer's outputs thrice."""
    weights, units = sum(i * o for i, o in net.layers), sum(o for _, o in net.layers)
    return Cost(2 * times * net.batch * weights, times * (weights + 3 * net.batch * units), largest=largest(net))


def columns(net: Net) -> Cost:
    """K columns of the root, `[K, B, C]`, and their way back through all layers but the first."""
    K, inner = net.classes - 1, net.layers[1:]
    back = 2 * K * net.batch * sum(i * o for i, o in inner)
    return Cost(back, K * net.batch * (10 * net.classes + 3 * sum(i for i, _ in inner)), 0, largest(net, K))


def kfac(net: Net) -> Cost:
    """A of the inputs and G of the gradients of each layer."""
    K, B = net.classes - 1, net.batch
    flops = sum(2 * B * i**2 + 2 * K * B * o**2 for i, o in net.layers)
    return forward(net) + columns(net) + Cost(flops, 4 * sum(i**2 + o**2 for i, o in net.layers))


def ekfac(net: Net) -> Cost:
    """KFAC, the eigenbases of its factors, all gradients in them, and the products of their squares."""
    K, B = net.classes - 1, net.batch
    flops = sum(2 * B * (i**2 + i * o) + 2 * K * B * o**2 for i, o in net.layers)
    numbers = sum(3 * K * B * o + 2 * i * o for i, o in net.layers)
    return kfac(net) + Cost(flops, numbers, sum(i**3 + o**3 for i, o in net.layers))


def diagonal(net: Net) -> Cost:
    """Products of squares."""
    K, B = net.classes - 1, net.batch
    flops = sum(2 * B * i * o for i, o in net.layers)
    return forward(net) + columns(net) + Cost(flops, sum(3 * K * B * o + 4 * i * o for i, o in net.layers))


def implicit(net: Net) -> Cost:
    """Forward with a tangent along all params, and backward to all of them, for a vector."""
    return forward(net, 5)


def statistics(net: Net) -> Cost:
    """Forward, backward to the last layer, and six products of the inputs of the last two layers and the gradient."""
    r, p, q = net.sizes[-3:]
    numbers = net.batch * (r + p + 10 * q) + 2 * (r * r + p * p + r * p + r * q + p * q + q * q)
    return forward(net) + Cost(2 * net.batch * (r * r + p * p + r * p + (r + p + q) * q), numbers)


# --- maps [n, n] -----------------------------------------------------------------------------------------------------


def orthogonal(products: float) -> Callable[[int], Cost]:
    """So many products [n, n] by [n, n], and what is done to entries."""
    return lambda n: Cost(2 * products * n**3, 20 * n**2, 0, n**2)


def exponential(n: int) -> Cost:
    """A polynomial and squarings, of size n forward and 2 n backward, of a skew S [n, n] of normal numbers over sqrt(n).

    There are as many squarings as halvings that bring the norm, sqrt(2 n / pi), to 3.
    """
    products = 6 + math.log2(max(1.0, math.sqrt(2 * n / math.pi) / 3))
    return Cost(2 * 9 * products * n**3, 100 * n**2, 0, 4 * n**2)


def train(side: int, rank: int, rows: int) -> Cost:
    """Rows through the four cores of a tensor train [side^2, side^2] of one rank, from the first to the last."""
    held = [side * side, rank * side, rank, rank * side, side * side]
    flops = 4 * (side * side * rank + rank * rank * side)
    return Cost(rows * flops, rows * 2 * sum(held), 0, rows * sum(held))
