"""The maps against the peer's, float32, one thread: time and memory of W, cost of applying it, recurrent rollouts.

A ratio is ours / peer's.  Needs the peer (tests/linmaps/peer.py); without it the parts that compare are left out.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import linmaps
from linmaps import trees
from tests.bench.harness import race
from tests.linmaps import peer

SLIM = peer.slim()
SIZES = (32, 128, 512)

# peer's class, its options, name of our class, its options
CHEAP: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("Linear", {}, "Linear", {}),
    ("IdentityInitLinear", {}, "IdentityInit", {}),
    ("IdentityLinear", {}, "Identity", {}),
    ("NonNegativeLinear", {}, "NonNegative", {"method": "relu"}),
    ("SplitLinear", {}, "Split", {"method": "relu"}),
    ("LassoLinear", {}, "Lasso", {}),
    ("LassoLinearRELU", {}, "LassoReLU", {}),
    ("L0Linear", {"bias": False}, "L0", {}),
    ("RightStochasticLinear", {}, "RightStochastic", {}),
    ("LeftStochasticLinear", {}, "LeftStochastic", {}),
    ("PerronFrobeniusLinear", {}, "PerronFrobenius", {}),
    ("StableSplitLinear", {}, "StableSplit", {}),
    ("SymmetricLinear", {}, "Symmetric", {}),
    ("SkewSymmetricLinear", {}, "SkewSymmetric", {}),
    ("DampedSkewSymmetricLinear", {}, "DampedSkewSymmetric", {}),
    ("PSDLinear", {}, "PSD", {}),
    ("SVDLinear", {}, "SVD", {}),
    ("SVDLinearLearnBounds", {}, "SVDLearnBounds", {}),
    ("SymplecticLinear", {}, "BlockSkew", {}),
    ("TrivialNullSpaceLinear", {}, "TrivialNullSpace", {}),
    ("BoundedNormLinear", {}, "BoundedNorm", {"soft": True}),
    ("PowerBoundLinear", {}, "PowerBound", {"method": "soft"}),
    ("GershgorinLinear", {}, "Gershgorin", {}),
]


def ours(name: str, n: int, **options: Any) -> tuple[linmaps.Map, dict[str, Tensor]]:
    spec = linmaps.maps[_snake(name)](n, **options)
    params = spec.init(torch.Generator().manual_seed(0))
    return spec, {k: t.requires_grad_() for k, t in params.items()}


def _snake(name: str) -> str:
    return next(key for key, cls in linmaps.maps.items() if cls.__name__ == name)


def have(name: str) -> bool:
    return any(cls.__name__ == name for cls in linmaps.maps.values())


def theirs(name: str, n: int, **options: Any) -> Any:
    """A module of the peer; the bias that some need, so as to run, is zero and takes no gradient."""
    if name in ("OrthogonalLinear", "SpectralLinear", "SymmetricSpectralLinear"):
        module = getattr(SLIM, name)(n, n, bias=True, **options).eval()
        module.bias.requires_grad_(False).zero_()
        return module
    module = getattr(SLIM, name)(n, n, **options).eval()
    if name == "SchurDecompositionLinear":
        module.P.bias = torch.nn.Parameter(torch.zeros(n), requires_grad=False)
    return module


def backward(make: Callable[[], Tensor], leaves: list[Tensor], *, retain: bool = False) -> Callable[[], None]:
    """Forward and backward to the leaves, of a sum whose gradient is not constant."""

    def way() -> None:
        y = make()
        if leaves:
            torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=retain, allow_unused=True)

    return way


def weights(peer_name: str, name: str, n: int, peer_options: Any = None, options: Any = None) -> dict[str, Any]:
    """The two ways to compute W and its gradient."""
    return {"ours": _our_weight(name, n, options or {}), "peer": _their_weight(peer_name, n, peer_options or {})}


def _our_weight(name: str, n: int, options: dict[str, Any]) -> Callable[[], None]:
    spec, params = ours(name, n, **options)
    return backward(lambda: spec.effective_W(params), list(params.values()))


def _their_weight(peer_name: str, n: int, options: dict[str, Any]) -> Callable[[], None]:
    module = theirs(peer_name, n, **options)
    return backward(module.effective_W, _leaves(module), retain=_retains(peer_name))


def applications(peer_name: str, name: str, n: int, peer_options: Any = None, options: Any = None) -> dict[str, Any]:
    """The two ways to apply the map to 64 rows, with the gradient of its parameters."""
    spec, params = ours(name, n, **(options or {}))
    module, x = theirs(peer_name, n, **(peer_options or {})), torch.randn(64, n)
    return {
        "ours": backward(lambda: spec.apply(params, x), list(params.values())),
        "peer": backward(lambda: module(x), _leaves(module), retain=_retains(peer_name)),
    }


def _leaves(module: Any) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def _retains(peer_name: str) -> bool:
    """Whether the module computes something once, at construction, through which later backwards pass again."""
    return peer_name in ("SchurDecompositionLinear", "GershgorinLinear")


def orthogonal() -> dict[str, float]:
    """effective_W of the maps made of reflections."""
    ratios = {}
    for name in ("Orthogonal", "Spectral", "SymmetricSpectral"):
        for n in (128, 256, 512):
            title = f"{name}, effective_W, forward + backward, n = {n}"
            got = race(title, weights(f"{name}Linear", name, n), base="peer", rounds=5 if n < 512 else 3)
            ratios[f"{name}, n = {n}"] = got["ours"]
    return ratios


def memory() -> dict[str, float]:
    """Growth of the peak resident memory by one forward + backward at n = 512, each in a process of its own."""
    ratios = {}
    for name in ("Orthogonal", "Spectral"):
        mib = {side: _growth(side, name) for side in ("ours", "peer")}
        ratios[name] = mib["ours"] / mib["peer"]
        print(
            f"{name}, effective_W().sum().backward(), n = 512, growth of peak memory: ours {mib['ours']:.1f} MiB, "
            f"peer {mib['peer']:.1f} MiB, {ratios[name]:.3f} x peer"
        )
    return ratios


def _growth(side: str, name: str) -> float:
    code = f"from tests.bench import bench_maps; bench_maps.print_growth({side!r}, {name!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_growth(side: str, name: str) -> None:
    torch.set_num_threads(1)
    ways = {"ours": lambda n: _our_weight(name, n, {}), "peer": lambda n: _their_weight(f"{name}Linear", n, {})}
    ways[side](16)()
    before = _peak()
    ways[side](512)()  # with the drawing of params: what that leaves free, W would fill unseen
    print(_peak() - before)


def _peak() -> float:
    """Peak resident memory of this process in MiB."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # where ru_maxrss begins at the memory of the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def butterfly() -> dict[str, float]:
    """Application to 64 rows of 512."""
    ratios = {}
    for tied in (True, False):
        ways = applications("ButterflyLinear", "Butterfly", 512, {"tied_weight": tied}, {"tied_weight": tied})
        title = f"Butterfly, apply to [64, 512], forward + backward, tied_weight = {tied}"
        ratios[f"tied_weight = {tied}"] = race(title, ways, base="peer", rounds=9)["ours"]
    return ratios


