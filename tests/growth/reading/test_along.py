"""Leaves of the activation with one number per unit: they grow along without being asked, or are refused by their name."""

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional as F

import fisher
import growth
from linmaps import trees
from tests.laws import close

G = torch.Generator().manual_seed(0)
R = lambda *s: torch.randn(*s, generator=G, dtype=torch.float64)
X, T, OFFSETS = R(20, 3), torch.arange(20) % 2, R(5, 3)
P = {"a.weight": R(4, 3), "a.bias": 0.3 * R(4), "act.weight": torch.tensor([-0.4, 0.1, 0.6, 0.9]).double()}
P |= {"b.weight": R(2, 4), "b.bias": R(2)}
PAIR, NAMED = growth.Pair("a", "b"), growth.Pair("a", "b", along=("act.weight",))
BEHIND = growth.Pair("a", "b", norm="n")
NORM = {"n.weight": R(4) + 2, "n.bias": R(4), "n.running_mean": R(4), "n.running_var": R(4) ** 2 + 0.1}


def dense(between):
    return lambda p, x: F.linear(between(p, F.linear(x, p["a.weight"], p["a.bias"])), p["b.weight"], p["b.bias"])


def normed(p, z):
    return F.batch_norm(z, p["n.running_mean"], p["n.running_var"], p["n.weight"], p["n.bias"])


f = dense(lambda p, z: F.prelu(z, p["act.weight"]))
ONE = P | {"act.weight": torch.tensor([0.6]).double()}
NETS = {  # f, params, the pair, slopes of a new unit
    "a slope for each unit": (f, P, PAIR, (1.0, 0.25)),
    "named": (f, P, NAMED, (1.0, 0.25)),
    "named with its layer": (f, P, growth.Pair("a", "b", along=("act",)), (1.0, 0.25)),
    "activation named too": (f, P, growth.Pair("a", "b", lambda z: F.leaky_relu(z, 0.25)), (1.0, 0.25)),
    "one slope for all": (f, ONE, PAIR, (1.0, 0.6)),
    "then tanh": (dense(lambda p, z: 2 * F.prelu(z, p["act.weight"]).tanh()), P, PAIR, (2.0, 0.5)),
    "tanh, then": (dense(lambda p, z: F.prelu(z.tanh(), p["act.weight"])), P, PAIR, (1.0, 0.25)),
    "twice": (dense(lambda p, z: F.prelu(F.prelu(z, p["act.weight"]) - 0.0, p["more"])), P | {"more": R(4)}, PAIR, (1.0, 0.0625)),
    "behind a norm": (dense(lambda p, z: F.prelu(normed(p, z), p["act.weight"])), P | NORM, BEHIND, (1.0, 0.25)),
    "before a norm": (dense(lambda p, z: normed(p, F.prelu(z, p["act.weight"]))), P | NORM, BEHIND, (1.0, 0.25)),
    "written by hand": (
        dense(lambda p, z: torch.where(z > 0, z, p["act.weight"] * z)), P,
        growth.Pair("a", "b", lambda z: F.leaky_relu(z, 0.25), along=("act.weight",)), (1.0, 0.25),
    ),
    "swish of its own width": (
        dense(lambda p, z: z * torch.sigmoid(p["act.weight"] * z)), P,
        growth.Pair("a", "b", lambda z: z * torch.sigmoid(0.25 * z), along=("act.weight",)), (0.5, 0.5),
    ),
}  # fmt: skip
GROWS = [name for name in NETS if name != "one slope for all"]


def loss(f, params):
    return F.cross_entropy(f(params, X), T)


def slope(f, params, pair, new, delta, t):
    """Of the mean loss at amplitude 0, by Richardson's rule."""
    at = lambda t: loss(f, growth.grow(params, pair, new, delta=delta, scale=t))
    return (4 * at(t) - at(2 * t) - 3 * loss(f, params)) / (2 * t)


@pytest.mark.parametrize("name", NETS)
def test_slopes_by_finite_differences(name):
    f, params, pair, sides = NETS[name]
    stats = growth.statistics(f, params, (X, T), pair)
    close(torch.stack([stats.slope_plus, stats.slope_minus]), torch.tensor(sides).double(), 1e-12, "at 0")
    delta = growth.optimal_delta(stats)
    close(-slope(f, params, pair, None, delta, 1e-5), delta.decrease, 1e-6 * float(delta.decrease), "decrease")
    new = growth.choose_sign(f, params, (X, T), pair, growth.optimal_neurons(stats, 2, "gradient"))
    got = -slope(f, params, pair, new, None, 1e-7)
    close(got, new.gain, 1e-4 * float(new.gain) + 1e-8, "gain")
    close(loss(f, growth.grow(params, pair, new, scale=0.0)), loss(f, params), 1e-10, "at amplitude 0")


