"""Pairs whose weights are stored [in, out], all laws over one list: slopes, what is kept, what undoes, what goes along."""

import copy
import dataclasses
import functools
import zlib

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

import fisher
import growth
from growth.checks.buffers import buffers_fixed
from growth.reading.layers import layers_of
from linmaps import trees
from tests.growth.ends import ENDS, G, R, conv
from tests.growth.oracle import close, slope

every = pytest.mark.parametrize("name", ENDS)


@functools.cache
def end(name):
    """The network, drawn the same whichever tests ran before."""
    G.manual_seed(zlib.crc32(name.encode()))
    return ENDS[name]()


@functools.cache
def collected(name):
    n = end(name)
    return growth.statistics(n.f, n.params, n.data, n.pair, "squared_error")


def mean_loss(n, params):
    return 0.5 * (n.f(params, n.x) - n.target).square().sum() / len(n.target)


def along(n, new=None, delta=None, h=1e-3):
    scale = (lambda t: (t, 0.0)) if new is None else (lambda t: (0.0, t))
    return slope(lambda t: mean_loss(n, growth.grow(n.params, n.pair, new, delta=delta, scale=scale(t))), h)


def units(n, k=2, seed=0, **options):
    """Generic units of both sides, whose slope is not that of a closed form."""
    s, g = growth.statistics(n.f, n.params, n.data, n.pair, "squared_error"), torch.Generator().manual_seed(seed)
    return growth.choose_sign(
        n.f, n.params, n.data, n.pair, growth.random(s, k, generator=g, std_out=0.4), "squared_error", **options
    )


@every
def test_slopes(name):
    n, s = end(name), collected(name)
    delta = growth.optimal_delta(s, ridge=1e-6)
    got = along(n, delta=delta)
    assert abs(-got - delta.decrease) <= 1e-6 * delta.decrease + 1e-9
    new = growth.optimal_neurons(s, 2, "gradient", ridge=1e-6)
    chosen = growth.choose_sign(n.f, n.params, n.data, n.pair, new, "squared_error")
    for some, gain in ((chosen, chosen.gain), (units(n), units(n).gain)):
        got = along(n, some)
        assert abs(-got - gain) <= 1e-4 * abs(gain) + 1e-6
    assert chosen.gain > 0
    if n.smooth:
        close(chosen.gain, new.gain, 1e-9)


@every
@pytest.mark.parametrize("taps", ["all", "centre"])
def test_statistics_are_those_of_what_enters_and_leaves(name, taps):
    """M holds the gradient of the mean loss by the weights [out, in] of `after`, and its bias."""
    n = end(name)
    if taps == "centre" and "flattened" in name:
        return
    s = growth.statistics(n.f, n.params, n.data, n.pair, "squared_error", taps=taps)
    _, after = layers_of(n.params, n.pair)
    n = dataclasses.replace(n, f=buffers_fixed(n.f))
    g = torch.func.grad(functools.partial(mean_loss, n))(n.params)
    weight = trees.get(g, after.weight_path)
    weight = weight.transpose(0, 1) if n.pair.layouts[1] == "in_out" else weight
    joined = weight.flatten(1)
    joined = joined if after.bias_path is None else torch.cat([joined, trees.get(g, after.bias_path)[:, None]], 1)
    close(s.M, joined.mT, 1e-10)
    new = growth.optimal_neurons(s, 2)
    chosen = growth.choose_sign(n.f, n.params, n.data, n.pair, new, "squared_error", taps=taps)
    if n.smooth:
        close(chosen.gains, new.gains, 1e-9)
    grown = growth.grow(n.params, n.pair, new, delta=growth.optimal_delta(s), scale=0.0)
    close(n.f(grown, n.x), n.f(n.params, n.x), 1e-10)


@every
@pytest.mark.parametrize("method", ["split", "pair", "zero_out"])
def test_widening_keeps_the_function(name, method):
    n, g = end(name), torch.Generator().manual_seed(0)
    wide = growth.widen(n.params, n.pair, 6, method, g, check=(n.f, n.x))
    close(n.f(wide, n.x), n.f(n.params, n.x), 1e-10)
    p = layers_of(n.params, n.pair)[0].weight.shape[0]
    assert layers_of(wide, n.pair)[0].weight.shape[0] == p + 6
    if method != "zero_out":
        every_unit = {"units": [k % p for k in range(2 * p)]} if method == "split" else {}
        noisy = growth.widen(n.params, n.pair, 2 * p, method, torch.Generator().manual_seed(0), noise=0.1, **every_unit)
        assert n.f(noisy, n.x).sub(n.f(n.params, n.x)).abs().max() > 1e-4
    drawn = growth.widen(n.params, n.pair, 2, "zero_out", draws=R_like(n, 2))
    close(n.f(drawn, n.x), n.f(n.params, n.x), 1e-10)


