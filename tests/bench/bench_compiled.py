"""Functions compiled against the same functions as they are: small networks, where Python's time is most of it, and a larger one.

One run each, float32, one thread; what tracing and compiling took is printed beside.  Words choose cells and a backend:
`python -m tests.bench.bench_compiled ensemble aot_eager`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.func import grad, vmap

import fisher
import growth
from linmaps import Orthogonal, trees
from tests.bench.bench_kfac import mlp, mlp_params
from tests.bench.harness import race

TARGET = torch.arange(64) % 3


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def small() -> tuple[Any, Any, Any]:
    g = generator()
    members = [mlp_params([20, 32, 32, 3], g) for _ in range(16)]
    x = torch.randn(64, 20, generator=g)
    return members, x, fisher.LayerCollection.from_function(mlp, members[0], x)


def one() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """KFAC factors of one small network."""
    members, x, layers = small()
    return lambda p, x: fisher.fim(mlp, p, x, layers=layers), (members[0], x)


def ensemble() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """KFAC factors of 16 small networks."""
    members, x, layers = small()
    of = lambda p, x: vmap(lambda p: fisher.fim(mlp, p, x, layers=layers))(p)
    return of, (trees.stack(members), x)


def natural() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A natural gradient step of an autoencoder, factors and solve in one."""
    g = generator()
    params = mlp_params([784, 256, 64, 16, 64, 256, 784], g)
    x = torch.rand(500, 784, generator=g)
    layers = fisher.LayerCollection.from_function(mlp, params, x[:8])
    loss = lambda p, x: torch.nn.functional.binary_cross_entropy_with_logits(mlp(p, x), x, reduction="sum") / len(x)
    noise = torch.rand(1, 500, 784, generator=g)

    def step(p, x, noise):
        F = fisher.fim(mlp, p, x, likelihood="bernoulli", estimator="mc", noise=noise, layers=layers)
        return trees.axpy(-0.1, F.solve(grad(loss)(p, x), regul=0.1, kind="pi"), p)

    return step, (params, x, noise)


def orthogonal() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """32 Orthogonal maps 64 x 64, forward and backward."""
    spec, g = Orthogonal(64), generator()
    stacked = trees.stack([spec.init(g) for _ in range(32)])
    weight = torch.randn(64, 64, generator=g)
    return lambda p, w: vmap(grad(lambda p: (spec.effective_W(p) * w).sum()))(p), (stacked, weight)


def statistics() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """First-order statistics of one pair, the best delta and four new units."""
    members, x, layers = small()
    pair = growth.Pair("layer0", "layer1")

    def found(p, x):
        stats = growth.statistics(mlp, p, (x, TARGET), pair, layers=layers)
        return growth.optimal_delta(stats, 0.1), growth.optimal_neurons(stats, 4)

    return found, (members[0], x)


CELLS = {cell.__name__: cell for cell in (one, ensemble, natural, orthogonal, statistics)}
BACKENDS = ("inductor", "aot_eager", "eager")


def main(words: tuple[str, ...] = ()) -> dict[str, float]:
    ratios = {}
    backend = next((w for w in words if w in BACKENDS), BACKENDS[0])
    chosen = [w for w in words if w in CELLS] or list(CELLS)
    for name in chosen:
        fn, args = CELLS[name]()
        fast = trees.compiled(fn, *args, backend=backend)
        for got, want in zip(trees.leaves(fast(*args)), trees.leaves(fn(*args)), strict=True):
            if isinstance(want, torch.Tensor) and name != "statistics":  # the signs of units are anyone's
                torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
        title = f"{name}: {CELLS[name].__doc__}  {fast.graphs[0]}"
        ratios[name] = race(
            title, {backend: lambda f=fast, a=args: f(*a), "as it is": lambda f=fn, a=args: f(*a)}, base=backend
        )["as it is"]
    return ratios


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
