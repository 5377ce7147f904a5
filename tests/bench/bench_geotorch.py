"""The maps against geotorch's manifolds and torch's parametrizations: W and its gradient, float32, one thread.

A ratio is ours / theirs in processor time, each the least of interleaved rounds: a machine that others use adds to both,
never takes away.  geotorch is optional (tests/linmaps/geometry_peer.py).  Their forward is called bare, without the module
around it.  What is not the same promise is said in the row's name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import linmaps
from tests.linmaps import geometry_peer

GEOTORCH = geometry_peer.geotorch()
SIZES = (32, 128, 512)
AT_MOST = {"Hurwitz": 32}  # theirs solves an equation of n² unknowns densely
Way = Callable[[], Tensor]


def manifold(name: str, n: int, *args: Any, **options: Any) -> tuple[nn.Module, list[Tensor]]:
    """A manifold of geotorch at a sample of its own."""
    M = getattr(GEOTORCH, name)(torch.Size((n, n)), *args, **options)
    X = M.right_inverse(M.sample()) if hasattr(M, "right_inverse") else M.sample()
    parts = X if isinstance(X, (tuple, list)) else (X,)  # of a product of manifolds
    return M, [t.detach().clone().requires_grad_() for t in parts]


def parametrized(make: Callable[..., nn.Module], n: int, **options: Any) -> tuple[nn.Module, list[Tensor]]:
    """A parametrization of torch, taken from the layer that it was made for."""
    (held,) = make(nn.Linear(n, n, bias=False), **options).parametrizations.values()
    leaves = list(held.parameters()) if hasattr(held, "original0") else [held.original]
    return held[0], [t.detach().clone().requires_grad_() for t in leaves]


def symmetric(n: int) -> tuple[nn.Module, list[Tensor]]:
    return GEOTORCH.Symmetric(), [torch.randn(n, n).requires_grad_()]


# row: our map by its size, theirs by name and size
ROWS: dict[str, tuple[Callable[[int], linmaps.Map], dict[str, Callable[[int], tuple[nn.Module, list[Tensor]]]]]] = {
    "orthogonal, householder": (
        lambda n: linmaps.Orthogonal(n),
        {"torch": lambda n: parametrized(parametrizations.orthogonal, n, orthogonal_map="householder")},
    ),
    "orthogonal, cayley": (
        lambda n: linmaps.Orthogonal(n, method="cayley"),
        {
            "geotorch": lambda n: manifold("SO", n, triv="cayley"),
            "torch": lambda n: parametrized(parametrizations.orthogonal, n, orthogonal_map="cayley"),
        },
    ),
    "orthogonal, exp": (
        lambda n: linmaps.Orthogonal(n, method="exp"),
        {
            "geotorch": lambda n: manifold("SO", n),
            "torch": lambda n: parametrized(parametrizations.orthogonal, n, orthogonal_map="matrix_exp"),
        },
    ),
    "low rank": (lambda n: linmaps.LowRank(n, rank=n // 4), {"geotorch": lambda n: manifold("LowRank", n, n // 4)}),
    "fixed rank": (
        lambda n: linmaps.FixedRank(n, rank=n // 4),
        {"geotorch": lambda n: manifold("FixedRank", n, n // 4)},
    ),
    "invertible": (lambda n: linmaps.Invertible(n), {"geotorch": lambda n: manifold("GLp", n)}),
    "unit determinant": (lambda n: linmaps.UnitDeterminant(n), {"geotorch": lambda n: manifold("SL", n)}),
    "singular values bounded": (
        lambda n: linmaps.Spectral(n, sigma_min=0.9, sigma_max=1.1),
        {"geotorch": lambda n: manifold("AlmostOrthogonal", n, 0.1)},
    ),
    "PSD": (lambda n: linmaps.PSD(n, eps=1e-6), {"geotorch": lambda n: manifold("PSD", n)}),
    "PSD, rank": (
        lambda n: linmaps.PSD(n, rank=n // 4),
        {"geotorch": lambda n: manifold("PSSDLowRank", n, n // 4)},
    ),
    "skew": (lambda n: linmaps.SkewSymmetric(n), {"geotorch": lambda n: manifold("Skew", n)}),
    "symmetric": (lambda n: linmaps.Symmetric(n), {"geotorch": symmetric}),
    "Hurwitz": (lambda n: linmaps.Hurwitz(n, margin=1e-3), {"geotorch": lambda n: manifold("Hurwitz", n, 1e-3)}),
    "unit norm": (
        lambda n: linmaps.UnitNorm(n, axis="in"),
        {"geotorch": lambda n: manifold("SphereEmbedded", n), "geotorch exp": lambda n: manifold("Sphere", n)},
    ),
    "weight norm": (
        lambda n: linmaps.WeightNorm(n),
        {"torch": lambda n: parametrized(parametrizations.weight_norm, n)},
    ),
    "spectral norm <= 1, theirs one power iteration": (
        lambda n: linmaps.Spectral(n, sigma_min=0.0),
        {"torch": lambda n: parametrized(parametrizations.spectral_norm, n)},
    ),
    "spectral norm <= 1, rescaled, theirs one power iteration": (
        lambda n: linmaps.BoundedNorm(n),
        {"torch": lambda n: parametrized(parametrizations.spectral_norm, n)},
    ),
}


def slope(make: Way, leaves: list[Tensor], weights: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(make(), leaves, weights)


def ours(spec: linmaps.Map, weights: Tensor) -> Callable[[], object]:
    params = {k: t.requires_grad_() for k, t in spec.init(torch.Generator().manual_seed(0)).items()}
    return slope(lambda: spec.effective_W(params), list(params.values()), weights)


def theirs(found: tuple[nn.Module, list[Tensor]], weights: Tensor) -> Callable[[], object]:
    module, leaves = found
    return slope(lambda: module(*leaves), leaves, weights)


def least(ways: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """The least processor seconds of each way over interleaved rounds of as many runs as take 20 ms."""
    runs, times = {}, {name: float("inf") for name in ways}
    for name, way in ways.items():
        way()
        start = time.process_time()
        way()
        runs[name] = max(1, int(0.02 / max(1e-6, time.process_time() - start)))
    for _ in range(rounds):
        for name, way in ways.items():
            way()
            start = time.process_time()
            for _ in range(runs[name]):
                way()
            times[name] = min(times[name], (time.process_time() - start) / runs[name])
    return times


def main(*names: str) -> dict[str, float]:
    if GEOTORCH is None:
        print(f"rows of geotorch left out: {geometry_peer.ABSENT}")
    threads, ratios = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():  # theirs draw from the global generator
            torch.manual_seed(0)
            for row, (spec, peers) in ROWS.items():
                here = {k: make for k, make in peers.items() if GEOTORCH is not None or not k.startswith("geotorch")}
                sizes = [n for n in SIZES if n <= AT_MOST.get(row, n)]
                for n in sizes if here and (not names or any(name in row for name in names)) else ():
                    weights = torch.randn(n, n)
                    ways = {"ours": ours(spec(n), weights)}
                    ways |= {name: theirs(make(n), weights) for name, make in here.items()}
                    times = least(ways, rounds=9 if n < 512 else 3)
                    got = {name: times["ours"] / times[name] for name in here}
                    ratios |= {f"{row}, n = {n}, x {name}": ratio for name, ratio in got.items()}
                    parts = "".join(f"   {r:6.2f} x {name} ({1e3 * times[name]:.3f} ms)" for name, r in got.items())
                    print(f"{row}, n = {n}: {1e3 * times['ours']:.3f} ms{parts}", flush=True)
    finally:
        torch.set_num_threads(threads)
    return ratios


if __name__ == "__main__":
    main(*sys.argv[1:])
