"""Decompositions of a 4096 x 4096 weight from sketches beside the exact ones, and plans of convolutions beside their times.

Times are of the processor, one thread, so that other work on the machine counts little.  Printed: ratios of time, of the numbers
held at most, of errors; of each convolution the ratio of its two ways as planned and as measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import linmaps
from linmaps import factorized
from tests.linmaps.factorized.convolutions.test_costs import Held

SHAPES = {2: (64, 64), 3: (16, 16, 16)}
FITS = (("lowrank", 2), ("tucker", 2), ("tt", 2), ("blocktt", 2), ("cp", 2), ("tucker", 3), ("tt", 3), ("blocktt", 3))
CONVS = (  # kind, rank, x
    ("cp", 0.1, (8, 64, 16, 16)), ("cp", "same", (8, 64, 16, 16)), ("cp", 0.1, (1, 64, 8, 8)),
    ("tucker", 0.1, (8, 64, 16, 16)), ("tucker", "same", (8, 64, 16, 16)), ("tucker", 0.1, (1, 64, 8, 8)),
    ("tt", 0.1, (8, 64, 16, 16)), ("tt", "same", (8, 64, 16, 16)), ("tt", 0.1, (1, 64, 8, 8)),
    ("cp", 0.1, (4, 16, 32, 32)), ("tucker", 0.3, (4, 16, 32, 32)), ("tt", 0.3, (4, 16, 32, 32)),
)  # fmt: skip


def processor(f: Callable[[], object], rounds: int) -> float:
    """Median seconds of the processor."""
    f()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return statistics.median(times)


def weight(n: int = 4096) -> Tensor:
    """A smooth kernel with a thousandth of noise."""
    grid = torch.linspace(0, 1, n)[:, None] + torch.linspace(0.1, 1, n)
    return grid.reciprocal() + 2e-5 * torch.randn(n, n, generator=torch.Generator().manual_seed(0))


def fit(kind: str, modes: int, W: Tensor) -> None:
    options = {"factorization": kind, "rank": 16 if kind == "cp" else 0.01}
    spec = linmaps.Factorized(SHAPES[modes], bias=False, **options)  # type: ignore[arg-type]
    drawn = factorized.sketches(spec, torch.Generator().manual_seed(1))
    sweeps = 10 if kind == "cp" else None
    found = {}
    for way, sketch in (("exact", None), ("sketched", drawn)):
        with torch.no_grad(), Held([W, *drawn]) as held:
            start = time.process_time()
            params, _ = spec.from_matrix(W.T, sketch=sketch, n_sweeps=sweeps)
            seconds = time.process_time() - start
        found[way] = (seconds, held.peak, factorized.relative_error(spec, params, W).item())
    (a, b, c), (t, m, e) = found["exact"], found["sketched"]
    size = sum(s.numel() for s in drawn) / W.numel()
    print(f"{kind:<8} {modes} modes a side, ranks {spec.ranks}: exact {a:.2f} s, {b / 4 / W.numel():.1f} x W")
    print(
        f"  sketched {t / a:.3f} x its time, {m / b:.2f} x its memory, {e / c:.4f} x its error; sketches {size:.2f} x W"
    )


def convolution(kind: str, rank: float | str, shape: tuple[int, ...]) -> float:
    times, c = {}, shape[1]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for way in ("factorized", "reconstructed", "auto"):
        options = {"factorization": kind, "rank": rank, "implementation": way}
        spec = linmaps.FactorizedConv(c, c, (3, 3), **options)  # type: ignore[arg-type]
        params = spec.init(torch.Generator().manual_seed(0))
        with torch.no_grad():
            times[way] = processor(lambda spec=spec, params=params: spec.apply_conv(params, x, padding=1), 15)
    plan = spec.plan(shape, padding=1)
    planned = plan.ways["factorized"].time / plan.ways["reconstructed"].time
    measured = times["factorized"] / times["reconstructed"]
    lost = times["auto"] / min(times["factorized"], times["reconstructed"])
    print(
        f"{kind:<7} {rank!s:<5} x {shape!s:<16} factorized / reconstructed: planned {planned:.2f}, measured {measured:.2f}, "
        f"off by {max(planned / measured, measured / planned):.2f}; takes {plan.chosen}, {lost:.2f} x the faster"
    )
    return max(planned / measured, measured / planned)


def main() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        off = [convolution(*case) for case in CONVS]
        print(f"plans are off by at most {max(off):.2f}")
        W = weight()
        for kind, modes in FITS:
            fit(kind, modes, W)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