@pytest.mark.parametrize("name", NETS)
def test_each_way_to_grow_knows_the_leaf(name):
    f, params, pair, _ = NETS[name]
    data, k = (X, T), 3
    stats = growth.statistics(f, params, data, pair)
    new = growth.optimal_neurons(stats, k, "gradient")
    leaf = lambda p: p["act.weight"]
    want = leaf(params) if name not in GROWS else torch.cat([leaf(params), torch.full((k,), 0.25).double()])
    made = {
        "optimal_neurons": new,
        "choose_sign": growth.choose_sign(f, params, data, pair, new),
        "truncate": growth.truncate(growth.optimal_neurons(stats, k + 1, "gradient"), k),
        "keep": growth.keep(new, 0.0),
        "compact": growth.compact(growth.random(stats, k, std_out=1.0)),
        "merge": growth.merge_neurons(growth.truncate(new, 1), growth.tiny(stats, 2)),
        "scale": growth.scale_neurons(new, fan_in=2.0),
        "normalize": growth.normalize(new, None, params, pair)[0],
        "random": growth.random(stats, k, generator=torch.Generator().manual_seed(0)),
        "zero_out": growth.zero_out(stats, k),
        "zero_in": growth.zero_in(stats, k),
        "gradmax": growth.gradmax(stats, k),
    }
    for way, units in made.items():
        grown = growth.grow(params, pair, units, scale=0.1)
        close(leaf(grown), want, 0.0, way)
        close(growth.apply_extended(f, params, pair, units, None, 0.1, X), f(grown, X), 0.0, way)
    stepped = growth.step(f, params, data, pair, k, state=trees.map(torch.ones_like, params))
    close(leaf(stepped.params), want, 0.0, "step")
    moments = torch.cat([torch.ones_like(leaf(params)), torch.zeros(len(want) - len(leaf(params))).double()])
    close(leaf(stepped.state), moments, 0.0, "moments")
    assert stepped.grown < stepped.before


@pytest.mark.parametrize("name", GROWS)
def test_growth_and_surgery_undo_each_other(name):
    f, params, pair, _ = NETS[name]
    stats = growth.statistics(f, params, (X, T), pair)
    own = dataclasses.replace(pair, along=stats.pair.along)
    assert own.along
    close(growth.prune(growth.grow(params, pair, growth.random(stats, 2)), own, [4, 5]), params, 0.0, "prune")
    smaller, removed = growth.cut(params, own, [2, 0])
    close(growth.restore(smaller, pair, removed), params, 0.0, "restore, of the pair alone")
    units = torch.tensor([2, 0])
    without = f(trees.replace(params, ("b.weight",), params["b.weight"].index_fill(1, units, 0.0)), X)
    close(f(smaller, X), without, 1e-12, "without the units")
    refit = growth.prune(params, pair, units, stats=stats, ridge=1e-9)
    assert (f(refit, X) - f(params, X)).norm() <= (without - f(params, X)).norm()
    close(growth.prune_like(params, params, own, units), smaller, 0.0, "state")
    scores = growth.unit_scores(params, pair, stats=stats)
    keep = lambda j: f(
        trees.replace(params, ("b.weight",), params["b.weight"].index_fill(1, torch.tensor([j]), 0.0)), X
    )
    lost = torch.stack([(keep(j) - f(params, X)).square().sum(1).mean().sqrt() for j in range(4)])
    close(scores, lost, 1e-10, "unit scores")


@pytest.mark.parametrize("method", ["split", "pair", "zero_out"])
@pytest.mark.parametrize("name", GROWS)
def test_widen_keeps_the_function(name, method):
    f, params, pair, _ = NETS[name]
    own = dataclasses.replace(pair, along=growth.statistics(f, params, (X, T), pair).pair.along)
    draw = lambda: torch.Generator().manual_seed(1)
    wide = growth.widen(params, own, 4, method, draw())
    close(f(wide, X), f(params, X), 1e-12, "named")
    if method != "split":
        close(wide["act.weight"][4:], torch.full((4,), 0.25).double(), 0.0, "new slopes")
    close(growth.widen(params, pair, 4, method, draw(), check=(f, X)), wide, 0.0, "read from f")