def schur() -> dict[str, float]:
    ratios = {}
    for n in (128, 256):
        ways = weights("SchurDecompositionLinear", "Schur", n)
        title = f"Schur, effective_W, forward + backward, n = {n}"
        ratios[f"n = {n}"] = race(title, ways, base="peer", rounds=3)["ours"]
    return ratios


def unrolled() -> dict[str, dict[str, Any]]:
    """A recurrent network over 50 steps, batch 16, 64 hidden units, with a Spectral hidden map."""
    n, xs = 64, torch.randn(50, 16, 64)
    cell = linmaps.RNNCell(linmaps.Spectral(n), linmaps.Linear(n), torch.nn.functional.gelu)
    params = cell.init(torch.Generator().manual_seed(0))
    network = SLIM.RNN(n, n, cell_args={"hidden_map": SLIM.SpectralLinear, "input_map": SLIM.Linear})
    theirs = _leaves(network)

    def run(way: Callable[[], object]) -> Callable[[], object]:
        def without_gradients() -> object:
            with torch.no_grad():
                return way()

        return without_gradients

    leaves = trees.map(lambda t: t.detach().requires_grad_(), params)
    return {
        "forward": {"ours": run(lambda: linmaps.rnn(cell, params, xs)), "peer": run(lambda: network(xs))},
        "forward + backward": {
            "ours": backward(lambda: linmaps.rnn(cell, leaves, xs)[0], trees.leaves(leaves)),
            "peer": backward(lambda: network(xs)[0], theirs),
        },
    }


def rollout() -> dict[str, float]:
    title = "RNN, T = 50, n = 64, batch 16, "
    return {name: race(title + name, ways, base="peer", rounds=4)["ours"] for name, ways in unrolled().items()}


def cheap(names: tuple[str, ...] = (), rounds: int = 41) -> dict[str, list[float]]:
    """Every map that costs little more than its product with x: W and apply, forward + backward, as ratios to the peer."""
    table: dict[str, list[float]] = {}
    absent = []
    head = "".join(f"{f'{what} {n}':>11s}" for what in ("W", "apply") for n in SIZES)
    print(f"cheap maps, forward + backward, x peer\n{'':22s}{head}")
    for peer_name, peer_options, name, options in CHEAP:
        if names and name not in names:
            continue
        if not have(name):
            absent.append(name)
            continue
        row = []
        for ways in (weights, applications):
            for n in SIZES:
                pair = ways(peer_name, name, n, peer_options, options)
                row.append(quiet(pair, rounds=rounds if n < 512 else max(9, rounds // 3)))
        table[name] = row
        print(f"{name:22s}" + "".join(f"{r:11.2f}" for r in row), flush=True)
    if absent:
        print("not there:", ", ".join(absent))
    return table


def quiet(ways: dict[str, Any], *, rounds: int) -> float:
    """The ratio of `race`, without its table; a round is as many runs as a clock can tell apart."""
    start = time.perf_counter()
    for way in ways.values():
        way()
        way()
    again = max(1, min(20, int(4e-3 / max(1e-9, time.perf_counter() - start))))

    def often(way: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(again):
                way()

        return run

    with contextlib.redirect_stdout(io.StringIO()):
        return race("", {k: often(way) for k, way in ways.items()}, base="peer", rounds=rounds)["ours"]


PARTS = {
    "orthogonal": orthogonal,
    "memory": memory,
    "butterfly": butterfly,
    "schur": schur,
    "rollout": rollout,
    "cheap": cheap,
}


def main(*parts: str) -> dict[str, Any]:
    if SLIM is None:
        print(f"bench of maps left out: {peer.ABSENT}")
        return {}
    torch.manual_seed(0)
    return {name: part() for name, part in PARTS.items() if not parts or name in parts}


if __name__ == "__main__":
    main(*sys.argv[1:])
