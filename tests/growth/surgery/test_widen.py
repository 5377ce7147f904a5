"""widen: the function is the same (1e-12), sources and shares are those of Net2Net, randomness is an argument."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.func import grad, vmap

import growth
from growth.reading.layers import layers_of
from growth.strategies import networks
from linmaps import trees
from tests.growth.oracle import close, leaf
from tests.growth.rows_surgery import NETS, convolutions, dense, normal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", ["split", "split at random", "pair", "zero_out"])
@pytest.mark.parametrize("kind", NETS)
def test_the_function_is_preserved(kind, method):
    net = NETS[kind]()
    wide = growth.widen(net.params, net.pair, 6, method.split()[0], None if method == "split" else generator())
    before, after = layers_of(wide, net.pair)
    assert before.weight.shape[0] == layers_of(net.params, net.pair)[0].weight.shape[0] + 6
    close(net.f(wide, net.x), net.f(net.params, net.x), 1e-12)
    old = layers_of(net.params, net.pair)[0]
    assert torch.equal(before.weight[: len(old.weight)], old.weight)
    assert after.columns == layers_of(net.params, net.pair)[1].columns


@given(networks(), st.integers(0, 7), st.booleans())
def test_split_preserves_any_network(net, k, random):
    assume(leaf(net, net.params, "hidden", "weight").shape[0] > 0)
    wide = growth.widen(net.params, net.pair, k, generator=generator(k) if random else None)
    close(net.f(wide, net.x), net.f(net.params, net.x), 1e-12)


@given(networks(), st.integers(0, 3), st.sampled_from(["pair", "zero_out"]))
def test_random_units_preserve_any_network(net, half, method):
    wide = growth.widen(net.params, net.pair, 2 * half, method, generator(half))
    close(net.f(wide, net.x), net.f(net.params, net.x), 1e-12)
    new = leaf(net, wide, "hidden", "weight")[leaf(net, net.params, "hidden", "weight").shape[0] :]
    assert half == 0 or (new != 0).all()


def test_shares_by_multiplicity():
    net = dense(p=3)
    wide = growth.widen(net.params, net.pair, 4, units=[1, 1, 0, 1])
    W, new = net.params["output"]["weight"], wide["output"]["weight"]
    expected = torch.stack([W[:, j] / m for j, m in ((0, 2), (1, 4), (2, 1), (1, 4), (1, 4), (0, 2), (1, 4))], 1)
    assert torch.equal(new, expected)
    assert torch.equal(wide["hidden"]["weight"], net.params["hidden"]["weight"][[0, 1, 2, 1, 1, 0, 1]])
    assert torch.equal(wide["hidden"]["bias"], net.params["hidden"]["bias"][[0, 1, 2, 1, 1, 0, 1]])
    turn = growth.widen(net.params, net.pair, 4)
    assert torch.equal(turn["hidden"]["weight"][3:], net.params["hidden"]["weight"][[0, 1, 2, 0]])


def test_random_choice_is_that_of_the_generator():
    net = dense(p=5)
    one, two, other = (growth.widen(net.params, net.pair, 3, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(one["hidden"]["weight"], two["hidden"]["weight"])
    assert not torch.equal(one["hidden"]["weight"], other["hidden"]["weight"])


def test_norm_leaves():
    net = convolutions()
    split = growth.widen(net.params, net.pair, 2)["n"]
    fresh = growth.widen(net.params, net.pair, 2, "pair", generator())["n"]
    for name, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        old = net.params["n"][name]
        assert torch.equal(split[name], torch.cat([old, old[:2]]))
        assert torch.equal(fresh[name], torch.cat([old, torch.full((2,), fill, dtype=old.dtype)]))


@pytest.mark.parametrize("method", ["split", "pair", "zero_out"])
def test_batch_norm_in_train_mode(method):
    net = dense()
    params = net.params | {"n": {"weight": normal(1, 4), "bias": normal(2, 4)}}

    def f(p, x):
        z = F.batch_norm(F.linear(x, **p["hidden"]), None, None, **p["n"], training=True)
        return F.linear(torch.relu(z), **p["output"])

    pair = growth.Pair("hidden", "output", norm="n")
    wide = growth.widen(params, pair, 2, method, generator())
    assert wide["n"]["weight"].shape == (6,)
    close(f(wide, net.x), f(params, net.x), 1e-12)


def test_twins():
    net = dense()
    p = growth.widen(net.params, net.pair, 4, "pair", generator())
    V, Z = p["hidden"]["weight"][4:], p["output"]["weight"][:, 4:]
    assert torch.equal(V[:2], V[2:])
    assert torch.equal(Z[:, :2], -Z[:, 2:])
    assert (p["hidden"]["bias"][4:] == 0).all()


@pytest.mark.parametrize("kind", ["dense", "convolutions", "flattened"])
def test_size_of_random_entries_is_that_of_the_leaf(kind):
    net = NETS[kind]()
    large = trees.map(lambda t: 50 * t, net.params)
    for params, factor in ((net.params, 1.0), (large, 50.0), (trees.zeros_like(net.params), None)):
        before, after = layers_of(growth.widen(params, net.pair, 800, "pair", generator()), net.pair)
        old = layers_of(params, net.pair)
        for new, was, axis in ((before.weight, old[0].weight, 0), (after.weight, old[1].weight, 1)):
            fresh = new.narrow(axis, was.shape[axis], new.shape[axis] - was.shape[axis])
            want = was.square().mean().sqrt() if factor else torch.tensor(was[0].numel() ** -0.5)
            assert abs(fresh.square().mean().sqrt() / want - 1) < 0.1


@pytest.mark.parametrize("method", ["split", "pair"])
def test_noise_breaks_the_symmetry_in_proportion(method):
    net = dense("tanh")
    change = [
        (net.f(growth.widen(net.params, net.pair, 4, method, generator(), noise=s), net.x) - net.f(net.params, net.x))
        .abs()
        .max()
        .item()
        for s in (0.0, 1e-5, 1e-3)
    ]
    assert change[0] < 1e-12
    assert 50 < change[2] / change[1] < 200
    wide = growth.widen(net.params, net.pair, 4, method, draws=normal(1, 4, 7), noise=0.1)
    assert not torch.equal(wide["output"]["weight"][:, 4:6], -wide["output"]["weight"][:, 6:])
    if method == "split":
        assert torch.equal(wide["output"]["weight"][:, :4], net.params["output"]["weight"] / 2)
        assert not torch.equal(wide["hidden"]["weight"][:4], wide["hidden"]["weight"][4:])


def test_exact_copies_have_equal_gradients_and_noisy_ones_not():
    net = dense("tanh")
    for noise, equal in ((0.0, True), (0.1, False)):
        wide = growth.widen(net.params, net.pair, 4, generator=None, draws=normal(3, 4, 7), noise=noise)
        g = grad(lambda p: net.f(p, net.x).square().sum())(wide)["hidden"]["weight"]
        assert (bool((g[:4] - g[4:]).abs().max() < 1e-12)) is equal


@pytest.mark.parametrize("method", ["split", "pair", "zero_out"])
def test_draws_stand_for_a_generator_and_map_over_an_ensemble(method):
    net = dense()
    noise = 0.0 if method == "zero_out" else 0.3
    units = [0, 1] if method == "split" else None
    draws = torch.randn(2, 3 + 1 + 3, generator=generator(4), dtype=torch.float64)
    one = growth.widen(net.params, net.pair, 2, method, generator(4), noise=noise, units=units)
    two = growth.widen(net.params, net.pair, 2, method, draws=draws, noise=noise)
    for a, b in zip(trees.leaves(one), trees.leaves(two)):
        assert torch.equal(a, b)
    members = trees.stack([dense(seed=s).params for s in range(3)])
    units = torch.tensor([[0, 1], [3, 3], [2, 0]])

    def member(p, u, d):
        options = {"units": u} if method == "split" else {}
        return growth.widen(p, net.pair, 2, method, draws=d, noise=noise, **options)

    many = normal(5, 3, 2, 7)
    mapped = vmap(member)(members, units, many)
    loop = trees.stack([member(p, u, d) for p, u, d in zip(trees.unstack(members), units, many)])
    for a, b in zip(trees.leaves(mapped), trees.leaves(loop)):
        close(a, b, 1e-12)


def test_pruning_the_new_units_of_zero_out_gives_params_back():
    for kind in NETS:
        net = NETS[kind]()
        p = layers_of(net.params, net.pair)[0].weight.shape[0]
        wide = growth.widen(net.params, net.pair, 3, "zero_out", generator())
        back = growth.prune(wide, net.pair, range(p, p + 3))
        for a, b in zip(trees.leaves(back), trees.leaves(net.params)):
            assert torch.equal(a, b)


def test_without_hidden_units():
    net = dense(p=0)
    for method in ("pair", "zero_out"):
        wide = growth.widen(net.params, net.pair, 2, method, generator())
        close(net.f(wide, net.x), net.f(net.params, net.x), 1e-12)
        assert (wide["hidden"]["weight"] != 0).all()


def test_bad_arguments():
    net = dense()
    with pytest.raises(ValueError, match="method: got 'copy'"):
        growth.widen(net.params, net.pair, 1, "copy")
    with pytest.raises(ValueError, match="k: got -1"):
        growth.widen(net.params, net.pair, -1)
    with pytest.raises(ValueError, match="k: got 3, expected an even number"):
        growth.widen(net.params, net.pair, 3, "pair", generator())
    with pytest.raises(ValueError, match="no hidden unit to split"):
        growth.widen(dense(p=0).params, net.pair, 1)
    for options in ({"method": "pair"}, {"method": "zero_out"}, {"noise": 0.1}):
        with pytest.raises(ValueError, match=r"generator: got None.*draws= \[2, 7\]"):
            growth.widen(net.params, net.pair, 2, **options)
    with pytest.raises(ValueError, match=r"draws have shape \(1, 7\), expected \(2, 7\): .* 3 incoming weights"):
        growth.widen(net.params, net.pair, 2, "pair", draws=torch.zeros(1, 7))
    with pytest.raises(ValueError, match="units: got 1 for k=2"):
        growth.widen(net.params, net.pair, 2, units=[0])
    with pytest.raises(ValueError, match="units"):
        growth.widen(net.params, net.pair, 1, units=[4])
    with pytest.raises(ValueError, match="noise: got -1"):
        growth.widen(net.params, net.pair, 2, noise=-1)
    with pytest.raises(ValueError, match=r"noise: got 0.1, expected 0"):
        growth.widen(net.params, net.pair, 2, "zero_out", generator(), noise=0.1)


# --- what keeps the function, and what does not ----------------------------------------------------------------------

HEADS = {k: {"weight": normal(7, 8, 8) / 3} for k in "qkvo"}
TOKENS = normal(8, 3, 5, 8)


def attention(p, x, heads=2):
    split = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2)
    q, k, v = (split(F.linear(x, p[n]["weight"])) for n in "qkv")
    return F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), p["o"]["weight"])


def between(fn):
    return lambda p, x: F.linear(fn(F.linear(x, p["v"]["weight"])), p["o"]["weight"])


def grouped(p, x):
    z = F.conv1d(x.mT, p["v"]["weight"][..., None])
    z = F.conv1d(z, torch.ones(z.shape[1], z.shape[1] // 2, 1, dtype=z.dtype), groups=2)
    return F.conv1d(torch.tanh(z), p["o"]["weight"][..., None]).mT


CHANGED = {
    "heads": attention,
    "more heads": lambda p, x: attention(p, x, 4),
    "grouped convolution": grouped,
    "group norm": between(lambda z: F.group_norm(z.transpose(1, 2), 2).transpose(1, 2)),
    "layer norm": between(lambda z: F.layer_norm(z, z.shape[-1:])),
    "layer norm of fixed size": between(lambda z: F.layer_norm(z, (8,))),
    "softmax": between(lambda z: z.softmax(-1)),
    "reshape to 8": between(lambda z: torch.tanh(z.reshape(3, 5, 8))),
    "glu of halves": between(lambda z: torch.cat([F.glu(z), F.glu(z)], -1)),
}


@pytest.mark.parametrize("method", ["split", "pair", "zero_out"])
@pytest.mark.parametrize("name", CHANGED)
def test_a_check_finds_what_does_not_keep_the_function(name, method):
    noise = 0.0 if method == "zero_out" else 0.5
    widen = lambda f: growth.widen(HEADS, growth.Pair("v", "o"), 2, method, generator(), noise=noise, check=(f, TOKENS))
    with pytest.raises(ValueError, match=r"expected the same function|expected a function that takes its sizes"):
        widen(CHANGED[name])
    widen(between(torch.tanh))  # and takes the noise that is wanted for no change


def test_a_check_draws_nothing():
    one, two = generator(), generator()
    pair, f = growth.Pair("v", "o"), between(torch.tanh)
    wide = growth.widen(HEADS, pair, 2, "zero_out", one, check=(f, TOKENS))
    for a, b in zip(trees.leaves(wide), trees.leaves(growth.widen(HEADS, pair, 2, "zero_out", two)), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.get_state(), two.get_state())
    with pytest.raises(TypeError, match="check: got function"):
        growth.widen(HEADS, pair, 2, check=f)


def test_rescale_with_a_check_keeps_the_function_or_raises():
    pair = growth.Pair("v", "o")
    growth.rescale(HEADS, pair, 2, preserve=True, check=(between(torch.relu), TOKENS))
    with pytest.raises(ValueError, match="expected the same function"):
        growth.rescale(HEADS, pair, 2, preserve=True, check=(between(torch.tanh), TOKENS))


TABLE = {"e": torch.randn(6, 3, generator=generator()), "o": torch.randn(2, 3, generator=generator())}
INDICES = torch.tensor([[0, 1, 2, 2], [5, 5, 0, 3]])


@pytest.mark.parametrize("row", [2, -1, None])
@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("method", ["split", "pair", "zero_out"])
def test_the_padding_row_of_a_table_gets_no_random_numbers(method, bag, row):
    def f(p, i):
        if bag:
            return torch.tanh(torch.nn.functional.embedding_bag(i, p["e"], mode="sum", padding_idx=row)) @ p["o"].T
        return torch.tanh(torch.nn.functional.embedding(i, p["e"], padding_idx=row)).mean(1) @ p["o"].T

    params = TABLE if row is None else TABLE | {"e": TABLE["e"].index_fill(0, torch.tensor(row % 6), 0.0)}
    pair = growth.Pair("e", "o", layout=("in_out", "out_in"))
    noise = 0.5 if method == "split" else 0.0
    got = growth.widen(params, pair, 2, method, generator(), noise=noise, f=f, x=INDICES)
    want = growth.widen(params, pair, 2, method, generator(), noise=noise)
    if row is not None:
        assert want["e"][row, 3:].all()
        want["e"][row, 3:] = 0
    for a, b in zip(trees.leaves(got), trees.leaves(want), strict=True):
        assert torch.equal(a, b)
