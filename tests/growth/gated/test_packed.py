"""Gate and up in one leaf: the same in all respects as two layers, whichever half comes first and however it is stored."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

import fisher
import growth
from linmaps import trees
from tests.growth.gated.slopes import along
from tests.growth.oracle import close
from tests.growth.rows_gated import collect, effects, gated, pack, packed
from tests.growth.rows_surgery import normal

ORDERS = ["gate_up", "up_gate"]
both = pytest.mark.parametrize("bias", [(False, False, True), (True, True, True), (True, True, False)])
orders = pytest.mark.parametrize("order", ORDERS)
stored = pytest.mark.parametrize("layout", ["out_in", ("in_out", "out_in"), "in_out"])


def generator():
    return torch.Generator().manual_seed(0)


def same(a, b, tolerance=1e-12):
    trees.map(lambda s, t: close(s, t, tolerance), a, b)


def numbers(record):
    return dataclasses.replace(record, pair=None)


def structural(params, pair):
    """What is done to params alone."""
    draws = normal(
        5, 2, 3 + 3 + 3 + ("bias" in params["down"] and 0) + ("bias" in params.get("up", params.get("gate_up")))
    )
    grown = growth.widen(params, pair, 2, "zero_out", draws=draws)
    small, removed = growth.cut(params, pair, [1, 3])
    return {
        "split": growth.widen(params, pair, 3, units=[1, 1, 3]),
        "noise": growth.widen(params, pair, 2, noise=0.3, draws=draws),
        "pair": growth.widen(params, pair, 2, "pair", noise=0.1, draws=draws),
        "zero_out": grown,
        "prune": growth.prune(params, pair, [0, 2]),
        "back": growth.prune(grown, pair, [4, 5]),
        "cut": small,
        "restore": growth.restore(small, pair, removed),
        "rescale": growth.rescale(params, pair, 3, kind="constraint_new"),
        "preserve": growth.rescale(params, pair, 3, preserve=True),
    }


@both
@orders
@stored
def test_changes_of_params_are_those_of_two_layers(bias, order, layout):
    net, one = gated("swiglu", bias), packed("swiglu", bias, order=order, layout=layout)
    want, got = structural(net.params, net.pair), structural(one.params, one.pair)
    for name in want:
        same(got[name], pack(want[name], order, layout), 1e-14)
    same(growth.unit_scores(one.params, one.pair), growth.unit_scores(net.params, net.pair))


@both
@orders
@pytest.mark.parametrize(
    ("kind", "layout"), [("swiglu", "out_in"), ("reglu", ("in_out", "out_in")), ("bilinear", "in_out")]
)
def test_statistics_and_units_are_those_of_two_layers(kind, bias, order, layout):
    net, one = gated(kind, bias), packed(kind, bias, order=order, layout=layout)
    rows = normal(3, 3, 3 + bias[0])
    plain, stats = collect(net, gates=rows), collect(one, gates=rows)
    same(numbers(stats), numbers(plain))
    same(numbers(collect(one)), numbers(collect(net)))
    new, delta = growth.optimal_neurons(stats, 3), growth.optimal_delta(stats)
    old = growth.optimal_neurons(plain, 3)
    same(effects(new), effects(old), 1e-10)
    moved = {"delta": delta, "scale": (0.3, 0.7)}
    grown = growth.grow(one.params, one.pair, new, **moved)
    separate = growth.grow(
        net.params, net.pair, numbers(new), delta=dataclasses.replace(delta, pair=None), scale=(0.3, 0.7)
    )
    same(grown, pack(separate, order, layout), 0.0)
    close(one.f(grown, one.x), net.f(separate, net.x), 1e-12)
    close(growth.apply_extended(one.f, one.params, one.pair, new, delta, (0.3, 0.7), one.x), one.f(grown, one.x), 0.0)


@orders
@pytest.mark.parametrize("kind", ["swiglu", "geglu", "glu", "reglu", "bilinear"])
def test_slopes(kind, order):
    net = packed(kind, order=order)
    stats = collect(net)
    new, delta = growth.optimal_neurons(stats, 3), growth.optimal_delta(stats)
    assert abs(along(net, new) + float(new.gain)) < 1e-4 * max(1e-3, abs(float(new.gain)))
    assert abs(along(net, delta=delta, h=1e-4) + float(delta.decrease)) < 1e-6 * max(1.0, float(delta.decrease))
    for preset in (growth.random, growth.zero_out, growth.senn, growth.tiny):
        made = preset(stats, 2) if preset is growth.tiny else preset(stats, 2, generator=generator())
        assert abs(along(net, made) + float(made.gain)) < 1e-4 * max(1e-3, abs(float(made.gain)))


@orders
def test_searched_rows_are_those_of_two_layers(order):
    net, one = gated(), packed(order=order)
    search = lambda n: growth.gated_neurons(n.f, n.params, n.data, n.pair, 2, steps=2, generator=generator())
    want, got = search(net), search(one)
    same(effects(got), effects(want), 1e-8)
    signed = lambda n, new: growth.choose_sign(n.f, n.params, n.data, n.pair, numbers(new)).gains
    close(signed(one, want), signed(net, want), 1e-12)


@orders
def test_a_half_too_few_is_seen(order):
    """The order is held against f: read or named, and whatever the activation."""
    for kind in ("swiglu", "glu", "geglu"):
        net = packed(kind, order=order)
        other = net.pair.swapped
        for pair in (other, dataclasses.replace(other, activation=net.activation)):
            with pytest.raises(ValueError, match=rf"expected order='{other.order}'.*give Gated\(packed='gate_up'"):
                growth.statistics(net.f, net.params, net.data, pair)
    symmetric = packed("bilinear", order=order)
    growth.statistics(symmetric.f, symmetric.params, symmetric.data, symmetric.pair.swapped)
    new = growth.optimal_neurons(collect(packed(order="gate_up")), 1)
    with pytest.raises(ValueError, match="order='up_gate'"):
        growth.grow(packed(order="up_gate").params, packed(order="up_gate").pair, new)


def test_a_layer_of_torch_reads_glu():
    """F.glu is up, then gate; slices and chunks are alike."""
    params = {"both": {"weight": normal(1, 8, 3), "bias": normal(2, 8)}, "out": normal(3, 2, 4)}
    x, t = normal(4, 9, 3), normal(5, 9, 2)
    z = lambda p, x: F.linear(x, p["both"]["weight"], p["both"]["bias"])
    half = lambda h: h.shape[-1] // 2
    found = []
    for f in (
        lambda p, x: F.glu(z(p, x)) @ p["out"].T,
        lambda p, x: (lambda h: h[..., : half(h)] * torch.sigmoid(h[..., half(h) :]))(z(p, x)) @ p["out"].T,
        lambda p, x: (lambda h: h[0] * torch.sigmoid(h[1]))(z(p, x).chunk(2, -1)) @ p["out"].T,
    ):
        pair = growth.Gated(None, None, "out", packed="both", order="up_gate")
        found.append(growth.statistics(f, params, (x, t), pair, "squared_error"))
        growth.widen(params, pair, 3, check=(f, x))
        growth.prune(params, pair, [1], f=f, x=x)
    same(found[0], found[1])
    same(found[0], found[2])


def test_other_cuts_are_refused():
    net = packed("swiglu")
    head = lambda p, h: F.linear(h, p["down"]["weight"], p["down"]["bias"])
    z = lambda p, x: F.linear(x, p["gate_up"]["weight"], p["gate_up"]["bias"])
    second = lambda p, x: (lambda h: head(p, F.silu(h[..., ::2]) * h[..., 1::2]))(z(p, x))
    fixed = lambda p, x: (lambda h: head(p, F.silu(h[..., :4]) * h[..., 4:]))(z(p, x))
    for f in (second, fixed):
        with pytest.raises(ValueError, match="packed"):
            growth.widen(net.params, net.pair, 2, f=f, x=net.x)
    with pytest.raises(ValueError, match="is not the product"):
        growth.statistics(second, net.params, (net.x, net.target), net.pair)
    with pytest.raises(ValueError, match=r"twice as many.*packed=before"):
        growth.statistics(net.f, net.params, net.data, growth.Pair("gate_up", "down"))
    odd = {**net.params, "gate_up": {"weight": torch.ones(7, 3)}}
    with pytest.raises(ValueError, match=r"gate_up\.weight: got shape \(7, 3\).*two halves"):
        growth.prune(odd, net.pair, [0])
    for bad, match in (
        ({"gate": "g"}, "beside packed"),
        ({"order": "gate"}, "order is 'gate'"),
        ({"packed": "down"}, "expected two layers"),
    ):
        options = {"gate": None, "up": None, "after": "down", "packed": "gate_up"} | bad
        with pytest.raises(ValueError, match=match):
            growth.Gated(**options)
    with pytest.raises(ValueError, match="without packed"):
        growth.Gated("a", "b", "c", order="up_gate")
    with pytest.raises(TypeError, match="gate is a NoneType"):
        growth.Gated(None, None, "c")


# --- states --------------------------------------------------------------------------------------------------------


@both
@orders
@stored
def test_states_go_along_as_those_of_two_layers(bias, order, layout):
    net, one = gated("swiglu", bias), packed("swiglu", bias, order=order, layout=layout)
    grown = growth.widen(net.params, net.pair, 3, "zero_out", generator())
    m = trees.map(torch.cos, net.params)
    wide = pack(grown, order, layout)
    got = growth.grow_like({"m": pack(m, order, layout), "step": 3}, one.params, wide, heads=one.pair)
    same(got["m"], pack(growth.grow_like(m, net.params, grown), order, layout), 0.0)
    back = growth.prune_like(got, wide, one.pair, [4, 5, 6])
    same(back["m"], pack(m, order, layout), 0.0)
    if layout == "out_in":
        with pytest.raises(ValueError, match=r"gate_up.*heads=growth\.Gated"):
            growth.grow_like(pack(m, order, layout), one.params, wide)
    with pytest.raises(ValueError, match="give the pair that grew"):
        growth.grow_like(
            one.params, one.params, {**wide, "gate_up": growth.widen(wide, one.pair, 1)["gate_up"]}, heads=one.pair
        )


@orders
def test_statistics_matrices_and_optimizers_go_along(order):
    net, one = gated(), packed(order=order)
    rows = normal(1, 2, 4)
    grown, wide = (growth.widen(n.params, n.pair, 2, "zero_out", generator()) for n in (net, one))
    same(wide, pack(grown, order), 0.0)
    stats = growth.grow_like(collect(one, gates=rows), one.params, wide, heads=one.pair)
    same(numbers(stats), numbers(growth.grow_like(collect(net, gates=rows), net.params, grown)))
    own = fisher.fim(one.f, one.params, one.x, fisher.PMatDense)
    whole = growth.grow_like(own, one.params, wide, heads=one.pair)
    v = trees.map(torch.sin, grown)
    plain = growth.grow_like(fisher.fim(net.f, net.params, net.x, fisher.PMatDense), net.params, grown)
    same(whole.mv(pack(v, order)), pack(plain.mv(v), order), 1e-10)
    live = trees.map(lambda t: t.clone().requires_grad_(), one.params)
    optimizer = torch.optim.Adam(trees.leaves(live))
    one.f(live, one.x).sum().backward()
    optimizer.step()
    old = trees.map(lambda t: optimizer.state[t]["exp_avg"].clone(), live)
    swapped = growth.swap_parameters(optimizer, live, wide, heads=one.pair)
    moments = trees.map(lambda t: optimizer.state[t]["exp_avg"], swapped)
    same(moments, growth.grow_like(old, one.params, wide, heads=one.pair), 0.0)
    pruned = growth.swap_parameters(
        optimizer, swapped, growth.prune(swapped, one.pair, [4, 5]), pair=one.pair, units=[4, 5]
    )
    same(trees.map(lambda t: optimizer.state[t]["exp_avg"], pruned), old, 0.0)


@orders
def test_a_step_and_a_fit_are_those_of_two_layers(order):
    net, one = gated(), packed(order=order)
    steps = [
        growth.step(n.f, n.params, n.data, n.pair, 2, state={"m": m}, scale=(0.1, 0.2))
        for n, m in ((net, trees.map(torch.cos, net.params)), (one, pack(trees.map(torch.cos, net.params), order)))
    ]
    same(steps[1].state["m"], pack(steps[0].state["m"], order), 0.0)
    close(steps[1].grown, steps[0].grown, 1e-10)
    fits = [
        growth.fit_and_grow(
            n.f,
            n.params,
            n.data,
            n.pair,
            order=growth.shuffles(14, [2, 2, 2], 7, generator=generator()),
            target=8,
            k=2,
            optimizer=growth.adam(1e-2),
        )
        for n in (net, one)
    ]
    for a, b in zip(fits[0].steps, fits[1].steps):
        close(b.trained, a.trained, 1e-8)
    close(fits[1].state["square"]["down"]["weight"], fits[0].state["square"]["down"]["weight"], 1e-8)


@orders
def test_ensembles_are_loops(order):
    nets = [packed(order=order, seed=s) for s in (0, 1)]
    f, data, pair, rows = nets[0].f, nets[0].data, nets[0].pair, normal(1, 3, 4)

    def grown(params):
        stats = growth.statistics(f, params, data, pair, gates=rows)
        wide = growth.grow(params, pair, growth.optimal_neurons(stats, 2), scale=0.1)
        return wide, growth.grow_like(trees.map(torch.cos, params), params, wide, heads=pair)

    stacked = trees.stack([n.params for n in nets])
    whole = vmap(grown)(stacked)
    for n, member in zip(nets, trees.unstack(whole)):
        same(member, grown(n.params), 1e-8)
    again = growth.grow_like(trees.map(torch.cos, stacked), stacked, whole[0], heads=pair)
    same(again, whole[1], 1e-12)


@orders
def test_pairs_around_a_packed_layer_grow_in_one_call(order):
    """What leads to the packed layer is applied before its halves move, whichever comes first in the list."""
    net = packed(order=order)
    chain = {"a": normal(1, 5, 3), **{n: net.params[n] for n in ("gate_up", "down")}}
    chain["gate_up"] = {"weight": normal(2, 8, 5), "bias": normal(3, 8)}

    def g(p, x):
        h = F.linear(torch.tanh(x @ p["a"].T), p["gate_up"]["weight"], p["gate_up"]["bias"]).chunk(2, -1)
        gate, up = h if order == "gate_up" else h[::-1]
        return F.linear(F.silu(gate) * up, p["down"]["weight"], p["down"]["bias"])

    x, t = normal(4, 11, 3), normal(5, 11, 3)
    pairs = [net.pair, growth.Pair("a", "gate_up")]
    stats = growth.statistics(g, chain, (x, t), pairs, "squared_error")
    new, delta = [growth.optimal_neurons(s, 2) for s in stats], [growth.optimal_delta(s) for s in stats]
    one = growth.grow(chain, pairs, new, delta=delta, scale=0.3)
    two = growth.grow(chain, pairs[::-1], new[::-1], delta=delta[::-1], scale=0.3)
    same(one, two, 1e-14)
    only = growth.grow(chain, pairs, [None, new[1]], delta=[None, delta[1]], scale=0.3)
    kept = growth.prune(growth.prune(one, pairs[0], [4, 5]), pairs[1], [5, 6])
    same(kept["gate_up"], growth.prune(only, pairs[1], [5, 6])["gate_up"], 1e-14)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up, self.down = nn.Linear(3, 8), nn.Linear(4, 2)

    def forward(self, x):
        return self.down(F.glu(self.gate_up(x)))


def test_modules():
    torch.manual_seed(0)
    model = Packed().double()
    optimizer = torch.optim.Adam(model.parameters())
    x, t = normal(1, 9, 3), torch.arange(9) % 2
    F.cross_entropy(model(x), t).backward()
    optimizer.step()
    f, params = fisher.functional(model)
    pair = growth.Gated(None, None, "down", packed="gate_up", order="up_gate")
    step = growth.step(f, params, (x, t), pair, 2)
    old = optimizer.state[model.gate_up.weight]["exp_avg"].clone()
    larger = growth.into_module(model, step.params, optimizer=optimizer, heads=pair)
    assert (larger.gate_up.out_features, larger.down.in_features) == (12, 6)
    close(larger(x), f(step.params, x), 1e-12)
    moment = optimizer.state[larger.gate_up.weight]["exp_avg"]
    close(moment[[0, 1, 2, 3, 6, 7, 8, 9]], old, 0.0)
    assert not moment[[4, 5, 10, 11]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype):
    net = packed(dtype=dtype)
    new = growth.optimal_neurons(collect(net), 2)
    assert growth.grow(net.params, net.pair, new)["gate_up"]["weight"].dtype == dtype
    empty = packed(p=0, dtype=torch.float64)
    first = growth.optimal_neurons(collect(empty), 2, "gradient")
    assert growth.grow(empty.params, empty.pair, first)["gate_up"]["weight"].shape == (4, 3)
    assert abs(along(empty, first) + float(first.gain)) < 1e-4 * float(first.gain)
