"""What one call costs beside its arithmetic: a small MLP, 64-32-16-10, batch 64, one thread.

Two versions by hand of `fim` in PMatKFAC: one with the tools of `torch.func` (a forward with taps, its vjp, vmap over the
columns), one of products alone.  Both know the network, look at nothing that they are given, and make the same factors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp, vmap

import fisher
from tests.bench.harness import race

LINEARS = (0, 2, 4)
Factors = dict[str, tuple[Tensor, Tensor]]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))


def columns(y: Tensor) -> Tensor:
    """The symmetric root sqrt(p_k) (e_k - p), less exact than that of `fisher` where a probability is nearly 1."""
    p = torch.softmax(y, -1)
    return p.mT.sqrt()[:, :, None] * (torch.eye(y.shape[1])[:, None] - p) / len(y) ** 0.5


def factors(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    a, g = torch.cat([a, torch.ones(len(a), 1)], 1), g.flatten(0, 1)
    return a.mT @ (a / len(a)), g.mT @ g


def by_tools(params: dict[str, Tensor], x: Tensor) -> Factors:
    """Taps at the outputs of the layers, one vjp, vmap over the columns."""
    taps = [torch.zeros(len(x), len(params[f"{k}.bias"])) for k in LINEARS]

    def tapped(taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h, inputs = x, []
        for k, tap in zip(LINEARS, taps):
            inputs.append(torch.relu(h) if k else h)
            h = F.linear(inputs[-1], params[f"{k}.weight"], params[f"{k}.bias"]) + tap
        return h, inputs

    y, back, inputs = vjp(tapped, taps, has_aux=True)
    (g,) = vmap(back)(columns(y))
    return {f"{k}": factors(a, t) for k, a, t in zip(LINEARS, inputs, g)}


def by_hand(params: dict[str, Tensor], x: Tensor) -> Factors:
    """Products alone: forward, columns, backward."""
    h, inputs = x, []
    for k in LINEARS:
        inputs.append(torch.relu(h) if k else h)
        h = torch.addmm(params[f"{k}.bias"], inputs[-1], params[f"{k}.weight"].mT)
    g, found = columns(h), {}
    for k, a in zip(reversed(LINEARS), reversed(inputs)):
        found[f"{k}"] = factors(a, g)
        g = (g @ params[f"{k}.weight"]) * (a > 0) if k else g
    return found


def solved(factors: Factors, params: dict[str, Tensor], regul: float) -> dict[str, Tensor]:
    """(F + regul I)^-1 v of v = params, by eigendecompositions of the factors."""
    found = {}
    for k, (A, G) in factors.items():
        v = torch.cat([params[f"{k}.weight"], params[f"{k}.bias"][:, None]], 1)
        (s, U), (t, V) = torch.linalg.eigh(A), torch.linalg.eigh(G)
        w = V @ (V.mT @ v @ U / (t[:, None] * s + regul)) @ U.mT
        found |= {f"{k}.weight": w[:, :-1], f"{k}.bias": w[:, -1]}
    return found


def applied(factors: Factors, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """F v of v = params."""
    found = {}
    for k, (A, G) in factors.items():
        w = G @ torch.cat([params[f"{k}.weight"], params[f"{k}.bias"][:, None]], 1) @ A
        found |= {f"{k}.weight": w[:, :-1], f"{k}.bias": w[:, -1]}
    return found


def main() -> None:
    torch.manual_seed(0)
    f, params = fisher.functional(network())
    x = torch.randn(64, 64)
    layers = fisher.LayerCollection.from_function(f, params, x)
    fim = lambda **how: fisher.fim(f, params, x, fisher.PMatKFAC, layers=layers, **how)
    K = fim()
    for version in (by_tools, by_hand):
        torch.testing.assert_close(version(params, x), K.factors, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(solved(K.factors, params, 0.1), K.solve(params, regul=0.1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(applied(K.factors, params), K.mv(params), rtol=1e-4, atol=1e-5)
    title = "MLP 64-32-16-10, batch 64: "
    ways: dict[str, Callable[[], object]] = {
        "with the tools of torch.func": lambda: by_tools(params, x),
        "products alone": lambda: by_hand(params, x),
        "f alone, without a graph": lambda: f(params, x),
        "fisher.fim, layers given, unchecked": lambda: fim(check_finite=False),
        "fisher.fim, layers given": fim,
        "fisher.fim, layers found": lambda: fisher.fim(f, params, x),
    }
    race(title + "fim in PMatKFAC", ways, base="with the tools of torch.func", rounds=101)
    ways = {"by hand": lambda: solved(K.factors, params, 0.1), "solve": lambda: K.solve(params, regul=0.1)}
    race(title + "solve of PMatKFAC, decomposed in the call", ways, base="by hand", rounds=101)
    ways = {"by hand": lambda: applied(K.factors, params), "mv": lambda: K.mv(params)}
    race(title + "mv of PMatKFAC", ways, base="by hand", rounds=101)


if __name__ == "__main__":
    main()
