"""Growth beside its bound and gromo, float32, two threads: MLP 784-256-256-10 on 4,096 samples, statistics, delta, 5 units.

Cells: the last pair, both pairs, their parts, the peak memory above that at the call, and 8 networks grown by one call
under vmap against a loop.  All ways are compared before they are timed.  The bound is written by hand for this network:
no taps, no autograd, the matrices, Cholesky solves, an eigen-decomposition of N' S⁺ N.  Words choose cells:
`python -m tests.bench.bench_growth both`.

Cells of ill-conditioned inputs (1e2, 1e4, 1e6, 1e8: spectra without a gap; deficient: pixels dead or seen twice), one thread:
eigenvalues below the accuracy of float32 are cut, and nothing but an eigen-decomposition says which they are.  So the bound
has one of each such matrix, without the correction of its rounding; ours leaves dead inputs out of it, and takes products of
few columns the quicker way round.

The peer is optional (tests/growth/peers.py); without it ours alone is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

import growth
from fisher import LayerCollection
from linmaps import trees
from linmaps.numerics.eigen import pinv, rounding
from tests.bench.bench_fisher import peak
from tests.bench.harness import race
from tests.growth import peers

NAMES = ("first", "hidden", "output")
PAIRS = [growth.Pair("hidden", "output"), growth.Pair("first", "hidden")]
K, CLASSES = 5, 10
SAFE: dict[int, bool] = {}


def mlp(sizes: tuple[int, ...], seed: int) -> dict[str, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return {
        n: {"weight": torch.randn(o, i, generator=g) / i**0.5, "bias": torch.zeros(o)}
        for n, i, o in zip(NAMES, sizes, sizes[1:])
    }


def f(params, x):
    for name in NAMES[:-1]:
        x = torch.relu(F.linear(x, params[name]["weight"], params[name]["bias"]))
    return F.linear(x, params["output"]["weight"], params["output"]["bias"])


def by_cholesky(S: Tensor, M: Tensor) -> Tensor:
    return torch.cholesky_solve(M, torch.linalg.cholesky(S))


def by_eigenvectors(S: Tensor, M: Tensor) -> Tensor:
    values, V = torch.linalg.eigh(S)
    kept = values > rounding(values) * values[-1]
    return V @ (torch.where(kept, 1 / values, 0.0)[:, None] * (V.mT @ M))


def by_either(S: Tensor, M: Tensor) -> Tensor:
    """By Cholesky where half the digits of float32 are left; that is looked up, not found out, so that it costs nothing."""
    if len(S) not in SAFE:
        values = torch.linalg.eigvalsh(S.double())
        SAFE[len(S)] = bool(values[0] > 8 * rounding(S[0]) * values[-1])
    return (by_cholesky if SAFE[len(S)] else by_eigenvectors)(S, M)


def by_hand(
    params, x, y, count: int, solve: Callable[[Tensor, Tensor], Tensor] = by_cholesky
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(ΔW, fan_out @ [fan_in | bias], λ) of the last `count` pairs."""
    one, n = torch.ones(len(x), 1), len(x)
    inputs = [x]
    for name in NAMES[:-1]:
        inputs.append(torch.relu(torch.addmm(params[name]["bias"], inputs[-1], params[name]["weight"].T)))
    g = torch.addmm(params["output"]["bias"], inputs[-1], params["output"]["weight"].T).softmax(1)
    g = g - F.one_hot(y, CLASSES)
    found, moments = [], {}

    def moment(level: int) -> Tensor:
        if level not in moments:
            b = torch.cat([inputs[level], one], 1)
            moments[level] = (b, b.T @ b / n)
        return moments[level]

    for level in (2, 1)[:count]:
        (b1, S), (b2, S_prev) = moment(level), moment(level - 1)
        M, M_prev, P, _ = b1.T @ g / n, b2.T @ g / n, b2.T @ b1 / n, g.T @ g / n
        change = solve(S, M)
        N = P @ change - M_prev
        whitened = solve(S_prev, N)
        squares, Z = torch.linalg.eigh(N.T @ whitened)
        lam = squares[-K:].flip(0).clamp(min=1e-30).sqrt()
        Z = Z[:, -K:].flip(1)
        fan_in = (whitened @ Z / lam.sqrt()).T
        found.append((change.T, (Z * lam.sqrt()) @ fan_in, lam))
        g = (g @ params[NAMES[level]]["weight"]) * (inputs[level] > 0)
    return found


