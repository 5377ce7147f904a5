"""Sums: merge nodes with several predecessors, on either side of a pair."""

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

import growth
from growth.checks.losses import per_sample
from linmaps import trees
from tests.growth.oracle import close, slope

BIASES = [("u", "w"), ("v", "s"), ("uv", "ws"), ("", "")]


def net(bias=("u", "w"), seed=0):
    """h = act(U x + V tanh(x)), a = W h + S sin(x), y = head tanh(a)."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    shapes = {"u": (4, 3), "v": (4, 3), "w": (3, 4), "s": (3, 3), "head": (4, 3)}
    params = {
        n: {"weight": normal(*s) / 2} | ({"bias": normal(s[0]) / 3} if n in "".join(bias) else {})
        for n, s in shapes.items()
    }

    def f(p, x, act=torch.tanh):
        layer = lambda n, x: F.linear(x, p[n]["weight"], p[n].get("bias"))
        hidden = act(layer("u", x) + layer("v", torch.tanh(x)))
        return layer("head", torch.tanh(layer("w", hidden) + layer("s", torch.sin(x))))

    return f, params, (normal(20, 3), torch.randint(0, 4, (20,), generator=g))


PAIR = growth.Pair(growth.Sum("u", "v"), growth.Sum("w", "s"), torch.tanh)


def rows(f, params, data, bias):
    x, t = data
    ones = lambda side: torch.ones(len(x), int(any(n in "uvws" for n in side)), dtype=x.dtype)
    layer = lambda n, x: F.linear(x, params[n]["weight"], params[n].get("bias"))
    b2 = torch.cat([x, torch.tanh(x), ones(bias[0])], 1)
    hidden = torch.tanh(layer("u", x) + layer("v", torch.tanh(x)))
    b1 = torch.cat([hidden, torch.sin(x), ones(bias[1])], 1)
    a = (layer("w", hidden) + layer("s", torch.sin(x))).requires_grad_()
    loss = F.cross_entropy(layer("head", torch.tanh(a)), t, reduction="sum")
    return b2, b1, torch.autograd.grad(loss, a)[0]


@pytest.mark.parametrize("bias", BIASES)
def test_statistics_of_all_inputs_together(bias):
    f, params, data = net(bias)
    s = growth.statistics(f, params, data, PAIR)
    b2, b1, g = rows(f, params, data, bias)
    n = len(g)
    for got, left, right in [
        (s.S, b1, b1), (s.M, b1, g), (s.S_prev, b2, b2), (s.M_prev, b2, g), (s.P, b2, b1), (s.E, g, g)
    ]:  # fmt: skip
        close(got, left.T @ right / n, 1e-12)


@pytest.mark.parametrize("bias", BIASES)
def test_joint_change_and_units_lower_the_loss_by_their_slopes(bias):
    f, params, data = net(bias)
    loss = lambda p: per_sample("cross_entropy")(f(p, data[0]), data[1]).mean()
    s = growth.statistics(f, params, data, PAIR)
    delta = growth.optimal_delta(s)
    _, b1, g = rows(f, params, data, bias)
    close(b1 @ delta.joined.T, b1 @ torch.linalg.lstsq(b1, g, driver="gelsd").solution, 1e-9)
    new = growth.optimal_neurons(s, 2, delta=delta)
    moved = lambda t: loss(growth.grow(params, PAIR, None, delta=delta, scale=t))
    grown = lambda t: loss(growth.grow(params, PAIR, new, scale=t))
    assert abs(slope(moved, 1e-2) / -delta.decrease - 1) < 1e-6
    assert abs(slope(grown, 1e-2, root=True) / -new.gain - 1) < 1e-4
    both = growth.grow(params, PAIR, new, delta=delta, scale=0.1)
    assert both["u"]["weight"].shape == both["v"]["weight"].shape == (6, 3)
    assert both["w"]["weight"].shape == (3, 6)
    assert both["s"]["weight"].shape == (3, 3)
    close(loss(growth.grow(params, PAIR, new, scale=0.0)), loss(params), 1e-14)
    preview = growth.apply_extended(f, params, PAIR, new, delta, 0.1, data[0])
    close(preview, f(both, data[0]), 1e-14)


def test_one_side_only_and_the_joint_optimum_is_better():
    f, params, data = net()
    alone = growth.Pair(growth.Sum("u", "v"), "w", torch.tanh)
    one, all_ = (growth.optimal_delta(growth.statistics(f, params, data, p)) for p in (alone, PAIR))
    assert all_.decrease > one.decrease > 0
    kinked = lambda p, x: f(p, x, torch.relu)
    pair = growth.Pair(growth.Sum("u", "v"), growth.Sum("w", "s"), torch.relu)
    new = growth.optimal_neurons(growth.statistics(kinked, params, data, pair), 2)
    signed = growth.choose_sign(kinked, params, data, pair, new)
    assert signed.gain >= new.gain
    loss = lambda t: per_sample("cross_entropy")(
        kinked(growth.grow(params, pair, signed, scale=t), data[0]), data[1]
    ).mean()
    assert abs(slope(loss, 1e-2, root=True) / -signed.gain - 1) < 1e-4


def test_ensembles():
    f, _, data = net()
    members = [net(seed=s)[1] for s in range(4)]

    def step(p):
        s = growth.statistics(f, p, data, PAIR)
        delta = growth.optimal_delta(s)
        return growth.grow(p, PAIR, growth.optimal_neurons(s, 2, delta=delta), delta=delta, scale=0.2)

    got = trees.unstack(vmap(step)(trees.stack(members)))
    for a, b in zip(got, map(step, members)):
        for s, t in zip(trees.leaves(a), trees.leaves(b)):
            close(s, t, 1e-10)


def test_surgery_knows_all_layers():
    f, params, data = net(("uv", "ws"))
    y = f(params, data[0])
    g = lambda: torch.Generator().manual_seed(0)
    for larger in (
        growth.widen(params, PAIR, 2),
        growth.widen(params, PAIR, 2, "pair", g()),
        growth.widen(params, PAIR, 2, "zero_out", g()),
        growth.grow(params, PAIR, growth.initialize(params, PAIR, 2, generator=g())),
    ):
        assert larger["u"]["weight"].shape == larger["v"]["weight"].shape == (6, 3)
        assert larger["u"]["bias"].shape == larger["v"]["bias"].shape == (6,)
        close(f(larger, data[0]), y, 1e-12)
        state = growth.grow_like({"m": params}, params, larger)["m"]
        back = growth.prune_like(state, larger, PAIR, [4, 5])
        for a, b in zip(trees.leaves(growth.prune(larger, PAIR, [4, 5])), trees.leaves(back)):
            assert a.shape == b.shape
    smaller, removed = growth.cut(params, PAIR, [1])
    assert smaller["v"]["weight"].shape == (3, 3)
    for a, b in zip(trees.leaves(growth.restore(smaller, PAIR, removed)), trees.leaves(params)):
        assert torch.equal(a, b)
    for fn in (lambda: growth.rescale(params, PAIR, 2), lambda: growth.normalize(None, None, params, PAIR)):
        with pytest.raises(ValueError, match="got a Sum of layers"):
            fn()


def test_statistics_are_carried():
    f, params, data = net(("v", "ws"))
    stats = growth.statistics(f, params, data, PAIR)
    grown = growth.grow(params, PAIR, growth.optimal_neurons(stats, 2))
    carried, new = growth.grow_like(stats, params, grown), growth.statistics(f, grown, data, PAIR)
    kept = torch.tensor([0, 1, 2, 3, 6, 7, 8, 9])  # 4 + 2 hidden units, 3 inputs of the other layer, 1
    for name in ("S", "M", "S_prev", "M_prev", "P", "E"):
        assert getattr(carried, name).shape == getattr(new, name).shape
    close(carried.S[kept][:, kept], stats.S, 0.0)
    assert not carried.S[4:6].any()
    close(growth.prune_like(carried, grown, PAIR, [4, 5]).S, stats.S, 0.0)
    assert (carried + new).count == 40


def test_what_is_no_sum_is_refused():
    f, params, data = net(("", ""))
    with pytest.raises(ValueError, match="different gradients"):
        growth.statistics(
            lambda p, x: (
                F.linear(torch.tanh(F.linear(x, p["u"]["weight"])), p["w"]["weight"])
                + 2 * F.linear(x, p["s"]["weight"])
            ),
            params,
            (data[0], data[1] % 3),
            growth.Pair("u", growth.Sum("w", "s")),
        )
    with pytest.raises(ValueError, match="expected as many"):
        growth.statistics(f, params, data, growth.Pair("u", growth.Sum("w", "head")))
    with pytest.raises(ValueError, match="name it"):
        growth.statistics(f, params, data, growth.Pair(growth.Sum("u", "v"), "w"))
    with pytest.raises(ValueError, match="two or more"):
        growth.Sum("u")
    with pytest.raises(ValueError, match="expected two layers"):
        growth.Pair("u", growth.Sum("w", "u"))
    with pytest.raises(TypeError, match="Sum: a layer is a int"):
        growth.Sum("u", 1)
