"""Influences beside kronfluence's: all pairs, by layer, by token, compressed, aggregated, self-influences; EKFAC factors made
beforehand.

`python -m tests.bench.bench_influence`.  Its own times contain the files that it writes and reads.  The peer is optional
(tests/fisher/kronfluence.py); without it ours alone is timed.
"""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import torch

import fisher
from fisher.recipes import influence, self_influence
from tests.bench.harness import race
from tests.fisher import kronfluence

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pairs": ({}, {}),
    "by layer": ({"per_layer": True}, {"compute_per_module_scores": True}),
    "by token": ({"per_token": True}, {"compute_per_token_scores": True}),
    "of rank 8": ({"rank": 8}, {"query_gradient_low_rank": 8}),
    "sum of tests": ({"aggregate": "test"}, {"aggregate_query_gradients": True}),
}


def main(examples: int = 512, tests: int = 64, width: int = 128, rounds: int = 3) -> None:
    """Race both at each kind."""
    g = torch.Generator().manual_seed(0)
    module = kronfluence.Tokens(width, 10)
    x, y = torch.randn(examples, 16, width, generator=g), torch.randint(10, (examples, 16), generator=g)
    test, batch = (x[:tests] + 0.1, y[:tests]), 128
    f, params = fisher.functional(module)
    data, kind = list(zip(x.split(batch), y.split(batch))), fisher.Categorical(-1)
    F = fisher.fim(f, params, data, fisher.PMatEKFAC, kind, estimator="empirical")
    run = lambda **options: influence(f, params, data, F, test, loss=kind, regul=F.relative(0.1), **options)
    with tempfile.TemporaryDirectory() as folder:
        there = kronfluence.installed()
        peer: Any = kronfluence.Scores(module, kronfluence.summed, (x, y), test, folder, batch) if there else None
        for name, (ours, theirs) in KINDS.items():
            ways = {"ours": functools.partial(run, **ours)}
            if peer is not None:
                ways["kronfluence"] = functools.partial(peer.pairwise, **theirs)
            race(
                f"influences, {name}, {tests} tests, {examples} examples of 16 positions",
                ways,
                base="ours",
                rounds=rounds,
            )
        own = lambda **options: self_influence(f, params, data, F, loss=kind, regul=F.relative(0.1), **options)
        ways = {"ours": own, "ours, by token": functools.partial(own, per_token=True)}
        if peer is not None:
            ways["kronfluence"] = peer.own
        race(f"self-influences, {examples} examples of 16 positions", ways, base="ours", rounds=rounds)
    at_one_position(examples, rounds=rounds)


def at_one_position(examples: int, sizes: tuple[int, ...] = (784, 100, 50, 10), rounds: int = 3) -> None:
    """Self-influences of an MLP: ours, by hand, by the solve of whole gradients."""
    g = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(*pair) for pair in zip(sizes, sizes[1:])]
    module = torch.nn.Sequential(*(m for layer in layers for m in (layer, torch.nn.Tanh())))[:-1]
    x, y = torch.randn(examples, sizes[0], generator=g), torch.randint(sizes[-1], (examples,), generator=g)
    f, params = fisher.functional(module)
    data = list(zip(x.split(512), y.split(512)))
    F = fisher.fim(f, params, data, fisher.PMatEKFAC)
    regul = F.relative(0.1)
    inverses = {name: (1 / (D + regul[name]), *F.bases[name]) for name, D in F.eigenvalues.items()}
    ways = {
        "by hand": lambda: torch.cat([by_hand(params, inverses, *part) for part in data]),
        "ours": lambda: self_influence(f, params, data, F, regul=regul),
        "whole gradients": lambda: torch.cat([of_whole(f, params, F, regul, *part) for part in data[:1]]),
    }
    with tempfile.TemporaryDirectory() as folder:
        if kronfluence.installed():
            of = lambda module, x, y: torch.nn.functional.cross_entropy(module(x), y, reduction="sum")
            peer: Any = kronfluence.Scores(module, of, (x, y), (x[:1], y[:1]), folder, 512)
            ways["kronfluence"] = peer.own
        race(
            f"self-influences of an MLP {sizes}, {examples} examples; whole gradients of {len(data[0][0])} of them",
            ways,
            base="by hand",
            rounds=rounds,
        )


def by_hand(params: Any, inverses: dict[str, Any], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """One forward, one backward, factors in the eigenbases and a product with the inverse eigenvalues in each layer."""
    weights = [(params[f"{2 * k}.weight"], params[f"{2 * k}.bias"]) for k in range(len(inverses))]
    inputs = [x]
    for W, b in weights[:-1]:
        inputs.append(torch.tanh(torch.addmm(b, inputs[-1], W.mT)))
    W, b = weights[-1]
    g = torch.softmax(torch.addmm(b, inputs[-1], W.mT), 1)
    g = g - torch.nn.functional.one_hot(y, g.shape[1])
    total = torch.zeros(len(x))
    for (W, _), a, (D, U, V) in reversed(list(zip(weights, inputs, inverses.values()))):
        u = torch.addmm(U[-1], a, U[:-1])  # the bias's input is one
        total -= (((g @ V) ** 2 @ D) * u**2).sum(1)
        g = (g @ W) * (1 - a**2)
    return total


def of_whole(f: Any, params: Any, F: Any, regul: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient of each example and its solve."""
    loss = lambda p, x, y: torch.nn.functional.cross_entropy(f(p, x[None]), y[None])
    g = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)
    return -sum((g[name] * t).flatten(1).sum(1) for name, t in F.solve(g, regul).items())


if __name__ == "__main__":
    main()