def test_one_number_is_for_all_units_even_of_one():
    one = {k: v[:1] if k != "b.weight" and v.shape[0] == 4 else v for k, v in P.items()} | {
        "b.weight": P["b.weight"][:, :1]
    }
    new = growth.optimal_neurons(growth.statistics(f, one, (X, T), PAIR), 1, "gradient")
    assert new.pair.along == ()
    close(growth.grow(one, PAIR, new)["act.weight"], one["act.weight"], 0.0, "shared")
    named = growth.choose_sign(f, one, (X, T), NAMED, new)  # who names it says that it is of the unit
    close(growth.grow(one, NAMED, named)["act.weight"], torch.tensor([-0.4, 0.25]).double(), 0.0, "named")
    with pytest.raises(ValueError, match=r"act.weight: got shape \(1,\), expected \(4,\).*one number for all units"):
        growth.statistics(f, ONE, (X, T), NAMED)


def test_from_no_unit_at_all():
    none = {k: v[:0] if k != "b.weight" and v.shape[0] == 4 else v for k, v in P.items()} | {
        "b.weight": P["b.weight"][:, :0]
    }
    new = growth.optimal_neurons(growth.statistics(f, none, (X, T), PAIR), 2, "gradient")
    close(growth.grow(none, PAIR, new)["act.weight"], torch.full((2,), 0.25).double(), 0.0, "from width 0")


def test_a_module_grows_with_its_optimizer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(X), T).backward()
        optimizer.step()
    f, params = fisher.functional(model)
    pair = growth.Pair("0", "2")
    made = growth.step(f, params, (X, T), pair, 2)
    module = growth.into_module(model, made.params, optimizer=optimizer)
    assert module[1].num_parameters == 6
    close(module(X).detach(), f(made.params, X), 1e-12, "module")
    close(optimizer.state[module[1].weight]["exp_avg"][4:], torch.zeros(2).double(), 0.0, "moments")
    fit = growth.fit_and_grow(
        f, params, (X, T), pair, order=growth.shuffles(20, [1, 1], 5, generator=torch.Generator()), target=6, k=2
    )
    assert fit.params["1.weight"].shape == (6,)


def test_neighbours_and_sums():
    """Two pairs in one pass, each with slopes of its own; a sum of two layers, where the leaf must be named."""
    deep = P | {"c.weight": R(2, 2), "slopes": torch.tensor([0.3, -0.2]).double()}
    g = lambda p, x: F.prelu(f(p, x), p["slopes"]) @ p["c.weight"].T
    pairs = [growth.Pair("a", "b"), growth.Pair("b", "c")]
    stats = growth.statistics(g, deep, (X, T), pairs)
    assert [s.pair.along for s in stats] == [("act.weight",), ("slopes",)]
    new = [growth.random(s, 2, std_out=1.0) for s in stats]
    grown = growth.grow(deep, pairs, new, scale=0.0)
    close(g(grown, X), g(deep, X), 1e-10, "both")
    assert (len(grown["act.weight"]), len(grown["slopes"])) == (6, 4)
    two = P | {"e.weight": R(4, 3)}
    h = lambda p, x: F.linear(
        F.prelu(F.linear(x, p["a.weight"], p["a.bias"]) + x @ p["e.weight"].T, p["act.weight"]),
        p["b.weight"],
        p["b.bias"],
    )
    pair = growth.Pair(growth.Sum("a", "e"), "b", lambda z: F.leaky_relu(z, 0.25), along=("act.weight",))
    new = growth.random(growth.statistics(h, two, (X, T), pair), 2, std_out=1.0)
    close(h(growth.grow(two, pair, new, scale=0.0), X), h(two, X), 1e-10, "sum")
    with pytest.raises(ValueError, match=r"act.weight enters what stands between.*along=\('act.weight',\)"):
        growth.statistics(h, two, (X, T), dataclasses.replace(pair, along=()))


def test_ensembles_and_derivatives():
    both = trees.stack([P, trees.map(lambda t: 1.1 * t, P)])
    for params, leaf in (
        (both, "a slope for each unit"),
        (both | {"act.weight": both["act.weight"][:, :1]}, "one for all"),
    ):

        def run(p):
            s = growth.statistics(f, p, (X, T), PAIR)
            new = growth.choose_sign(f, p, (X, T), PAIR, growth.optimal_neurons(s, 1, "gradient"))
            return new.gain, s.slope_minus, growth.grow(p, PAIR, new)

        stacked = vmap(run)(params)
        close(stacked, trees.stack([run(p) for p in trees.unstack(params)]), 1e-10, leaf)
    derivative = grad(lambda w: growth.statistics(f, ONE | {"act.weight": w}, (X, T), PAIR).slope_minus.sum())
    close(derivative(ONE["act.weight"]), torch.ones(1).double(), 1e-12, "the shared slope")
    again = growth.statistics(f, P, [(X[:7], T[:7]), (X[7:], T[7:])], PAIR)
    close(again, growth.statistics(f, P, (X, T), NAMED), 1e-12, "batches; named or read, the record is the same")
    assert growth.statistics(f, P, (X[:9], T[:9]), NAMED) + again is not None


