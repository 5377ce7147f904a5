"""Orthogonal maps without a loop over reflectors, against a plain loop; an ensemble in one call, against a loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vmap

from linmaps import Orthogonal, trees
from linmaps.numerics.orthogonal import householder
from tests.bench.harness import race


def reflected_one_by_one(V: Tensor) -> Tensor:
    Q = torch.eye(V.shape[1], dtype=V.dtype)
    for v in V:
        Q = Q - 2 * torch.outer(Q @ v, v) / (v @ v)
    return Q


def reflected_in_slices(V: Tensor) -> Tensor:
    """The triangular form as layers write it: reflector i turns the coordinates from i on, the others are copied."""
    Q = torch.eye(V.shape[1], dtype=V.dtype)
    for i, v in enumerate(V):
        u, tail = v[i:], Q[:, i:]
        turned = tail - 2 * (tail @ u)[:, None] * u / (u @ u)
        Q = torch.cat([Q[:, :i], turned], 1) if i else turned
    return Q


def reflected_tightly(V: Tensor) -> Tensor:
    """The same loop with as few temporaries as it can have."""
    Q = torch.eye(V.shape[1], dtype=V.dtype)
    for u in V * (2**0.5 / V.norm(dim=1, keepdim=True)):
        Q = torch.addr(Q, Q @ u, u, alpha=-1)
    return Q


def slope(make: Callable[..., Tensor], params: dict[str, Tensor], weights: Tensor) -> Callable[[], Tensor]:
    def way() -> Tensor:
        V = params["V"].detach().requires_grad_()
        return torch.autograd.grad((make({"V": V}) * weights).sum(), V)[0]

    return way


def together() -> dict[str, Callable[[], object]]:
    """32 maps 64 x 64, forward and backward, by vmap and by a loop."""
    generator = torch.Generator().manual_seed(0)
    spec = Orthogonal(64)
    members = [spec.init(generator) for _ in range(32)]
    stacked = trees.stack(members)
    one = grad(lambda p: spec.effective_W(p).sin().sum())
    return {"ours": lambda: vmap(one)(stacked), "loop": lambda: [one(p) for p in members]}


def main() -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    ratios = {}
    for n in (64, 256):
        spec, flipped = Orthogonal(n, det=(-1) ** (n - 1)), Orthogonal(n, det=(-1) ** n)
        params = spec.init(generator)
        weights = torch.randn(n, n, generator=generator)
        makers = {
            "Orthogonal": spec.effective_W,
            "Orthogonal, other sign": flipped.effective_W,
            "loop over reflectors": lambda p: reflected_one_by_one(householder.offset(p["V"])),
            "loop over reflectors, in slices": lambda p: reflected_in_slices(householder.offset(p["V"])),
            "tight loop": lambda p: reflected_tightly(householder.offset(p["V"])),
        }
        ways = {name: slope(make, params, weights) for name, make in makers.items()}
        torch.testing.assert_close(ways["Orthogonal"](), ways["loop over reflectors"](), rtol=1e-3, atol=1e-3)
        for threads in (1, 2):
            got = race(f"effective_W, forward + backward, n = {n}", ways, base="Orthogonal", threads=threads)
            ratios |= {f"n={n}, {name}, {threads} threads": r for name, r in got.items()}

    ratios["ensemble"] = race("ensemble of 32, forward + backward, n = 64", together(), base="ours")["loop"]

    x = torch.randn(8, 256, generator=generator)
    spec = Orthogonal(256, n_reflectors=16)
    params = spec.init(generator)
    ways = {"apply": lambda: spec.apply(params, x), "x @ effective_W": lambda: x @ spec.effective_W(params)}
    ratios["apply"] = race("apply to 8 rows, n = 256, 16 reflectors", ways, base="apply")["x @ effective_W"]
    return ratios
