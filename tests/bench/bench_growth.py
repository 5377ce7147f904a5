"""Growth: statistics and both solves against the same by hand, and an ensemble in one call against a loop."""

from __future__ import annotations

import torch
from torch.func import vmap
from torch.nn import functional as F

import growth
from fisher import LayerCollection
from linmaps import trees
from tests.bench.harness import race

PAIR = growth.Pair("hidden", "output")


def mlp(sizes: tuple[int, ...], seed: int):
    g = torch.Generator().manual_seed(seed)
    names = ["first", "hidden", "output"]
    return {
        n: {"weight": torch.randn(o, i, generator=g) / i**0.5, "bias": torch.zeros(o)}
        for n, i, o in zip(names, sizes, sizes[1:])
    }


def f(params, x):
    for name in ("first", "hidden"):
        x = torch.relu(F.linear(x, params[name]["weight"], params[name]["bias"]))
    return F.linear(x, params["output"]["weight"], params["output"]["bias"])


def by_hand(params, x, y, k):
    """No taps, no autograd: G = softmax - onehot; the matrices; a pseudo-inverse and a root by eigh; an SVD."""
    b2 = torch.relu(F.linear(x, params["first"]["weight"], params["first"]["bias"]))
    b1 = torch.relu(F.linear(b2, params["hidden"]["weight"], params["hidden"]["bias"]))
    g = F.linear(b1, params["output"]["weight"], params["output"]["bias"]).softmax(1) - F.one_hot(y, 10)
    one, n = torch.ones(len(x), 1), len(x)
    b2, b1 = torch.cat([b2, one], 1), torch.cat([b1, one], 1)
    S, M, S2, M2, P, E = b1.T @ b1 / n, b1.T @ g / n, b2.T @ b2 / n, b2.T @ g / n, b2.T @ b1 / n, g.T @ g / n
    change = torch.linalg.pinv(S, hermitian=True) @ M
    e, v = torch.linalg.eigh(S2)
    root = (v * torch.where(e > 1e-5 * e[-1], e.clamp(min=1e-12) ** -0.5, 0.0)) @ v.T
    u, s, w = torch.linalg.svd(root @ (P @ change - M2), full_matrices=False)
    return change, (root @ u[:, :k] * s[:k].sqrt()).T, w[:k].T * s[:k].sqrt(), E


def main() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(4096, 784, generator=g), torch.randint(0, 10, (4096,), generator=g)
    params = mlp((784, 256, 256, 10), 0)
    layers = LayerCollection.from_function(f, params, x[:8])

    def step(layers):
        stats = growth.statistics(f, params, (x, y), PAIR, layers=layers)
        delta = growth.optimal_delta(stats)
        return growth.optimal_neurons(stats, 5, delta=delta)

    stats = growth.statistics(f, params, (x, y), PAIR, layers=layers)
    delta = growth.optimal_delta(stats)
    ways = {
        "by hand": lambda: by_hand(params, x, y, 5),
        "growth, layers found before": lambda: step(layers),
        "growth, layers found in the call": lambda: step(None),
        "  statistics alone": lambda: growth.statistics(f, params, (x, y), PAIR, layers=layers),
        "  optimal_delta alone": lambda: growth.optimal_delta(stats),
        "  optimal_neurons alone": lambda: growth.optimal_neurons(stats, 5, delta=delta),
    }
    race("784-256-256-10, 4096 samples, last pair", ways, base="by hand", rounds=9)

    members = [mlp((8, 16, 16, 4), s) for s in range(8)]
    xs, ys = torch.randn(128, 8, generator=g), torch.randint(0, 4, (128,), generator=g)
    small = LayerCollection.from_function(f, members[0], xs)
    stacked = trees.stack(members)

    def grown(p):
        stats = growth.statistics(f, p, (xs, ys), PAIR, layers=small)
        delta = growth.optimal_delta(stats)
        return growth.grow(p, PAIR, growth.optimal_neurons(stats, 3, delta=delta), delta=delta, scale=0.1)

    ways = {"loop": lambda: [grown(p) for p in members], "vmap": lambda: vmap(grown)(stacked)}
    race("ensemble of 8 nets 8-16-16-4, a whole growth step", ways, base="loop", rounds=15)


if __name__ == "__main__":
    main()