def R_like(n, k):
    before, after = layers_of(n.params, n.pair)
    size = before.weight[0].numel() + (before.bias is not None) + after.weight.shape[0] * after.taps
    return torch.ones(k, size, dtype=torch.float64)


@every
def test_pruning_undoes_growth(name):
    n = end(name)
    grown = growth.grow(n.params, n.pair, growth.optimal_neurons(collected(name), 2), scale=0.3)
    p = layers_of(n.params, n.pair)[0].weight.shape[0]
    trees.map(lambda a, b: close(a, b, 0.0), growth.prune(grown, n.pair, [p, p + 1]), n.params)
    small, removed = growth.cut(grown, n.pair, [1, p])
    trees.map(lambda a, b: close(a, b, 0.0), growth.restore(small, n.pair, removed), grown)
    scores = growth.unit_scores(grown, n.pair)
    smaller = growth.prune(grown, n.pair, growth.weakest_units(scores, keep=p))
    assert layers_of(smaller, n.pair)[0].weight.shape[0] == p


@every
def test_units_that_others_explain_are_pruned_for_nothing(name):
    n = end(name)
    wide = growth.widen(n.params, n.pair, 1)
    s = growth.statistics(n.f, wide, n.data, n.pair, "squared_error")
    assert growth.unit_scores(wide, n.pair, stats=s).shape == scores_shape(wide, n.pair)
    if isinstance(n.pair.before, growth.Sum) or "after" in name:
        return
    p = layers_of(n.params, n.pair)[0].weight.shape[0]
    pruned = growth.prune(wide, n.pair, [p], stats=s)
    close(n.f(pruned, n.x), n.f(n.params, n.x), 1e-6)


def scores_shape(params, pair):
    return (layers_of(params, pair)[0].weight.shape[0],)


@every
def test_presets(name):
    n, s, g = end(name), collected(name), torch.Generator().manual_seed(0)
    made = {
        "tiny": growth.tiny(s, 2),
        "gradmax": growth.gradmax(s, 2),
        "senn": growth.senn(s, 2),
        "zero_in": growth.zero_in(s, 2),
        "zero_out": growth.zero_out(s, 2),
        "random": growth.random(s, 2, generator=g),
        "initialize": growth.initialize(n.params, n.pair, 2, generator=g),
    }
    made["merged"] = growth.merge_neurons(made["tiny"], made["random"])
    made["paired"] = growth.paired(growth.random(s, 2, generator=g, std_out=1.0))
    kept = ("zero_in", "zero_out", "random", "initialize", "paired")
    for key, new in made.items():
        grown = growth.grow(n.params, n.pair, new, scale=0.5)
        out = n.f(grown, n.x)
        assert out.shape == n.target.shape
        if key in kept:
            close(out, n.f(n.params, n.x), 1e-10)
    change = growth.optimal_delta(s)
    if not isinstance(n.pair.before, growth.Sum):
        for kind in ("after", "units", "match", "fan_in", "gradmax"):
            new, delta = growth.normalize(made["tiny"], change, n.params, n.pair, kind=kind)
            n.f(growth.grow(n.params, n.pair, new, delta=delta), n.x)


@every
def test_state_goes_along(name):
    n, s = end(name), collected(name)
    moments = trees.map(lambda t: t.square() + 1, n.params)
    new = growth.optimal_neurons(s, 2)
    grown = growth.grow(n.params, n.pair, new, scale=0.3)
    carried = growth.grow_like({"m": moments, "stats": s}, n.params, grown)
    assert [t.shape for t in trees.leaves(carried["m"])] == [t.shape for t in trees.leaves(grown)]
    p = layers_of(n.params, n.pair)[0].weight.shape[0]
    back = growth.prune_like(carried, grown, n.pair, [p, p + 1])
    trees.map(lambda a, b: close(a, b, 0.0), back["m"], moments)
    for key in ("S", "M", "S_prev", "M_prev", "P", "E"):
        close(getattr(back["stats"], key), getattr(s, key), 0.0)
    live = {
        trees.path_str(q): torch.nn.Parameter(t.clone()) for q, t in zip(trees.paths(n.params), trees.leaves(n.params))
    }
    optimizer = torch.optim.Adam(live.values())
    sum(t.square().sum() for t in live.values()).backward()
    optimizer.step()
    named = {trees.path_str(q): t for q, t in zip(trees.paths(grown), trees.leaves(grown))}
    leaves = growth.swap_parameters(optimizer, live, named)
    for key, leaf in leaves.items():
        assert optimizer.state[leaf]["exp_avg"].shape == named[key].shape


