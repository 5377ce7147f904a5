"""What one call costs beside its arithmetic: a small MLP, 64-32-16-10, batch 64, one thread.

Two versions by hand of `fim` in PMatKFAC: one with the tools of `torch.func` (a forward with taps, its vjp, vmap over the
columns), one of products alone.  Both know the network, look at nothing that they are given, and make the same factors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp, vmap

import fisher
import growth
import linmaps
from linmaps import trees
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


def doubled(tree: Any) -> Any:
    return trees.map(lambda t: t.double(), tree)


def solved_in_double(factors: Factors, params: dict[str, Tensor], regul: float) -> dict[str, Tensor]:
    """`solved` in float64, as precise as `solve`."""
    return trees.map(lambda t: t.float(), solved(doubled(factors), doubled(params), regul))


def diagonal(factors: Factors) -> dict[str, Tensor]:
    found = {}
    for k, (A, G) in factors.items():
        w = torch.outer(G.diagonal(), A.diagonal())
        found |= {f"{k}.weight": w[:, :-1], f"{k}.bias": w[:, -1]}
    return found


def quadratic(factors: Factors, params: dict[str, Tensor]) -> Tensor:
    return sum((params[k] * t).sum() for k, t in applied(factors, params).items())


def decomposed(factors: Factors, regul: float) -> Factors:
    """(F + regul I)^-1 in its eigenbasis, decomposed in float64."""
    found = {}
    for k, (A, G) in doubled(factors).items():
        (s, U), (t, V) = torch.linalg.eigh(A), torch.linalg.eigh(G)
        found[k] = ((1 / (t[:, None] * s + regul)).float(), U.float(), V.float())
    return found


def moments(params: dict[str, Tensor], x: Tensor, t: Tensor) -> dict[str, Tensor]:
    """The statistics of the pair of the first two layers: S, M, S_prev, M_prev, P, E."""
    one = lambda a: torch.cat([a, torch.ones(len(a), 1)], 1)
    h, inputs = x, []
    for k in LINEARS:
        inputs.append(torch.relu(h) if k else h)
        h = torch.addmm(params[f"{k}.bias"], inputs[-1], params[f"{k}.weight"].mT)
    g = torch.softmax(h, -1)
    g[torch.arange(len(t)), t] -= 1
    g = (g @ params["4.weight"]) * (inputs[2] > 0)
    a, b, n = one(inputs[0]), one(inputs[1]), len(x)
    return {
        "S": b.mT @ b / n, "M": b.mT @ g / n, "S_prev": a.mT @ a / n, "M_prev": a.mT @ g / n, "P": a.mT @ b / n, "E": g.mT @ g / n
    }  # fmt: skip


def maps() -> None:
    """The matrix of a map at n = 16, and its product with 64 rows."""
    draw = torch.Generator().manual_seed(0)
    n, x = 16, torch.randn(64, 16, generator=draw)
    rows, columns = torch.triu_indices(n, n)
    place = torch.zeros(n, n, dtype=torch.long)
    place[rows, columns] = place[columns, rows] = torch.arange(len(rows))
    cores = lambda p: torch.einsum("axb,byc,czd,dwe->xyzw", p["A0"], p["A1"], p["A2"], p["A3"])
    ways: dict[str, tuple[linmaps.Map, Callable[[dict[str, Tensor]], Tensor]]] = {
        "Linear": (linmaps.Linear(n), lambda p: p["W"]),
        "Symmetric": (linmaps.Symmetric(n), lambda p: p["upper"][place]),
        "Orthogonal": (linmaps.Orthogonal(n), lambda p: linmaps.Orthogonal(n)._weight(p)),
        "Spectral": (linmaps.Spectral(n), lambda p: linmaps.Spectral(n)._weight(p)),
        "Factorized tt": (
            linmaps.Factorized((4, 4), factorization="tt", rank=0.5, bias=False),
            lambda p: cores(p).reshape(n, n).mT,
        ),
    }
    for name, (spec, formula) in ways.items():
        title = f"{name}, n = 16: "
        p = spec.init(draw)
        torch.testing.assert_close(formula(p), spec.effective_W(p), rtol=1e-4, atol=1e-5)
        by_hand = "the formula" if name not in ("Orthogonal", "Spectral") else "its hook, unchecked"
        pairs = {"effective_W": (partial(formula, p), partial(spec.effective_W, p))}
        pairs["apply to 64 rows"] = (partial(multiplied, formula, p, x), partial(spec.apply, p, x))
        for method, (hand, ours) in pairs.items():
            race(title + method, {by_hand: hand, method: ours}, base=by_hand, rounds=301)


def multiplied(formula: Callable[[dict[str, Tensor]], Tensor], p: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ formula(p)


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
    ways = {
        "by hand, in float64": lambda: solved_in_double(K.factors, params, 0.1),
        "by hand, in float32": lambda: solved(K.factors, params, 0.1),
        "solve": lambda: K.solve(params, regul=0.1),
    }
    race(title + "solve of PMatKFAC, decomposed in the call", ways, base="by hand, in float64", rounds=101)
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "mv": (lambda: applied(K.factors, params), lambda: K.mv(params)),
        "vTMv": (lambda: quadratic(K.factors, params), lambda: K.vTMv(params)),
        "get_diag": (lambda: diagonal(K.factors), K.get_diag),
        "inverse": (lambda: decomposed(K.factors, 0.1), lambda: K.inverse(0.1)),
    }
    for name, (hand, ours) in pairs.items():
        race(title + f"{name} of PMatKFAC", {"by hand": hand, name: ours}, base="by hand", rounds=101)
    t, pair = torch.arange(64) % 10, growth.Pair("0", "2")
    statistics = lambda **how: growth.statistics(f, params, (x, t), pair, **how)
    found, reading = statistics(layers=layers), growth.Reading.from_function(f, params, x, pair)
    for name, moment in moments(params, x, t).items():
        torch.testing.assert_close(moment, getattr(found, name), rtol=1e-3, atol=1e-5)
    ways = {
        "products alone": lambda: moments(params, x, t),
        "growth.statistics, a reading given": lambda: statistics(layers=reading),
        "growth.statistics, layers given": lambda: statistics(layers=layers),
        "growth.statistics, layers found": statistics,
    }
    race(title + "growth.statistics of the first pair", ways, base="products alone", rounds=31)
    maps()


if __name__ == "__main__":
    main()
