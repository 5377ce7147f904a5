"""How cost grows: processor time over width, batch, classes and depth, beside the growth of what must be computed.

One thread, float32, layers found beforehand, checks off, the least of several rounds.  Each cell is a curve: of its upper end
(the last three sizes) the exponent is fitted, and that of its formula in `theory.py` over the same sizes, first by the rates
of a small working set, then by those of torch's own product and sum where operands are as large as the call's.  A cell that
grows faster than the first by more than .1 is marked, otherwise where it grows no faster than the second.  Sizes end where a
call takes longer than LONGEST seconds.

Words choose cells by the way or by what grows; one that ends in .json is where the curves are written:
`python -m tests.bench.bench_sweeps kfac depth curves.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.func import grad

import fisher
import growth
from linmaps import Factorized, Orthogonal, trees
from tests.bench import theory
from tests.bench.bench_kfac import mlp, mlp_params
from tests.bench.theory import Cost, Net, fastest

LONGEST, SECONDS, UPPER, SLACK = 0.4, 0.2, 3, 0.1
Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Sizes, the call of a size, and what it must cost."""

    sizes: tuple[int, ...]
    call: Callable[[int], Call]
    cost: Callable[[int], Cost]


# --- calls of a network ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def made(net: Net) -> tuple[Any, torch.Tensor, fisher.LayerCollection]:
    g = torch.Generator().manual_seed(0)
    params, x = mlp_params(net.sizes, g), torch.randn(net.batch, net.width, generator=g)
    return params, x, fisher.LayerCollection.from_function(mlp, params, x[:8])


def matrix(representation: Any) -> Callable[[Net], Call]:
    def call(net: Net) -> Call:
        params, x, layers = made(net)
        return lambda: fisher.fim(mlp, params, x, representation, layers=layers, check_finite=False)

    return call


def product(net: Net) -> Call:
    params, x, layers = made(net)
    F = fisher.fim(mlp, params, x, fisher.PMatImplicit, layers=layers, check_finite=False)
    return lambda: F.mv(params)


def moments(net: Net) -> Call:
    params, x, layers = made(net)
    pair = growth.Pair(f"layer{net.depth - 1}", f"layer{net.depth}")
    data = x, torch.arange(net.batch) % net.classes
    return lambda: growth.statistics(mlp, params, data, pair, layers=layers, check_finite=False)


WAYS: dict[str, tuple[Callable[[Net], Call], Callable[[Net], Cost]]] = {
    "kfac": (matrix(fisher.PMatKFAC), theory.kfac),
    "ekfac": (matrix(fisher.PMatEKFAC), theory.ekfac),
    "diagonal": (matrix(fisher.PMatDiag), theory.diagonal),
    "implicit": (product, theory.implicit),
    "statistics": (moments, theory.statistics),
}
WIDTHS, BATCHES = tuple(2**k for k in range(6, 13)), tuple(2**k for k in range(4, 13, 2))
GROWING: dict[str, tuple[tuple[int, ...], Callable[[int], Net]]] = {
    "width": (WIDTHS, lambda n: Net(width=n, batch=64)),
    "batch": (BATCHES, lambda n: Net(batch=n)),
    "classes": ((2, 10, 30, 100, 300, 1000), lambda n: Net(width=64, batch=16, classes=n)),
    "depth": ((2, 5, 10, 20, 35, 50), lambda n: Net(width=64, batch=64, depth=n)),
}


# --- calls of a map --------------------------------------------------------------------------------------------------


