"""What a convolution with a factorized kernel costs either way, from sizes alone: the way that takes less time is taken.

x is [B, in, *space], the result [B, out, *space']; the tensor of the kernel has sizes (in, *k, out), ranks r.  Counts are of
the forward pass, in numbers and multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linmaps.checks import Shape
from linmaps.factorized.convolutions.stages import stages_of
from linmaps.factorized.kinds import KINDS
from linmaps.factorized.tensors.plan import Cost, least

GROUPED = 2_000_000.0  # multiply-adds in the time that a convolution of each channel by itself takes to begin: measured


@dataclass(frozen=True)
class ConvCost:
    """Parameters, multiply-adds, numbers read and written, numbers held at most beside x and params, operations called."""

    parameters: int
    cost: Cost
    peak: int
    grouped: int = 0

    @property
    def time(self) -> float:
        """All of it, in multiply-adds."""
        return self.cost.time + GROUPED * self.grouped


@dataclass(frozen=True)
class ConvPlan:
    """The ways of one convolution and the chosen one, "factorized" or "reconstructed"; prints as a table, in bytes.

    "dense" is the convolution with a kernel that is there.  time: by the model, relative to it.
    """

    shape: Shape
    ways: Mapping[str, ConvCost]
    chosen: str
    itemsize: int

    def __repr__(self) -> str:
        head = (
            f"x {list(self.shape)}",
            "parameters",
            "multiply-adds",
            "bytes moved",
            "bytes at peak",
            "operations",
            "time",
        )
        lines = [head]
        for title, way in self.ways.items():
            bytes_ = (short(self.itemsize * way.cost.numbers), short(self.itemsize * way.peak))
            share = f"{way.time / self.ways['dense'].time:.2f}"
            counts = (short(way.parameters), short(way.cost.flops), *bytes_, str(way.cost.calls), share)
            lines.append((title + " *" * (title == self.chosen), *counts))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        pad = lambda line: [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]
        return "\n".join("  ".join(pad(line)) for line in lines)


def short(n: float) -> str:
    """Three digits and a letter.

    >>> short(0), short(937), short(20_449), short(5_000_000)
    ('0', '937', '20.4 k', '5 M')
    """
    power = 0
    while n >= 999.5 and power < 5:
        n, power = n / 1000, power + 1
    return f"{n:.3g}{' ' * bool(power)}{' kMGTP'[power].strip()}"


def forming(kind: str, r: Any, sizes: Shape) -> dict[str, Cost]:
    """Of making the weights of the sequence, and of making the kernel.

    >>> {way: int(cost.flops) for way, cost in forming("tucker", (2, 2, 3), (4, 3, 8)).items()}
    {'factorized': 36, 'reconstructed': 410}
    """
    if kind == "dense":
        return {"factorized": Cost(), "reconstructed": Cost()}
    whole = KINDS[kind].ways(r, sizes[:1], sizes[1:], 0)["dense"].cost
    if kind == "cp":
        return {"factorized": Cost(r * sizes[-1], 2 * r * sizes[-1], 1), "reconstructed": whole}
    if kind == "tucker":
        return {"factorized": _expansions(r, sizes), "reconstructed": whole}
    cores = sum(a * s * b for a, s, b in zip(r, sizes, r[1:]))
    return {"factorized": Cost(0, 2 * cores, len(sizes)), "reconstructed": whole}


def _expansions(ranks: Sequence[int], sizes: Sequence[int]) -> Cost:
    """Of a core whose modes of space go from their ranks to their sizes, one by one."""
    cost, now = Cost(), list(ranks)
    for k in range(1, len(ranks) - 1):
        before = math.prod(now)
        now[k] = sizes[k]
        cost = cost + Cost(math.prod(now) * ranks[k], before + math.prod(now), 1)
    return cost


def ways_of(kind: str, r: Any, sizes: Shape, B: int, space: Shape, after: Shape) -> dict[str, ConvCost]:
    """Of the sequence, of putting the kernel together for one convolution, and of this one alone ("dense").

    Each weight is used once for each position.  At peak there are the weights that were made, what a convolution reads and
    what it writes.

    >>> found = ways_of("cp", 2, (4, 3, 8), 1, (10,), (8,))
    >>> {way: (int(c.cost.flops), c.peak) for way, c in found.items()}
    {'factorized': (272, 96), 'reconstructed': (1008, 160), 'dense': (768, 64)}
    """
    made, entries = forming(kind, r, sizes), math.prod(sizes)
    parameters = (
        entries if kind == "dense" else sum(map(math.prod, KINDS[kind].shapes(r, 1, sizes[:1], sizes[1:]).values()))
    )
    found = {}
    for way in ("factorized", "reconstructed", "dense"):
        stages = stages_of(kind if way == "factorized" else "dense", r, sizes)
        cost, peak, read, now, grouped = made.get(way, Cost()), 0, B * sizes[0] * math.prod(space), list(space), 0
        held = 0 if kind == "dense" else {"factorized": _made(kind, r, sizes), "reconstructed": entries}.get(way, 0)
        for stage in stages:
            now = [after[a] if a in stage.axes else s for a, s in enumerate(now)]
            written, weights = B * stage.shape[0] * math.prod(now), math.prod(stage.shape)
            cost = cost + Cost(B * weights * math.prod(now), read + written + weights, 1)
            peak = max(peak, held + written + (read if stage is not stages[0] else 0))
            read, grouped = written, grouped + (stage.groups > 1)
        found[way] = ConvCost(entries if way == "dense" else parameters, cost, peak, grouped)
    return found


def _made(kind: str, r: Any, sizes: Shape) -> int:
    """Numbers in the weights of the sequence that are no views of leaves."""
    if kind == "cp":
        return int(r) * sizes[-1]
    return int(r[0] * math.prod(sizes[1:-1]) * r[-1]) if kind == "tucker" else 0


def chosen(found: Mapping[str, ConvCost], implementation: str) -> str:
    """The way that is asked for, or with "auto" the one that takes less time."""
    ways = ("factorized", "reconstructed")
    return ways[least([found[way].time for way in ways])] if implementation == "auto" else implementation
