"""The table of README from one command: each figure with the spread of five runs, at three settings of threads.

    PYTHONPATH=DIR TORCHGROVE_PEERS=DIR python -m tests.bench.table

A figure is our time over that of the fastest of those beside it in the same run.  Settings: 1 thread; 2 threads; 2 threads with
OMP_WAIT_POLICY=PASSIVE, each in a process of its own.  Words choose rows: `python -m tests.bench.table KFAC`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

import fisher
from tests.bench import bench_calls, bench_factorized, bench_fisher, bench_growth, bench_maps, bench_orthogonal
from tests.bench.harness import ratio_to, rounds_of

RUNS, SECONDS = 5, 1.0
SETTINGS: dict[str, tuple[int, dict[str, str]]] = {
    "1 thread": (1, {}),
    "2 threads": (2, {}),
    "2 threads, passive": (2, {"OMP_WAIT_POLICY": "PASSIVE"}),
}
Ways = dict[str, Callable[[], Any]]
PEERS = ("nngeometry", "curvlinops", "BackPACK")


def of_fisher(name: str) -> Ways:
    build, make = bench_fisher.CELLS[name]
    ways, check = build(make)
    if not bench_fisher.peers.installed():
        ways = {n: way for n, way in ways.items() if n.startswith(("ours", "bound"))}
    bench_fisher.agree(ways, check)
    return ways


def of_maps(name: str, n: int) -> Ways:
    return {} if bench_maps.SLIM is None else bench_maps.weights(f"{name}Linear", name, n)


def of_rnn() -> Ways:
    return {} if bench_maps.SLIM is None else bench_maps.unrolled()["forward"]


def of_cp(n: int) -> Ways:
    return bench_factorized.ways_of("cp", n, 0.01)[0]["forward"]


def of_calls() -> Ways:
    torch.manual_seed(0)
    f, params = fisher.functional(bench_calls.network())
    x = torch.randn(64, 64)
    layers = fisher.LayerCollection.from_function(f, params, x)
    ours = lambda: fisher.fim(f, params, x, fisher.PMatKFAC, layers=layers, check_finite=False)
    return {"ours": ours, "by tools": lambda: bench_calls.by_tools(params, x)}


def of_growth(count: int) -> Ways:
    return bench_growth.compared(count).ways()


FISHER = "fastest of nngeometry, curvlinops, BackPACK"


class Row(NamedTuple):
    """One line: what of which networks, beside what (the names of those ways), and how the ways of each cell are made."""

    what: str
    of: str
    against: str
    beside: tuple[str, ...]
    cells: list[Callable[[], Ways]]


def both(what: str, name: str) -> Row:
    cells = [partial(of_fisher, f"{name} {network}") for network in ("mlp", "lenet")]
    return Row(what, "MLP; LeNet", FISHER, PEERS, cells)


def reflected(name: str) -> Row:
    return Row(
        name, "128; 256; 512", "NeuroMANCER's slim", ("peer",), [partial(of_maps, name, n) for n in (128, 256, 512)]
    )


OURS, MANY, ENSEMBLE = "a loop over the same function", "KFAC of 16 MLPs by `vmap`", [partial(of_fisher, "ensemble")]
SMALL = [partial(of_fisher, "dense small"), partial(of_fisher, "gram small")]
CP = ("peer, factorized", "peer, reconstructed")
ILL = [partial(bench_growth.ill, kind, 1) for kind in ("1e2", "1e4", "1e6", "1e8")]
ROWS = [
    Row("KFAC, layers known", "MLP 784-256-256-10", "the bound by hand", ("bound",), [partial(of_fisher, "kfac mlp")]),
    both("KFAC", "kfac"),
    both("EKFAC", "ekfac"),
    both("exact diagonal", "diagonal"),
    both("implicit product", "implicit"),
    Row("dense; tangent kernel", "MLP 64-64-10", FISHER, PEERS, SMALL),
    Row(MANY, "20-32-32-3", OURS, ("ours, a loop",), ENSEMBLE),
    Row(MANY, "20-32-32-3", "a loop over curvlinops", ("curvlinops",), ENSEMBLE),
    Row("one KFAC of a small MLP", "64-32-16-10, batch 64", "torch.func by hand", ("by tools",), [of_calls]),
    reflected("Orthogonal"),
    reflected("Spectral"),
    Row("32 Orthogonal maps by `vmap`", "64 × 64", OURS, ("loop",), [bench_orthogonal.together]),
    Row("RNN of 50 steps, forward", "Spectral 64 × 64", "NeuroMANCER's slim", ("peer",), [of_rnn]),
    Row(
        "CP layer of 1 %, forward",
        "256²; 1024²",
        "tensorly-torch's better",
        CP,
        [partial(of_cp, n) for n in (256, 1024)],
    ),
    Row("growth, a pair; two", "784-256-256-10", "gromo", ("gromo",), [partial(of_growth, n) for n in (1, 2)]),
    Row("the same, a pair", "condition 1e2; 1e4; 1e6; 1e8", "gromo", ("gromo",), ILL),
    Row("a growth step of 8 networks by `vmap`", "8-16-16-4", "a loop", ("loop",), [bench_growth.together]),
]


def runs(ways: Ways, beside: tuple[str, ...]) -> list[float]:
    """Our time over the least of those beside it, run by run."""
    ways = {name: ways[name] for name in ("ours", *beside) if name in ways}
    for way in ways.values():
        way()
    start = time.perf_counter()
    for way in ways.values():
        way()
    rounds = max(3, min(25, int(SECONDS / (2 * (time.perf_counter() - start)))))
    found = []
    for _ in range(RUNS):
        times = rounds_of(ways, rounds)
        found.append(max(ratio_to(times, "ours", name) for name in ways if name != "ours"))
    return found


def measured(threads: int, words: tuple[str, ...]) -> Iterator[tuple[str, int, list[float]]]:
    """(row, cell, a figure for each run); a cell whose peer is absent is left out."""
    torch.set_num_threads(threads)
    for row, of in enumerate(ROWS):
        for number, make in enumerate(of.cells if all(word in of.what for word in words) else ()):
            ways = make()
            if any(name in ways for name in of.beside):
                yield f"{row}", number, runs(ways, of.beside)


def said(figures: list[float]) -> str:
    low, middle, high = min(figures), statistics.median(figures), max(figures)
    return f"{middle:.2g} ({low:.2g}–{high:.2g})"


def main(words: tuple[str, ...]) -> None:
    table: dict[str, dict[tuple[str, int], list[float]]] = {}
    for setting, (threads, environment) in SETTINGS.items():
        command = [sys.executable, "-m", "tests.bench.table", "--threads", str(threads), *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as worker:
            table[setting] = {}
            for line in worker.stdout or ():
                row, number, figures = json.loads(line)
                table[setting][row, number] = figures
                print(f"{setting:20s} {ROWS[int(row)].what:40s} {number} {said(figures)}", file=sys.stderr, flush=True)
        if worker.returncode:
            raise SystemExit(f"{setting}: ended with {worker.returncode}")
    settings = sorted(SETTINGS, key=lambda s: -statistics.mean(statistics.median(f) for f in table[s].values()))
    print("| what | of | against | " + " | ".join(settings) + " |\n|" + "---|" * (3 + len(settings)))
    for row, of in enumerate(ROWS):
        keys = [(f"{row}", n) for n in range(len(of.cells)) if (f"{row}", n) in table[settings[0]]]
        if keys:
            columns = ["; ".join(said(table[s][key]) for key in keys) for s in settings]
            print(f"| {of.what} | {of.of} | {of.against} | " + " | ".join(columns) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--threads"]:
        for found in measured(int(sys.argv[2]), tuple(sys.argv[3:])):
            print(json.dumps(found), flush=True)
    else:
        main(tuple(sys.argv[1:]))
