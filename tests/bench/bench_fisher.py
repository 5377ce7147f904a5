"""Fisher matrices against nngeometry, curvlinops and BackPACK, float32, two threads, exact categorical Fisher of 10 classes.

Networks: MLP 784-256-256-10, batch 256; LeNet on 1 x 28 x 28, batch 128; small MLP 64-64-10 of 4,810 parameters, batch 128.
Layers are found beforehand, the peers' checks and loaders are off, all are compared before they are timed.  Printed per
cell: times, peak memory above that at the call, and ours relative to the best peer (for KFAC of the MLP to the hand-written
bound of bench_kfac too).  Words choose cells: `python -m tests.bench.bench_fisher kfac mlp`.  The peers are optional
(tests/fisher/peers.py); without them ours alone is timed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import fisher
from fisher.function_space.kernels import gram
from linmaps import trees
from tests.bench.bench_kfac import by_hand
from tests.bench.harness import race
from tests.fisher import peers

CLASSES, REGUL, SECONDS = 10, 0.1, 12.0


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES),
    )  # fmt: skip


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


SHAPES = {mlp: (256, 784), lenet: (128, 1, 28, 28), small: (128, 64)}


@dataclasses.dataclass(frozen=True)
class Net:
    """One network with params, data, a vector, and what each peer wants made once."""

    module: nn.Module
    f: Callable[..., Tensor]
    params: dict[str, Tensor]
    x: Tensor
    t: Tensor
    v: dict[str, Tensor]
    layers: fisher.LayerCollection
    nng_layers: Any
    pack: Any

    @classmethod
    @functools.cache
    def of(cls, make: Callable[[], nn.Module]) -> Net:
        g = torch.Generator().manual_seed(0)
        module = make()
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
        x, t = torch.randn(SHAPES[make], generator=g), torch.randint(CLASSES, SHAPES[make][:1], generator=g)
        f, params = peers.pure(module)
        v = {name: torch.randn(p.shape, generator=g) for name, p in params.items()}
        layers = fisher.LayerCollection.from_function(f, params, x)
        there = peers.installed()
        theirs = (peers.nng_layers(module), peers.extended(module)) if there else (None, None)
        return cls(module, f, params, x, t, v, layers, *theirs)

    def fim(self, representation: Any) -> Any:
        return fisher.fim(self.f, self.params, self.x, representation, layers=self.layers, check_finite=False)

    def nng(self, representation: str) -> Any:
        return peers.nng(self.module, self.x, representation, self.nng_layers)

    def curv(self, operator: str) -> Any:
        return peers.curv(self.module, self.x, self.t, operator)

    def flat(self, tree: Any) -> Tensor:
        return peers.flat(tree, self.module)


Ways = dict[str, Callable[[], Any]]  # "ours", "bound" and the peers
Check = tuple[
    dict[str, Callable[[Any], Any]], float
]  # from each way's result to a number or tensor that all share; tolerance


# --- the cells: ways, and what of their results must agree -----------------------------------------------------------


def kfac(make: Any) -> tuple[Ways, Check]:
    n = Net.of(make)

    def curvlinops() -> Any:
        K = n.curv("KFACLinearOperator")
        K.compute_kronecker_factors()
        return K

    ways: Ways = {"ours": lambda: n.fim(fisher.PMatKFAC)}
    trace = lambda F: F.trace()
    same = {"ours": trace, "nngeometry": trace, "curvlinops": lambda K: K.trace}
    if make is mlp:
        named = {
            f"layer{i}": {"weight": n.params[f"{k}.weight"], "bias": n.params[f"{k}.bias"]} for i, k in enumerate("024")
        }
        ways["bound"] = lambda: by_hand(named, n.x)
        same["bound"] = lambda made: sum(A.trace() * G.trace() for A, G in made.values())
    theirs = {
        "nngeometry": lambda: n.nng("PMatKFAC"),
        "curvlinops": curvlinops,
        "BackPACK": lambda: peers.pack(n.pack, n.x, n.t, "KFLR", "kflr"),
    }
    return ways | theirs, (same, 1e-4)


def ekfac(make: Any) -> tuple[Ways, Check]:
    n = Net.of(make)

    def curvlinops() -> Any:
        K = n.curv("EKFACLinearOperator")
        K.compute_eigenvalue_correction()
        return K

    trace = lambda F: F.trace()
    ways = {"ours": lambda: n.fim(fisher.PMatEKFAC), "nngeometry": lambda: n.nng("PMatEKFAC"), "curvlinops": curvlinops}
    return ways, ({"ours": trace, "nngeometry": trace, "curvlinops": lambda K: K.trace}, 1e-4)


def diagonal(make: Any) -> tuple[Ways, Check]:
    n = Net.of(make)
    ways = {
        "ours": lambda: n.fim(fisher.PMatDiag),
        "nngeometry": lambda: n.nng("PMatDiag"),
        "BackPACK": lambda: peers.pack(n.pack, n.x, n.t, "DiagGGNExact", "diag_ggn_exact"),
    }
    own = lambda F: F.get_diag()
    return ways, ({"ours": lambda F: n.flat(F.get_diag()), "nngeometry": own, "BackPACK": n.flat}, 1e-3)


def implicit(make: Any) -> tuple[Ways, Check]:
    n = Net.of(make)
    F = n.fim(fisher.PMatImplicit)
    ways: Ways = {"ours": lambda: F.mv(n.v)}
    if peers.installed():
        G, K = n.nng("PMatImplicit"), n.curv("GGNLinearOperator")
        u, v = peers.nng_vector(n.v, n.module, n.nng_layers), [n.v[name] for name, _ in n.module.named_parameters()]
        ways |= {"nngeometry": lambda: G.mv(u), "curvlinops": lambda: K @ v}
    listed = lambda found: torch.cat([t.flatten() for t in found])
    return ways, ({"ours": n.flat, "nngeometry": lambda r: r.to_torch(), "curvlinops": listed}, 1e-3)


def dense(make: Any) -> tuple[Ways, Check]:
    n = Net.of(make)
    eye = torch.eye(sum(p.numel() for p in n.params.values()))
    ways = {
        "ours": lambda: n.fim(fisher.PMatDense),
        "nngeometry": lambda: n.nng("PMatDense"),
        "curvlinops": lambda: n.curv("GGNLinearOperator") @ eye,
    }
    norm = lambda F: torch.linalg.norm(F.to_torch())
    return ways, ({"ours": norm, "nngeometry": norm, "curvlinops": torch.linalg.norm}, 1e-4)


def lowrank(make: Any) -> tuple[Ways, Check]:
    """The solve alone, of rows that are there; the peer's is on their span, ours on the whole space: F x is compared."""
    n = Net.of(make)
    F = n.fim(fisher.PMatLowRank)
    ways: Ways = {"ours": lambda: F.solve(n.v, REGUL)}
    if peers.installed():
        G, u = n.nng("PMatLowRank"), peers.nng_vector(n.v, n.module, n.nng_layers)
        ways["nngeometry"] = lambda: G.solve(u, regul=REGUL)
    return ways, ({"ours": lambda r: n.flat(F.mv(r)), "nngeometry": lambda r: G.mv(r).to_torch()}, 1e-3)