def test_the_padding_row_stays_zero():
    n = end("table with padding")
    params = {**n.params, "a": {"weight": n.params["a"]["weight"].index_fill(0, torch.tensor([2]), 0.0)}}
    s = growth.statistics(n.f, params, n.data, n.pair, "squared_error")
    g = torch.Generator().manual_seed(0)
    drawn = growth.initialize(params, n.pair, 2, generator=g, fan_out="kaiming_normal")
    assert (drawn.fan_in[:, 2] != 0).all()
    chosen = growth.choose_sign(n.f, params, n.data, n.pair, drawn, "squared_error")
    made = (growth.tiny(s, 3), growth.random(s, 2, generator=g), growth.gradmax(s, 5, generator=g), chosen)
    for new in made:
        assert not growth.grow(params, n.pair, new)["a"]["weight"][2].any()
    assert not growth.step(n.f, params, n.data, n.pair, 2, loss="squared_error").params["a"]["weight"][2].any()


def test_large_tables_are_refused_before_they_are_built():
    p = {"a.weight": torch.zeros(10_000, 2), "b.weight": torch.zeros(3, 2)}
    f = lambda p, x: F.linear(F.embedding(x, p["a.weight"]), p["b.weight"])
    data, pair = (torch.arange(4), torch.zeros(4, 3)), growth.Pair("a", "b", layout=("in_out", "out_in"))
    with pytest.raises(ValueError, match=r"a.weight: a lookup of .* 10000 rows.*at most 8192.*growth.widen"):
        growth.statistics(f, p, data, pair, "squared_error")
    assert growth.widen(p, pair, 2)["a.weight"].shape == (10_000, 4)


@every
def test_steps(name):
    n = end(name)
    if isinstance(n.pair.before, growth.Sum):
        return
    made = growth.step(n.f, n.params, n.data, n.pair, k=2, loss="squared_error")
    assert mean_loss(n, made.params) < mean_loss(n, n.params)
    order = growth.shuffles(len(n.target), [1, 1], 6, generator=torch.Generator().manual_seed(0))
    p = layers_of(n.params, n.pair)[0].weight.shape[0]
    fit = growth.fit_and_grow(n.f, n.params, n.data, n.pair, order=order, target=p + 2, k=2, loss="squared_error")
    assert [s.width for s in fit.steps][-1] == p + 2


@every
def test_rescaling_keeps_a_relu_network(name):
    n = end(name)
    if isinstance(n.pair.before, growth.Sum) or n.pair.depthwise is not None:
        return
    check = None if n.smooth else (n.f, n.x)
    growth.rescale(n.params, n.pair, 2, preserve=True, check=check)
    other = growth.rescale(n.params, n.pair, 2, kind="constraint_new")
    assert [t.shape for t in trees.leaves(other)] == [t.shape for t in trees.leaves(n.params)]


@every
def test_ensembles_are_loops(name):
    n = end(name)
    members = [n.params, trees.map(lambda t: 1.1 * t, n.params)]

    def step(params):
        s = growth.statistics(n.f, params, n.data, n.pair, "squared_error")
        new = growth.optimal_neurons(s, 2, ridge=1e-3)
        grown = growth.grow(params, n.pair, new, delta=growth.optimal_delta(s, ridge=1e-3), scale=0.1)
        return growth.widen(grown, n.pair, 1), new.gains, n.f(grown, n.x)

    stacked = vmap(step)(trees.stack(members))
    for one, member in zip(members, trees.unstack(stacked)):
        want = step(one)
        close(member[1], want[1], 1e-8)
        close(member[2], want[2], 1e-8)
        trees.map(lambda a, b: None if a.shape == b.shape else pytest.fail("shape"), member[0], want[0])


@every
def test_precision_and_arguments_are_kept(name):
    n = end(name)
    cast = lambda t, to: t.to(to) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
    for dtype in (torch.float32, torch.bfloat16):
        params, data = trees.map(functools.partial(cast, to=dtype), (n.params, n.data))
        before = trees.map(torch.clone, (params, data))
        s = growth.statistics(n.f, params, data, n.pair, "squared_error")
        grown = growth.grow(params, n.pair, growth.optimal_neurons(s, 2), delta=growth.optimal_delta(s), scale=0.1)
        assert {t.dtype for t in trees.leaves(grown)} == {dtype}
        assert all(t.is_contiguous() for t in trees.leaves(grown))
        trees.map(lambda a, b: close(a.double(), b.double(), 0.0), before, (params, data))


