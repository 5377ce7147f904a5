"""Normalization: the deviations of the table, slopes that stay true, masked units that do not count, all fall-backs."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

import growth
from growth.strategies import from_rows, rows
from linmaps import trees
from tests.growth.oracle import close

PAIR = growth.Pair("hidden", "output")
KINDS = ["after", "units", "match", "fan_in", "gradmax"]
BIASES = [(True, True), (False, True), (True, False), (False, False)]


def params(seed=0, r=5, p=3, q=4, bias=(True, True)):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    layers = {"hidden": {"weight": 0.7 * normal(p, r)}, "output": {"weight": 2.0 * normal(q, p)}}
    for layer, has in zip(layers.values(), bias):
        layer |= {"bias": normal(len(layer["weight"]))} if has else {}
    return layers


def step(seed=0, k=2, bias=(True, True), target="residual"):
    stats = from_rows(*rows(seed, 30, 5, 3, 4), bias)
    return stats, growth.optimal_neurons(stats, k, target), growth.optimal_delta(stats)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("std", [None, 0.3, torch.tensor(0.3, dtype=torch.float64)])
@pytest.mark.parametrize("kind", KINDS[:4])
def test_deviations_of_the_table(kind, std, bias):
    p, (stats, new, delta) = params(bias=bias), step(bias=bias)
    units, change = growth.normalize(new, delta, p, PAIR, kind=kind, std=std)
    W, U = p["output"]["weight"].std(), p["hidden"]["weight"].std()
    t = W if std is None or kind == "match" else std
    c = change.decrease / delta.decrease
    product = units.gain / new.gain
    want = {
        "after": (t, t, None, c == c),
        "units": (None, t, t, None),
        "match": (W, W, U, None),
        "fan_in": (t, None, None, None),
    }[kind]
    for got, value in zip((change.weight, units.fan_out, units.fan_in), want):
        if value is not None:
            close(got.std(), torch.as_tensor(value, dtype=torch.float64), 1e-12)
    if kind in ("after", "units"):
        close(product, c, 1e-12)
    if kind == "fan_in":
        assert torch.equal(units.fan_out, new.fan_out)
        close(units.fan_in, new.fan_in * t / new.fan_out.std(), 1e-12)
    close(units.eigenvalues, new.eigenvalues * product.sqrt(), 1e-12)
    close(change.weight, c * delta.weight, 1e-12)
    if bias[1]:
        close(change.bias, c * delta.bias, 1e-12)
    if bias[0]:
        close(units.fan_in_bias / new.fan_in_bias, (units.fan_in / new.fan_in)[:, 0], 1e-12)
    # the numbers that say what the step does are those of the scaled step
    close(change.decrease, (stats.M * change.joined.T).sum(), 1e-12)
    close(units.gains, -((units.joined @ stats.M_prev) * units.fan_out.T).sum(1), 1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.0, torch.tensor(2.0, dtype=torch.float64)])
def test_gradmax_columns(scale):
    p, (stats, _, delta) = params(), step()
    new = growth.gradmax(stats, 3)
    new = growth.keep(
        growth.scale_neurons(new, fan_out=torch.tensor([1.0, 3.0, 0.2]).double()), torch.tensor([True, True, False])
    )
    units, same = growth.normalize(new, delta, p, PAIR, kind="gradmax", gradmax_scale=scale)
    assert same is delta
    size = float(scale) * p["output"]["weight"].norm(dim=0).mean()
    norms = units.fan_out.norm(dim=0)
    close(norms, size * torch.tensor([1.0, 1.0, 0.0]).double(), 1e-12)
    assert torch.equal(units.fan_in, new.fan_in)
    ratio = size / new.fan_out.norm(dim=0)[:2]
    close(units.gains[:2], ratio * new.gains[:2], 1e-12)
    close(units.gains, -((units.joined @ stats.M_prev) * units.fan_out.T).sum(1), 1e-12)
    close(units.gain, units.gains.sum(), 1e-12)
    fresh = growth.gradmax(stats, 3)
    units, _ = growth.normalize(fresh, None, p, PAIR, kind="gradmax", gradmax_scale=scale)
    close(units.eigenvalues, (stats.M_prev @ units.fan_out).norm(dim=0), 1e-12)  # gradient norms, of these columns


@pytest.mark.parametrize("empty", [False, True])
def test_gradmax_without_columns_to_measure(empty):
    p, (_, new, _) = params(p=0 if empty else 3), step()
    p["output"]["weight"] = 0 * p["output"]["weight"]
    units, _ = growth.normalize(new, None, p, PAIR, kind="gradmax")
    assert torch.equal(units.fan_out, new.fan_out)
    assert torch.equal(units.eigenvalues, new.eigenvalues)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_units_do_not_count(kind):
    _, new, delta = step(k=7)
    assert (new.eigenvalues == 0).any()
    a, b = (growth.normalize(n, delta, params(), PAIR, kind=kind) for n in (new, growth.compact(new)))
    for name in ("fan_in", "fan_in_bias", "fan_out", "eigenvalues", "gains"):
        close(getattr(growth.compact(a[0]), name), getattr(b[0], name), 1e-12)
    close(a[1].weight, b[1].weight, 1e-12)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_missing_parts_have_factor_one(kind):
    p, (_, new, delta) = params(), step()
    both = growth.normalize(new, delta, p, PAIR, kind=kind)
    none, change = growth.normalize(None, delta, p, PAIR, kind=kind)
    assert none is None
    close(change.weight, delta.weight if kind == "units" else both[1].weight, 1e-12)
    units, none = growth.normalize(new, None, p, PAIR, kind=kind)
    assert none is None
    close(units.fan_out, both[0].fan_out, 1e-12)
    if kind == "after":
        close(units.gain, new.gain, 1e-12)
    else:
        close(units.fan_in, both[0].fan_in, 1e-12)


def test_fall_backs():
    """A deviation that is zero or undefined is (inputs)^-1/2; t of a layer without any is k^-1/2."""
    p, (_, new, delta) = params(), step(k=2)
    p["output"]["weight"] = torch.ones_like(p["output"]["weight"])
    units, change = growth.normalize(new, delta, p, PAIR)
    close(change.weight.std(), torch.tensor(2.0**-0.5).double(), 1e-7)
    p = params()
    flat = dataclasses.replace(delta, weight=torch.ones_like(delta.weight))
    _, change = growth.normalize(new, flat, p, PAIR, std=0.5)
    close(change.weight, 0.5 * 3**0.5 * flat.weight, 1e-12)
    even = dataclasses.replace(new, fan_out=torch.ones_like(new.fan_out), fan_in=torch.ones_like(new.fan_in))
    units, _ = growth.normalize(even, None, p, PAIR, kind="units", std=0.5)
    close(units.fan_out, 0.5 * 2**0.5 * even.fan_out, 1e-12)
    close(units.fan_in, 0.5 * 5**0.5 * even.fan_in, 1e-12)
    units, change = growth.normalize(growth.truncate(new, 0), delta, params(p=0, r=5), PAIR, kind="match")
    assert units.size == 0
    assert all(t.isfinite().all() for t in trees.leaves(change))


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.sampled_from(KINDS))
def test_answer_does_not_depend_on_the_scale_of_the_loss(seed, c, kind):
    b2, b1, g = rows(seed, 30, 5, 3, 4)
    out = []
    for stats in (from_rows(b2, b1, g), from_rows(b2, b1, c * g)):
        new, delta = growth.optimal_neurons(stats, 2), growth.optimal_delta(stats)
        new, delta = growth.normalize(new, delta, params(), PAIR, kind=kind)
        out.append((new.fan_out @ new.joined, delta.weight))
    if kind in ("after", "units", "match"):
        move = 1.0 if kind != "after" else out[1][0].norm() / out[0][0].norm()
        close(out[1][0], move * out[0][0], 1e-7)
    if kind not in ("gradmax", "units"):
        close(out[1][1], out[0][1], 1e-7)


def test_convolutions():
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    before = normal(3, 2, 3, 3)
    for after, columns in ((normal(4, 3, 3, 3), 1), (normal(4, 12), 4)):
        p = {"hidden.weight": before, "output.weight": after}
        new = growth.initialize(p, PAIR, 2, fan_out="copy_normal", generator=generator)
        units, _ = growth.normalize(new, None, p, PAIR, kind="gradmax")
        norms = torch.stack([after[:, i * columns : (i + 1) * columns].norm() for i in range(3)])
        close(units.fan_out.norm(dim=0), norms.mean().expand(2), 1e-12)
        units, _ = growth.normalize(new, None, p, PAIR, kind="match")
        grown = growth.grow(p, PAIR, units)
        close(grown["output.weight"][:, 3 * columns :].std(), after.std(), 1e-12)
        close(grown["hidden.weight"][3:].std(), before.std(), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_ensemble_equals_loop(kind):
    members = [(from_rows(*rows(i, 15, 5, 3, 4, deficient=i == 1)), params(i)) for i in range(3)]
    members[2] = (members[2][0], trees.map(lambda t: 0 * t, members[2][1]))

    def fn(stats, p):
        new, delta = growth.optimal_neurons(stats, 5), growth.optimal_delta(stats)
        new, delta = growth.normalize(new, delta, p, PAIR, kind=kind)
        return {"move": new.fan_out @ new.joined, "gains": new.gains, "delta": delta}

    together = trees.unstack(vmap(fn)(*(trees.stack(list(c)) for c in zip(*members))))
    for got, member in zip(together, members):
        for a, b in zip(trees.leaves(got), trees.leaves(fn(*member))):
            close(a, b, 1e-10)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "weird"}, ValueError, "kind: got 'weird'"),
        ({"std": 0.0}, ValueError, "std: got 0.0"),
        ({"std": True}, TypeError, "std: got bool"),
        ({"std": torch.ones(2)}, ValueError, "std: got a tensor"),
        ({"kind": "gradmax", "gradmax_scale": -1.0}, ValueError, "gradmax_scale: got -1.0"),
        ({"kind": "gradmax", "new": None}, ValueError, "new: got None"),
        ({"new": 3}, TypeError, "new: got int"),
        ({"delta": 3}, TypeError, "delta: got int"),
    ],
)
def test_bad_arguments(options, error, message):
    _, new, delta = step()
    given_new, given_delta = options.pop("new", new), options.pop("delta", delta)
    with pytest.raises(error, match=message):
        growth.normalize(given_new, given_delta, params(), PAIR, **options)
    joint = growth.optimal_neurons(from_rows(*rows(0, 30, 5, 3, 4)), 2, joint=True)
    with pytest.raises(ValueError, match="joint"):
        growth.normalize(joint, joint.delta, params(), PAIR)