def kernel(make: Any) -> tuple[Ways, Check]:
    n = Net.of(make)
    x, t = n.x[:30], n.t[:30]

    def curvlinops() -> Tensor:
        J = peers.curv_jacobian(n.module, x, t, "JacobianLinearOperator")
        return J @ (peers.curv_jacobian(n.module, x, t, "TransposedJacobianLinearOperator") @ eye)

    eye = torch.eye(30 * CLASSES)
    ways = {
        "ours": lambda: gram(n.f, n.params, x, layers=n.layers),
        "nngeometry": lambda: peers.nng_gram(n.module, x, n.nng_layers),
        "curvlinops": curvlinops,
    }
    same = {
        "ours": lambda K: K.to_torch(),
        "nngeometry": lambda K: K.data.permute(1, 0, 3, 2).reshape(len(eye), len(eye)),
        "curvlinops": lambda K: K,
    }
    return ways, (same, 1e-3)


def ensemble(_: Any) -> tuple[Ways, Check]:
    """KFAC of 16 networks 20-32-32-3, batch 64: one call under vmap, or one network after the other."""
    g = torch.Generator().manual_seed(0)
    modules = [
        nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)) for _ in range(16)
    ]
    with torch.no_grad():
        for p in (p for m in modules for p in m.parameters()):
            p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    x, t = torch.randn(64, 20, generator=g), torch.randint(3, (64,), generator=g)
    stacked = trees.map(lambda p: p.detach(), trees.stack([dict(m.named_parameters()) for m in modules]))
    f = lambda p, x: functional_call(modules[0], p, (x,))
    layers = fisher.LayerCollection.from_function(f, trees.map(lambda p: p[0], stacked), x)
    one = lambda p: fisher.fim(f, p, x, fisher.PMatKFAC, layers=layers, check_finite=False)

    def curvlinops() -> list[Any]:
        made = [peers.curv(m, x, t, "KFACLinearOperator") for m in modules]
        for K in made:
            K.compute_kronecker_factors()
        return made

    loop = lambda: [one(trees.map(lambda p, k=k: p[k], stacked)) for k in range(len(modules))]
    ways: Ways = {"ours": lambda: vmap(one)(stacked), "ours, a loop": loop, "curvlinops": curvlinops}
    ways["nngeometry"] = lambda: [peers.nng(m, x, "PMatKFAC") for m in modules]
    traces = lambda made: torch.stack([F.trace() for F in made])
    same: Any = {"ours": vmap(lambda F: F.trace()), "ours, a loop": traces, "nngeometry": traces}
    return ways, (same | {"curvlinops": lambda made: torch.stack([K.trace for K in made])}, 1e-4)