def ours(params, x, y, count: int, layers: growth.Reading | None):
    found = []
    for stats in growth.statistics(f, params, (x, y), PAIRS[:count], layers=layers):
        delta = growth.optimal_delta(stats)
        found.append((delta, growth.optimal_neurons(stats, K, delta=delta)))
    return found


def agree(want: Any, got: Any, tolerance: float = 2e-2) -> None:
    """ΔW, the move of the units and λ of all pairs; in float32 with condition numbers of ten thousand."""
    for pair, (a, b) in enumerate(zip(want, got, strict=True)):
        for s, t in zip(a, b, strict=True):
            gap = (s - t).norm() / s.norm()
            assert gap < tolerance, f"pair {pair}: differs by {gap}"


def plain(found) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [(d.joined, n.fan_out @ n.joined, n.eigenvalues) for d, n in found]


class Case:
    """The last pair or both of 784-256-256-10 on these inputs."""

    def __init__(self, count: int, x: Tensor | None = None) -> None:
        g = torch.Generator().manual_seed(1)
        self.count, self.x = count, torch.randn(4096, 784, generator=g) if x is None else x
        self.y = torch.randint(0, CLASSES, (4096,), generator=g)
        self.params = mlp((784, 256, 256, CLASSES), 0)
        self.layers = growth.Reading.from_function(f, self.params, self.x[:8], PAIRS[:count])
        self.chosen = [2, 1][:count]
        if peers.installed():
            weights = [(self.params[n]["weight"], self.params[n]["bias"]) for n in NAMES]
            self.modules = peers.network(weights, torch.nn.ReLU)

    def statistics(self) -> Any:
        return growth.statistics(f, self.params, (self.x, self.y), PAIRS[: self.count], layers=self.layers)

    def loss(self, out: Tensor) -> Tensor:
        return F.cross_entropy(out, self.y, reduction="sum")

    def ways(self, solve: Callable[[Tensor, Tensor], Tensor] = by_cholesky) -> dict[str, Callable[[], Any]]:
        ways: dict[str, Callable[[], Any]] = {
            "ours": lambda: ours(self.params, self.x, self.y, self.count, self.layers),
            "ours, the pair read in the call": lambda: ours(self.params, self.x, self.y, self.count, None),
            "bound": lambda: by_hand(self.params, self.x, self.y, self.count, solve),
        }
        if peers.installed():
            ways["gromo"] = lambda: peers.step(
                self.modules, self.chosen, self.loss, self.x, K, statistical_threshold=0.0
            )
        return ways


def compared(count: int) -> Case:
    """The case of normal inputs, on which all ways agree."""
    case = Case(count)
    ways = case.ways()
    want = plain(ways["ours"]())
    agree(want, ways["bound"]())
    if "gromo" in ways:
        unit = lambda t: torch.cat([t["fan_in"], t["fan_in_bias"][:, None]], 1)
        agree(want, [(t["delta"], t["fan_out"] @ unit(t), t["eigenvalues"]) for t in ways["gromo"]()])
    return case


def pairs(count: int) -> None:
    case = compared(count)
    ways = case.ways()
    memory = {n: peak(way) / 2**20 for n, way in ways.items()}
    title = f"784-256-256-10, 4096 samples, {'last pair' if count == 1 else 'both pairs'}"
    ratios = race(title, ways, base="ours", rounds=9, threads=2)
    print("  peak memory, MiB: " + ", ".join(f"{n} {m:.3g}" for n, m in memory.items()))
    theirs = f"; {1 / ratios['gromo']:.3f} x gromo" if "gromo" in ratios else ""
    theirs += f", in memory {memory['ours'] / memory['gromo']:.2f}" if "gromo" in ratios else ""
    print(f"  => ours {1 / ratios['bound']:.3f} x the bound{theirs}\n")

    stats = case.statistics()
    deltas = [growth.optimal_delta(s) for s in stats]
    parts: dict[str, Callable[[], Any]] = {
        "statistics": case.statistics,
        "optimal_delta": lambda: [growth.optimal_delta(s) for s in stats],
        "optimal_neurons": lambda: [growth.optimal_neurons(s, K, delta=d) for s, d in zip(stats, deltas)],
    }
    if peers.installed():
        parts["gromo's statistics"] = lambda: peers.passed(case.modules, case.chosen, case.loss, case.x)
    memory = {n: peak(way) / 2**20 for n, way in parts.items()}
    race("  the parts", parts, base="statistics", rounds=9, threads=2)
    print("  peak memory, MiB: " + ", ".join(f"{n} {m:.3g}" for n, m in memory.items()))
    print()


