"""Calls from several threads at once give the numbers of one thread: forward mode's levels are the process's, not a thread's."""

import concurrent.futures
import threading

import pytest
import torch
import torch.nn.functional as F

import fisher
import growth
from linmaps import trees
from tests.laws import close

_r = torch.Generator().manual_seed(0)
R = lambda *shape: torch.randn(*shape, generator=_r, dtype=torch.float64)
P = {"h": {"weight": R(4, 3), "bias": R(4)}, "o": {"weight": R(3, 4), "bias": R(3)}}
X, T = R(6, 3), torch.arange(6) % 3
PAIR = growth.Pair("h", "o")
THREADS, CALLS = 4, 4


def f(p, x):
    return F.linear(torch.tanh(F.linear(x, p["h"]["weight"], p["h"]["bias"])), p["o"]["weight"], p["o"]["bias"])


def loss(p, x, t):
    return F.cross_entropy(f(p, x), t)


KFAC = fisher.recipes.kfac(f, estimator="exact")
fim = lambda p, kind, **options: fisher.fim(f, p, X, kind, **options)
DOORS = {
    "fim": lambda p: fim(p, fisher.PMatKFAC),
    "fim, ekfac": lambda p: fim(p, fisher.PMatEKFAC),
    "fim, low rank": lambda p: fim(p, fisher.PMatLowRank).solve(p, 0.3),
    "fim, pullback": lambda p: fisher.pullback(
        fim(trees.map(torch.sin, p), fisher.PMatDense), lambda q: trees.map(torch.sin, q), p
    ).mv(p),
    "solve": lambda p: fim(p, fisher.PMatKFAC).solve(p, 0.3),
    "implicit mv": lambda p: fim(p, fisher.PMatImplicit).mv(p),
    "implicit solve": lambda p: fim(p, fisher.PMatImplicit).solve(p, 0.3),
    "implicit trace": lambda p: fim(p, fisher.PMatImplicit).trace(),
    "hessian": lambda p: fisher.hessian(loss, p, (X, T)),
    "hessian mv": lambda p: fisher.hessian(loss, p, (X, T), fisher.PMatImplicit).mv(p),
    "ggn": lambda p: fisher.ggn(f, lambda y, t: F.cross_entropy(y, t, reduction="none"), p, (X, T)).mv(p),
    "gram": lambda p: fisher.gram(f, p, X),
    "jacobian": lambda p: fisher.jacobian(f, p, X).jvp(p),
    "jacobian, implicit": lambda p: fisher.jacobian(f, p, X, fisher.PFMapImplicit).jvp(p),
    "kfac": lambda p: KFAC.update(trees.map(torch.sin, p), KFAC.init(p, (X, T)), p, batch=(X, T)),
    "statistics": lambda p: growth.statistics(f, p, (X, T), PAIR),
    "step": lambda p: growth.step(f, p, (X, T), PAIR, 1).params,
}  # fmt: skip


def in_threads(calls):
    """What each of these calls gives `CALLS` times, all at once, one thread for each."""
    barrier = threading.Barrier(len(calls))

    def work(call):
        barrier.wait()
        return [call() for _ in range(CALLS)]

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(work, call) for call in calls]]


def tensors(tree):
    return [t for t in trees.leaves(tree) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("door", DOORS)
def test_a_door_in_four_threads(door):
    params = [trees.scale(0.5 + 0.25 * k, P) for k in range(THREADS)]
    want = [tensors(DOORS[door](p)) for p in params]
    for found, one in zip(in_threads([lambda p=p: tensors(DOORS[door](p)) for p in params]), want):
        for got in found:
            close(got, one, 1e-9, door)


def test_different_doors_at_once():
    """Those that go by forward mode beside those that do not."""
    names = ["implicit mv", "hessian mv", "statistics", "fim"]
    want = [tensors(DOORS[name](P)) for name in names]
    for name, found, one in zip(names, in_threads([lambda n=n: tensors(DOORS[n](P)) for n in names]), want):
        for got in found:
            close(got, one, 1e-9, name)