BOTH = [(build, make) for build in (kfac, ekfac, diagonal, implicit) for make in (mlp, lenet)]
CELLS: dict[str, Any] = {f"{build.__name__} {make.__name__}": (build, make) for build, make in BOTH}
CELLS |= {"dense small": (dense, small), "lowrank small": (lowrank, small), "gram small": (kernel, small)}
CELLS["ensemble"] = (ensemble, None)


# --- the race --------------------------------------------------------------------------------------------------------


def peak(way: Callable[[], object]) -> int:
    """The largest number of bytes of tensors and workspaces held at once during a call, above those before it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports each of its starts
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
        kept = way()
    del kept
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def agree(ways: Ways, check: Check) -> None:
    numbers, tolerance = check
    want = torch.as_tensor(numbers["ours"](ways["ours"]()))
    for name, number in numbers.items():
        if name in ways:
            gap = (torch.as_tensor(number(ways[name]())) - want).abs().max() / want.abs().max()
            assert gap < tolerance, f"{name} differs from ours by {gap}"


def cell(name: str) -> None:
    build, make = CELLS[name]
    ways, check = build(make)
    if not peers.installed():
        ways = {n: way for n, way in ways.items() if n.startswith(("ours", "bound"))}
    agree(ways, check)
    memory = {n: peak(way) / 2**20 for n, way in ways.items()}
    start = time.perf_counter()
    for way in ways.values():
        way()
    rounds = max(3, min(31, int(SECONDS / (2 * (time.perf_counter() - start)))))
    ratios = race(name, ways, base="ours", rounds=rounds, threads=2)
    print("  peak memory, MiB: " + ", ".join(f"{n} {m:.3g}" for n, m in memory.items()))
    theirs = {n: r for n, r in ratios.items() if not n.startswith(("ours", "bound"))}
    parts = [f"{1 / min(theirs.values()):.3f} x the best peer, {min(theirs, key=theirs.get)}"] if theirs else []
    parts += [f"{1 / ratios['bound']:.3f} x the bound"] if "bound" in ratios else []
    print(f"  => ours {'; '.join(parts) or 'alone'}\n")


def main(words: tuple[str, ...] = ()) -> None:
    if not peers.installed():
        print(peers.ABSENT)
    for name in CELLS:
        if all(word in name.split() for word in words):
            cell(name)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