def test_an_x_at_W_network_is_its_mirror():
    """What is said of units is [out, in]: the same records as of the transposed leaves."""
    n = end("x @ W")
    turned = trees.map(lambda t: t.mT if t.ndim == 2 else t, n.params)
    f = lambda p, x: n.f(trees.map(lambda t: t.mT if t.ndim == 2 else t, p), x)
    pair = growth.Pair("a", "b")
    mine, its = collected("x @ W"), growth.statistics(f, turned, n.data, pair, "squared_error")
    for key in ("S", "M", "S_prev", "M_prev", "P", "E"):
        close(getattr(mine, key), getattr(its, key), 1e-14)
    new = growth.optimal_neurons(mine, 2)
    a = growth.grow(n.params, n.pair, new, delta=growth.optimal_delta(mine))
    b = growth.grow(turned, pair, growth.optimal_neurons(its, 2), delta=growth.optimal_delta(its))
    trees.map(lambda s, t: close(s, t.mT if t.ndim == 2 else t, 1e-12), a, b)


def wrong(name, **layouts):
    """The network's pair with another layout than it is used in."""
    n = end(name)
    pair = growth.Pair(n.pair.before, n.pair.after, n.pair.activation, **layouts)
    growth.statistics(n.f, n.params, n.data, pair, "squared_error")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wrong("x @ W"), r"a.bias: got shape \(4,\), expected \(3,\).*layout='in_out' fits"),
        (lambda: wrong("x @ W without biases"), r"2 inputs; name.*their sizes fit layout='in_out'"),
        (lambda: wrong("x @ W square"), r"matmul of a.weight as \[in, out\].*give layout='in_out'"),
        (
            lambda: wrong("x @ W square", layout=("in_out", "out_in")),
            r"layout=\('in_out', 'out_in'\).*give layout='in_out'",
        ),
        (lambda: wrong("table"), r"a.weight \(7, 4\) has 7.*fit layout=\('in_out', 'out_in'\)"),
        (lambda: wrong("transposed"), r"a.bias.*layout='in_out' fits"),
        (lambda: wrong("1 x 1", layout="in_out"), "stored"),
        (lambda: growth.Pair("a", "b", layout="io"), r"layout: got 'io', expected one of \['out_in', 'in_out'\]"),
        (lambda: growth.Pair("a", "b", layout=("in_out",)), "a tuple of two"),
        (lambda: growth.widen(end("x @ W without biases").params, growth.Pair("a", "b"), 1), "fit layout='in_out'"),
        (lambda: growth.prune(end("table").params, growth.Pair("a", "b"), [0]), r"fit layout=\('in_out', 'out_in'\)"),
    ],
)
def test_another_layout_is_refused_with_the_one_that_fits(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def grouped(where):
    options = {"a": {}, "b": {}} | {where: {"groups": 2}}
    params = {"a": {"weight": R(4, 4 // (2 if where == "a" else 1), 1, 1)}}
    params["b"] = {"weight": R(4, 4 // (2 if where == "b" else 1), 1, 1)}
    f = lambda p, x: conv(**options["b"])(p["b"], torch.tanh(conv(**options["a"])(p["a"], x)))
    return f, params, (R(5, 4, 3, 3), R(5, 4, 3, 3))


def test_groups_are_refused():
    f, params, data = grouped("a")
    with pytest.raises(ValueError, match=r"a.weight: used by conv2d in groups, expected .* without groups"):
        growth.statistics(f, params, data, growth.Pair("a", "b"), "squared_error")
    f, params, data = grouped("b")
    with pytest.raises(ValueError, match=r"has 4 outputs, b.weight .* takes 2 inputs"):
        growth.statistics(f, params, data, growth.Pair("a", "b"), "squared_error")


MODULES = {
    "decoder": (
        nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3, 2, 1, 1)),
        growth.Pair("0", "2", layout="in_out"),
        torch.randn(6, 3, 3, 3),
    ),
    "autoencoder": (
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2, 2)),
        growth.Pair("0", "2", layout=("out_in", "in_out")),
        torch.randn(6, 3, 4, 4),
    ),
    "words": (
        nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Tanh(), nn.Linear(4, 9)),
        growth.Pair("0", "2", layout=("in_out", "out_in")),
        torch.randint(9, (6, 5)),
    ),
    "bags": (
        nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3)),
        growth.Pair("0", "1", layout=("in_out", "out_in")),
        torch.randint(9, (16, 5)),
    ),
}


@pytest.mark.parametrize("kind", MODULES)
def test_modules_go_on_training(kind):
    model, pair, x = MODULES[kind]
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    target = torch.randn_like(model(x))
    model(x).sub(target).square().sum().backward()
    optimizer.step()
    f, params = fisher.functional(model)
    made = growth.step(f, params, (x, target), pair, k=2, loss="squared_error")
    grown = growth.into_module(model, made.params, optimizer=optimizer)
    close(grown(x), f(made.params, x), 1e-6)
    assert "6" in str(grown)
    optimizer.zero_grad()
    grown(x).sub(target).square().sum().backward()
    optimizer.step()
    small = growth.into_module(grown, growth.prune(fisher.functional(grown)[1], pair, [0, 5]))
    assert small(x).shape == target.shape
