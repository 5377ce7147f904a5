"""Tensorized layers against the peer's, float32, one thread, 64 rows: forward, and forward with backward.

Each of the peer's layers runs in both of its implementations, ours with the same weights as "auto".  Printed per cell: ours
relative to the better of the peer's two, and relative to torch.nn.Linear.  Needs the peer (tests/linmaps/tensor_peer.py);
without it ours alone is compared with torch.nn.Linear.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import linmaps
from tests.bench.harness import race
from tests.linmaps import tensor_peer

SHAPES = {256: (4, 4, 16), 1024: (4, 16, 16), 4096: (16, 16, 16)}
FRACTIONS = (0.01, 0.1)
THEIRS = {"cp": "CP", "tucker": "Tucker", "blocktt": "BlockTT"}
ROUNDS = {256: 60, 1024: 20, 4096: 3}
MEMORY = 2**30  # numbers that the peer's reconstruction of CP may take before it is left out


def backward(f: Callable[[Tensor], Tensor], leaves: list[Tensor], x: Tensor) -> Callable[[], object]:
    def run() -> object:
        y = f(x)
        return torch.autograd.grad(y, leaves, torch.ones_like(y))

    return run


def forward(f: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return f(x)

    return run


def theirs(name: str, n: int, share: float) -> dict[str, Any]:
    """The peer's layer in both implementations, those that fit in memory, with the same weights."""
    peer, shape = tensor_peer.tltorch(), SHAPES[n]
    layers = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = peer.FactorizedLinear(shape, shape, factorization=THEIRS[name], rank=share)
        layers["peer, factorized"] = first
        if name != "cp" or first.weight.rank * n * n / shape[0] < MEMORY / 2:
            second = peer.FactorizedLinear(
                shape, shape, factorization=first.weight, rank=share, implementation="reconstructed"
            )
            second.bias = first.bias
            layers["peer, reconstructed"] = second
    return layers


Modes = dict[str, dict[str, Callable[[], object]]]


def ways_of(name: str, n: int, share: float) -> tuple[Modes, str]:
    """Forward and forward with backward of ours, the peer's and torch.nn.Linear, and what ours chose."""
    torch.manual_seed(0)
    x = torch.randn(64, n)
    linear = torch.nn.Linear(n, n)
    layers: dict[str, Any] = {}
    if name in THEIRS and tensor_peer.tltorch() is not None:
        layers = theirs(name, n, share)
        spec, params = linmaps.from_module(layers["peer, factorized"])
        spec = dataclasses.replace(spec, implementation="auto")
    else:
        spec = linmaps.Factorized(SHAPES[n], factorization=name, rank=share)
        params = spec.init(torch.Generator().manual_seed(0))
    params = {k: t.requires_grad_() for k, t in params.items()}
    for peer_layer in layers.values():
        with torch.no_grad():
            gap = (peer_layer(x) - spec.apply(params, x)).abs().max() / peer_layer(x).abs().max()
        assert gap < 1e-3, f"the layers differ by {gap}"
    ours = lambda x: spec.apply(params, x)
    found: Modes = {}
    for mode, run in (
        ("forward", lambda f, leaves: forward(f, x)),
        ("forward+backward", lambda f, leaves: backward(f, leaves, x)),
    ):
        found[mode] = {"linear": run(linear, list(linear.parameters()))}
        found[mode] |= {title: run(layer, list(layer.parameters())) for title, layer in layers.items()}
        found[mode]["ours"] = run(ours, list(params.values()))
    return found, f"{spec.plan(64).chosen}; rank {spec.ranks}"


def cell(name: str, n: int, share: float) -> None:
    found, chosen = ways_of(name, n, share)
    for mode, ways in found.items():
        title = f"{name} {n} f={share} {mode} [{chosen}]"
        slow = "peer, reconstructed" in ways and name == "cp" and n >= 1024
        ratios = race(title, ways, base="ours", rounds=1 if slow else ROUNDS[n])
        peers = [ratio for way, ratio in ratios.items() if way.startswith("peer")]
        against = f"{1 / min(peers):.3f} x the better of the peer's, " if peers else ""
        print(f"  => ours {against}{1 / ratios['linear']:.3f} x torch.nn.Linear\n")


def main(sizes: tuple[int, ...] = tuple(SHAPES)) -> None:
    if tensor_peer.tltorch() is None:
        print(tensor_peer.ABSENT)
    elif not torch.backends.opt_einsum.is_available():
        raise SystemExit(
            "the peer takes its paths from opt_einsum, without which it is many times slower; put it on PYTHONPATH, so that "
            "torch finds it"
        )
    for n in sizes:
        for name in (*THEIRS, "tt", "lowrank"):
            for share in FRACTIONS:
                cell(name, n, share)


if __name__ == "__main__":
    main(tuple(int(size) for size in sys.argv[1:]) or tuple(SHAPES))