def rotated(method: Any) -> Callable[[int], Call]:
    def call(n: int) -> Call:
        spec, g = Orthogonal(n, method=method), torch.Generator().manual_seed(0)
        params = spec.init(g) if method == "householder" else {"skew": torch.randn(n * (n - 1) // 2, generator=g)}
        params = trees.scale(n**-0.5, params)  # angles of one size, whatever n
        weight = torch.randn(n, n, generator=g) / n
        slope = grad(lambda p: (spec.effective_W(p) * weight).sum())
        return lambda: slope(params)

    return call


def contracted(side: int, rows: int) -> Call:
    spec, g = Factorized((side, side), (side, side), factorization="tt", rank=(1, 8, 8, 8, 1)), torch.Generator()
    params, x = spec.init(g.manual_seed(0)), torch.randn(rows, side * side, generator=g)
    return lambda: spec.apply(params, x)


def cells() -> dict[str, Cell]:
    found = {
        f"{way} {what}": Cell(sizes, lambda n, c=call, net=net: c(net(n)), lambda n, c=cost, net=net: c(net(n)))
        for way, (call, cost) in WAYS.items()
        for what, (sizes, net) in GROWING.items()
    }
    sides = (64, 128, 256, 512, 1024, 2048)
    for method, cost in (
        ("householder", theory.orthogonal(9)),
        ("cayley", theory.orthogonal(12)),
        ("exp", theory.exponential),
    ):
        found[f"{method} width"] = Cell(sides, rotated(method), cost)
    found["train width"] = Cell(
        WIDTHS[::2], lambda n: contracted(math.isqrt(n), 256), lambda n: theory.train(math.isqrt(n), 8, 256)
    )
    found["train batch"] = Cell(BATCHES, lambda n: contracted(32, n), lambda n: theory.train(32, 8, n))
    return found


# --- curves ----------------------------------------------------------------------------------------------------------


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of the logarithms over the upper end, by least squares.

    >>> round(exponent((1, 2, 4, 8), (9.0, 4.0, 16.0, 64.0)), 6)
    2.0
    """
    x, y = ([math.log(v) for v in values[-UPPER:]] for values in (sizes, seconds))
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y)) / sum((a - middle) ** 2 for a in x)


def curve(cell: Cell) -> dict[str, Any]:
    """Sizes, seconds, those of the formula by either rates, and the three exponents."""
    seconds: list[float] = []
    for n in cell.sizes:
        seconds.append(fastest(cell.call(n), SECONDS))
        if seconds[-1] > LONGEST:
            break
    sizes = cell.sizes[: len(seconds)]
    found = {"seconds": seconds}
    for name, cached in (("cached", True), ("large", False)):
        found[name] = [theory.seconds(cell.cost(n), cached=cached) for n in sizes]
    return {"sizes": sizes, **found, "exponents": {name: exponent(sizes, t) for name, t in found.items()}}


def verdict(exponents: Mapping[str, float]) -> str:
    """Whether time grows as the formula does, only as torch's own products on operands as large do, or faster.

    >>> verdict({"seconds": 2.05, "cached": 2.0, "large": 2.0}), verdict({"seconds": 2.3, "cached": 2.0, "large": 2.25})
    ('as the formula', 'faster, as large products do')
    """
    if exponents["seconds"] <= exponents["cached"] + SLACK:
        return "as the formula"
    return "faster, as large products do" if exponents["seconds"] <= exponents["large"] + SLACK else "FASTER"


def main(words: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        curves = {}
        print("                                          processor time, ms      exponents of the upper end")
        print(f"  {'cell':<20s} {'sizes':>12s} {'first':>12s} {'last':>12s} {'time':>8s} {'formula':>8s} {'large':>8s}")
        chosen = {w for w in words if not w.endswith(".json")}
        for name, cell in cells().items():
            if chosen and not chosen & {name, *name.split()}:
                continue
            c = curves[name] = curve(cell)
            span = f"{c['sizes'][0]}..{c['sizes'][-1]}"
            e = c["exponents"]
            print(
                f"  {name:<20s} {span:>12s} {1e3 * c['seconds'][0]:12.3f} {1e3 * c['seconds'][-1]:12.2f} "
                f"{e['seconds']:8.2f} {e['cached']:8.2f} {e['large']:8.2f}  {verdict(e)}",
                flush=True,
            )
    finally:
        torch.set_num_threads(before)
    for path in (w for w in words if w.endswith(".json")):
        pathlib.Path(path).write_text(json.dumps(curves, indent=1))
    return curves


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