def inputs_of(kind: str) -> Tensor:
    """`[4096, 784]` whose second moment has this condition number, in directions that are nothing special, or no rank."""
    g = torch.Generator().manual_seed(3)
    if kind == "deficient":
        x = torch.rand(4096, 784, generator=g)
        x[:, ::5] = 0
        x[:, 1::10] = x[:, 3::10].repeat(1, 2)[:, : x[:, 1::10].shape[1]]
        return x
    turn = torch.linalg.qr(torch.randn(784, 784, generator=g)).Q
    x = torch.randn(4096, 784, generator=g) * float(kind) ** -torch.linspace(0, 0.5, 784) @ turn
    return x / x.std()


def ill(kind: str, count: int) -> dict[str, Callable[[], Any]]:
    """Ways for ill-conditioned inputs, ours compared with float64."""
    case = Case(count, inputs_of(kind))
    for stats in case.statistics():
        S, M = stats.S.double(), stats.M.double()
        want = ((pinv(S, rtol=rounding(stats.S[0])) @ M) * M).sum()
        gap = (growth.optimal_delta(stats).decrease - want) / want
        assert abs(gap) < 1e-2, f"decrease: differs by {gap}"  # a direction at the threshold may fall on either side
    SAFE.clear()
    return case.ways(by_either) | {"of which statistics": case.statistics}


def conditions(kind: str, count: int) -> None:
    ways = ill(kind, count)
    memory = {n: peak(way) / 2**20 for n, way in ways.items()}
    ratios = race(f"inputs {kind}, {count} pair(s)", ways, base="ours", rounds=5, threads=1)
    print("  peak memory, MiB: " + ", ".join(f"{n} {m:.3g}" for n, m in memory.items()))
    theirs = f"; {1 / ratios['gromo']:.3f} x gromo" if "gromo" in ratios else ""
    print(f"  => ours {1 / ratios['bound']:.3f} x the bound{theirs}\n")


def both(kind: str) -> None:
    for count in (1, 2):
        conditions(kind, count)


def together() -> dict[str, Callable[[], Any]]:
    """A whole growth step of 8 networks 8-16-16-4 on 128 samples, by vmap and by a loop."""
    g = torch.Generator().manual_seed(2)
    members = [mlp((8, 16, 16, 4), s) for s in range(8)]
    x, y = torch.randn(128, 8, generator=g), torch.randint(0, 4, (128,), generator=g)
    layers = LayerCollection.from_function(f, members[0], x)
    stacked = trees.stack(members)

    def grown(p):
        stats = growth.statistics(f, p, (x, y), PAIRS[0], layers=layers)
        delta = growth.optimal_delta(stats)
        return growth.grow(p, PAIRS[0], growth.optimal_neurons(stats, 3, delta=delta), delta=delta, scale=0.1)

    for a, b in zip(
        trees.leaves(trees.stack([grown(p) for p in members])), trees.leaves(vmap(grown)(stacked)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    return {"ours": lambda: vmap(grown)(stacked), "loop": lambda: [grown(p) for p in members]}


def ensemble() -> None:
    ratios = race("ensemble of 8 nets 8-16-16-4, a whole growth step", together(), base="ours", rounds=15)
    print(f"  => vmap {ratios['loop']:.3g} times as fast as the loop\n")


CELLS: dict[str, Callable[[], None]] = {"last": lambda: pairs(1), "both": lambda: pairs(2), "ensemble": ensemble}
CELLS |= {kind: partial(both, kind) for kind in ("1e2", "1e4", "1e6", "1e8", "deficient")}


def main(words: tuple[str, ...] = ()) -> None:
    if not peers.installed():
        print(peers.ABSENT)
    for name, cell in CELLS.items():
        if not words or name in words:
            cell()


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
