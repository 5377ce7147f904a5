"""Bench harness: time several ways of the same job in interleaved rounds and print ratios, never absolute promises.

Each bench module has `main()`; `python -m tests.bench` runs them all, `python -m tests.bench orthogonal` one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def rounds_of(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each of the interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            way()  # not timed: what ran before has left its mark on caches and allocator
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return times


def ratio_to(times: dict[str, list[float]], name: str, base: str) -> float:
    """The median over rounds of the ratio of each: neighbours in time share the machine's load."""
    return statistics.median(t / b for t, b in zip(times[name], times[base]))


def race(
    title: str, ways: dict[str, Callable[[], object]], *, base: str, rounds: int = 15, threads: int = 1
) -> dict[str, float]:
    """Median seconds of each way over interleaved rounds; prints a table with the ratio to `base`; returns the ratios.

    >>> ratios = race("sum", {"a": lambda: sum(range(10)), "b": lambda: sum(range(10))}, base="a", rounds=1)
    sum ...
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for way in ways.values():
            way()
        times = rounds_of(ways, rounds)
    finally:
        torch.set_num_threads(before)
    ratios = {n: ratio_to(times, n, base) for n in ways}
    print(f"{title}  (median of {rounds} interleaved rounds, {threads} thread(s))")
    for name in ways:
        print(f"  {name:<44s} {1e3 * statistics.median(times[name]):10.3f} ms   {ratios[name]:8.3g} x {base}")
    return ratios
