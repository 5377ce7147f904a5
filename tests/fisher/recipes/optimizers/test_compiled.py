"""K-FAC steps as graphs: one for each number within a period, whatever is done every so many steps."""

import dataclasses

import torch
from torch.func import grad

from fisher import LayerCollection
from fisher.recipes import kfac
from linmaps import trees
from tests.laws import close

_r = torch.Generator().manual_seed(0)
P = {
    "w": torch.randn(3, 4, generator=_r, dtype=torch.float64),
    "v": torch.randn(4, 2, generator=_r, dtype=torch.float64),
}
X, T = torch.randn(8, 3, generator=_r, dtype=torch.float64), torch.arange(8) % 2


def f(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"]


def slope(p):
    return grad(lambda p: torch.nn.functional.cross_entropy(f(p, X), T))(p)


def test_steps_of_a_period_are_graphs():
    layers = LayerCollection.from_function(f, P, X)
    optimizer = kfac(f, layers=layers, estimator="exact", bases_every=2, adapt_every=2)
    fast = trees.compiled(lambda g, state, p, x, t: optimizer.update(g, state, p, batch=(x, t)), backend="eager")
    p = q = P
    state = other = optimizer.init(P, (X, T))
    for n in range(6):
        step, state = optimizer.update(slope(p), state, p, batch=(X, T))
        also, other = fast(slope(q), dataclasses.replace(other, step=n % 2), q, X, T)
        close(also, step, 1e-9, f"step {n}")
        p, q = trees.add(p, step), trees.add(q, also)
    assert len(fast.graphs) <= 3  # what init makes may lie otherwise in memory than what update makes


def test_a_step_that_no_number_decides_is_one_graph():
    layers = LayerCollection.from_function(f, P, X)
    optimizer = kfac(f, layers=layers, estimator="exact", bases_every=1, adapt_every=1)
    state = optimizer.init(P, (X, T))
    fast = trees.compiled(lambda g, state, p, x, t: optimizer.update(g, state, p, batch=(x, t)), backend="eager")
    got, want = (step(slope(P), state, P, *batch) for step, batch in ((fast, (X, T)), (optimizer.update, ((X, T),))))
    close(got[0], want[0], 1e-9, "a step")
    close(trees.leaves(got[1].bases.mv(P)), trees.leaves(want[1].bases.mv(P)), 1e-9, "its state")
