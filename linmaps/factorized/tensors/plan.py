"""What a way of multiplying costs, from sizes alone, and the cheapest way of joining neighbours before a chain of products.

A chain step is `A z` for A [m, k] and each of n blocks of z [n, k, p].  Costs are counted in multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Groups = tuple[tuple[int, int], ...]  # ranges (first, last + 1) of neighbours that are joined, in order

# multiply-adds that a core does while it moves one number, or calls one operation: measured, within a factor of two
NUMBER, CALL = 20.0, 150_000.0


@dataclass(frozen=True)
class Cost:
    """Multiply-adds, numbers read and written, operations called."""

    flops: float = 0.0
    numbers: float = 0.0
    calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.numbers + other.numbers, self.calls + other.calls)

    @property
    def time(self) -> float:
        """All of it, in multiply-adds."""
        return self.flops + NUMBER * self.numbers + CALL * self.calls


def wide(m: int, k: int, p: int) -> bool:
    """Whether a step goes block by block: the gradient of A, one matrix for each block, is then no larger than z and A z.

    Else the blocks are laid side by side for one product.
    """
    return p == 1 or (p >= 16 and m * k <= p * (m + k))


def step(n: int, m: int, k: int, p: int) -> Cost:
    """One step of a chain.

    >>> step(10, 2, 3, 1)
    Cost(flops=60, numbers=56, calls=1)
    """
    moved = n * p * (m + k)
    return Cost(n * m * k * p, moved + m * k, 1) if wide(m, k, p) else Cost(n * m * k * p, 3 * moved + m * k, 3)


def product(n: int, k: int, m: int) -> Cost:
    """One matrix product [n, k] @ [k, m]."""
    return Cost(n * k * m, n * k + k * m + n * m, 1)


def least(values: Sequence[float]) -> int:
    """Where the smallest value is, the first such place; written so that torch.compile can trace it."""
    place = 0
    for k, value in enumerate(values):
        if value < values[place]:
            place = k
    return place


def cheapest(n: int, cost: Callable[[int, int], Cost], *, whole: bool = True) -> tuple[Cost, Groups]:
    """The groups of neighbours among n with the least sum of costs; whole=False: not all in one group, where n > 1.

    cost(a, b): of joining a, ..., b - 1 and of the step with what comes out.

    >>> cheapest(3, lambda a, b: Cost(calls=1 if b - a < 3 else 9))
    (Cost(flops=0.0, numbers=0.0, calls=2), ((0, 1), (1, 3)))
    """
    best: list[tuple[Cost, Groups]] = [(Cost(), ())]
    for b in range(1, n + 1):
        starts = range(1 if b == n and n > 1 and not whole else 0, b)
        ways = [(best[a][0] + cost(a, b), best[a][1] + ((a, b),)) for a in starts]
        best.append(ways[least([way[0].time for way in ways])])
    return best[n]


@dataclass(frozen=True)
class Way:
    """A way to multiply rows with W: options of the kind's `apply`, or None to form W, and the cost."""

    options: dict[str, Any] | None
    cost: Cost


@dataclass(frozen=True)
class Plan:
    """The ways to multiply so many rows and the title of the chosen one; prints as a table relative to a dense matrix."""

    rows: int
    ways: Mapping[str, Way]
    chosen: str
    dense: Cost

    def __repr__(self) -> str:
        head = (f"{self.rows} rows", "multiplications", "numbers moved", "operations")
        lines = [
            (
                title + " *" * (title == self.chosen),
                f"{way.cost.flops / max(1, self.dense.flops):.3f}",
                f"{way.cost.numbers / self.dense.numbers:.3f}",
                str(way.cost.calls),
            )
            for title, way in self.ways.items()
        ]
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(4)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
            for line in [head, *lines]
        )
