"""The state of K-FAC over a change of widths, and K-FAC as the optimizer between growth steps."""

import torch
from torch.func import grad, vmap

import fisher
import growth
from fisher.recipes import kfac
from linmaps import trees
from tests.growth.digits import digits
from tests.laws import close

D = torch.float64
PAIR = growth.Pair("a", "b")


def f(p, x):
    h = torch.tanh(torch.nn.functional.linear(x, p["a.weight"], p["a.bias"]))
    return torch.nn.functional.linear(h, p["b.weight"], p["b.bias"])


def start(seed=0, units=3):
    r = torch.Generator().manual_seed(seed)
    draw = lambda o, i: torch.randn(o, i, generator=r, dtype=D) / i**0.5
    zeros = lambda n: torch.zeros(n, dtype=D)
    return {"a.weight": draw(units, 64), "a.bias": zeros(units), "b.weight": draw(10, units), "b.bias": zeros(10)}


def data(n=120):
    x, y = digits()[0]
    return x[:n].to(D), y[:n]


def loss(p, batch):
    return torch.nn.functional.cross_entropy(f(p, batch[0]), batch[1])


def grown_by(p, k):
    pad = torch.nn.functional.pad
    shapes = {"a.weight": (0, 0, 0, k), "a.bias": (0, k), "b.weight": (0, k), "b.bias": (0, 0)}
    return {n: pad(t, shapes[n]) for n, t in p.items()}


def test_old_entries_move_as_they_would_have():
    """The new units are zero on both sides, factors and bases are carried: without new ones the step is the old one."""
    p, batch = start(), data()
    optimizer = kfac(
        f, estimator="exact", rate=0.5, factors_every=100, bases_every=100, kind="default", clip=0.1, adapt_every=2
    )
    _, state = optimizer.update(grad(loss)(p, batch), optimizer.init(p, batch), p, batch=batch)
    larger = grown_by(p, 2)
    carried = growth.grow_like(state, p, larger)
    assert carried.factors.layers == fisher.LayerCollection.from_function(f, larger, batch[0])
    want, after = optimizer.update(grad(loss)(p, batch), state, p, batch=batch)
    got, then = optimizer.update(grad(loss)(larger, batch), carried, larger, batch=batch)
    close(got, grown_by(want, 2), 1e-12, "update")
    close(then, growth.grow_like(after, p, larger), 1e-12, "state")
    for U in trees.leaves(then.bases.bases):
        close(U.mT @ U, torch.eye(len(U), dtype=D), 1e-12, "orthogonal")


def test_new_units_are_learned_of():
    p, batch = start(), data()
    optimizer = kfac(f, estimator="exact", bases_every=2)
    larger = grown_by(p, 2)
    carried = growth.grow_like(optimizer.init(p, batch), p, larger)
    larger = trees.axpy(0.1, start(1, units=5), larger)
    q, before = larger, loss(larger, batch)
    for _ in range(10):
        updates, carried = optimizer.update(grad(loss)(q, batch), carried, q, batch=batch)
        q = trees.add(q, updates)
    assert loss(q, batch) < 0.5 * before
    assert all(bool(t.isfinite().all()) for t in trees.leaves(carried))


def test_fit_and_grow_hands_over_the_batch_and_the_noise():
    p, (x, y) = start(units=2), data(60)
    order = growth.shuffles(60, [2, 2], 20, generator=torch.Generator().manual_seed(0))
    options = {"order": order, "target": 4, "k": 2}
    run = lambda p, **own: growth.fit_and_grow(f, p, (x, y), PAIR, **options, **own)
    fit = run(p, optimizer=kfac(f, bases_every=3), generator=torch.Generator().manual_seed(1))
    assert fit.steps[-1].trained < fit.steps[0].before
    assert fit.state.factors.layers["a"].shape == (4, 64)
    assert int(fit.state.step) == sum(map(len, order))
    plain = run(p, optimizer=growth.sgd(0.1), generator=torch.Generator().manual_seed(1))
    close(plain.params, run(p, optimizer=growth.sgd(0.1)).params, 0.0, "who asks for none gets none")

    noise = [
        torch.rand(len(o), 1, 20, 10, dtype=D, generator=torch.Generator().manual_seed(k)) for k, o in enumerate(order)
    ]
    one = lambda p: run(p, optimizer=kfac(f, bases_every=3), noise=noise).params
    members = [start(seed, units=2) for seed in range(2)]
    close(vmap(one)(trees.stack(members)), trees.stack([one(q) for q in members]), 1e-8, "an ensemble")