CLOSED = P["act.weight"].clone()
REFUSED = {  # f, params, pair, words
    "one slope for each position": (
        lambda p, x: dense(lambda p, z: F.prelu(z, p["t"]))(p, x[:, None] + OFFSETS).mean(1),
        P | {"t": R(5)}, PAIR, "5 slopes are of positions",
    ),
    "slopes of two uses": (
        dense(lambda p, z: F.prelu(F.prelu(z, p["act.weight"]), p["act.weight"])), P, PAIR, "slopes have another use"
    ),
    "slopes closed over": (dense(lambda p, z: F.prelu(z, CLOSED)), P, PAIR, "prelu has slopes that are not read"),
    "layer scale": (dense(lambda p, z: z.tanh() * p["act.weight"]), P, PAIR, "act.weight enters what stands between"),
    "layer scale before": (dense(lambda p, z: (z * p["act.weight"]).tanh()), P, PAIR, "act.weight enters"),
    "layer scale named away": (
        dense(lambda p, z: z.tanh() * p["act.weight"]), P | {"act.weight": torch.ones(4).double()},
        growth.Pair("a", "b", torch.tanh), "act.weight enters",
    ),
    "where": (dense(lambda p, z: torch.where(z > 0, z, p["act.weight"] * z)), P, PAIR, "act.weight enters"),
    "swish": (dense(lambda p, z: z * torch.sigmoid(p["act.weight"] * z)), P, PAIR, "act.weight enters"),
    "a view of a leaf": (dense(lambda p, z: z.tanh() * p["act.weight"][None]), P, PAIR, "act.weight enters"),
    "not there": (f, P, growth.Pair("a", "b", along=("nix",)), "nix: no such leaf"),
    "a matrix": (f, P, growth.Pair("a", "b", along=("a.weight",)), "a.weight: got shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_by_which_name(name):
    f, params, pair, words = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        growth.statistics(f, params, (X, T), pair)


def test_records_without_the_leaf_are_completed_or_refused():
    new = torch.full((2,), 0.25).double()
    bare = growth.initialize(P, PAIR, 2, generator=torch.Generator().manual_seed(0))
    close(growth.grow(P, PAIR, growth.choose_sign(f, P, (X, T), PAIR, bare))["act.weight"][4:], new, 0.0, "completed")
    close(growth.grow(P, NAMED, bare)["act.weight"][4:], new, 0.0, "named")
    with pytest.raises(ValueError, match=r"act\.weight enters what stands between"):
        growth.apply_extended(f, P, PAIR, bare, None, 0.1, X)
    with pytest.raises(ValueError, match=r"act\.weight enters what stands between"):
        growth.line_search(f, P, (X, T), PAIR, bare, None)
    hand = dense(lambda p, z: torch.where(z > 0, z, p["act.weight"] * z))
    with pytest.raises(ValueError, match=r"act\.weight enters what stands between"):
        growth.widen(P, PAIR, 1, check=(hand, X))


@pytest.mark.parametrize("activation", [None, lambda z: F.leaky_relu(z, 0.25)])
def test_a_gate_with_slopes_of_its_own_is_refused(activation):
    params = {"g": R(4, 3), "u": R(4, 3), "d": R(2, 4), "act": torch.full((4,), 0.25).double()}
    gated = lambda p, x: F.linear(F.prelu(x @ p["g"].T, p["act"]) * (x @ p["u"].T), p["d"])
    with pytest.raises(ValueError, match=r"act enters what stands between.*of a gated pair none grows along"):
        growth.statistics(gated, params, (X, T), growth.Gated("g", "u", "d", activation))
    one = params | {"act": torch.tensor([0.25]).double()}
    growth.statistics(gated, one, (X, T), growth.Gated("g", "u", "d", lambda z: F.leaky_relu(z, 0.25)))


def test_along_is_a_tuple_of_paths():
    assert growth.Pair("a", "b", along=(("act", "weight"), "act.weight")) == NAMED
    assert eval(repr(NAMED), {"Pair": growth.Pair}) == NAMED
    assert str(NAMED) == "Pair('a', 'b', along=('act.weight',))"
    for along in ("act", 3, (3,)):
        with pytest.raises(TypeError, match="along"):
            growth.Pair("a", "b", along=along)
