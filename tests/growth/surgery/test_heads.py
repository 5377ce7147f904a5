"""Heads: wider ones and more of them keep the function (1e-12), new entries learn, pruning undoes; what does not is refused."""

import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

import fisher
import growth
from growth import Heads
from growth.reading.transformers.heads import head_axes
from linmaps import trees
from tests.growth.oracle import close
from tests.growth.rows_surgery import normal
from tests.growth.surgery.attentions import LAYERS, E, X, made


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    assert trees.paths(a) == trees.paths(b)
    assert all(torch.equal(s, t) for s, t in zip(trees.leaves(a), trees.leaves(b), strict=True))


each = pytest.mark.parametrize("kind", LAYERS)
METHODS = [("split", None), ("split", 1), ("pair", 2), ("zero_out", 3)]


@each
@pytest.mark.parametrize(("method", "seed"), METHODS)
def test_wider_heads_keep_the_function(kind, method, seed):
    net = LAYERS[kind]()
    wide = growth.widen(net.params, net.heads, 4, method, None if seed is None else generator(seed))
    for a, b in zip(head_axes(net.params, net.heads), head_axes(wide, net.heads)):
        assert [s.width + 4 for s in a.segments] == [s.width for s in b.segments]
    close(net.f(wide, X), net.f(net.params, X), 1e-12)
    single = trees.map(torch.Tensor.float, net.params)
    wide = growth.widen(single, net.heads, 4, method, None if seed is None else generator(seed))
    assert {t.dtype for t in trees.leaves(wide)} == {torch.float32}
    close(net.f(wide, X.float()), net.f(single, X.float()), 1e-4)


@each
@pytest.mark.parametrize(("method", "seed"), [m for m in METHODS if m[0] != "pair"])
def test_more_heads_keep_the_function(kind, method, seed):
    net = LAYERS[kind]()
    more = growth.add_heads(net.params, net.heads, 3, method, None if seed is None else generator(seed))
    after = net.heads.plus(3)
    assert after.groups == net.heads.groups + 3
    close(net.f(more, X, after), net.f(net.params, X), 1e-12)
    close(net.f(more, X, d=net.d), net.f(net.params, X), 1e-12)
    for a, b in zip(head_axes(net.params, net.heads), head_axes(more, after)):
        assert [s.width for s in a.segments] == [s.width for s in b.segments]


@each
def test_pruning_undoes_more_heads(kind):
    net = LAYERS[kind]()
    more = growth.add_heads(net.params, net.heads, 2, "zero_out", generator())
    G = net.heads.groups
    same(growth.prune(more, net.heads.plus(2), [G, G + 1]), net.params)
    same(growth.prune(more, net.heads.plus(2), torch.arange(G + 2) >= G), net.params)
    same(growth.add_heads(net.params, net.heads, 0), net.params)
    same(growth.widen(net.params, net.heads, 0), net.params)


@each
def test_a_pruned_head_is_one_that_writes_nothing(kind):
    net = LAYERS[kind]()
    if net.heads.groups == 1:
        return
    m = net.heads.n_heads // net.heads.groups
    W = net.params["o"]["weight"].clone()
    silent = trees.replace(net.params, "o.weight", W)
    W[:, net.d * m : 2 * net.d * m] = 0
    small = growth.prune(net.params, net.heads, [1])
    close(net.f(small, X, net.heads.plus(-1)), net.f(silent, X), 1e-12)


@pytest.mark.parametrize("kind", ["sdpa", "grouped", "packed", "packed grouped", "causal", "no bias"])
@pytest.mark.parametrize("more", [False, True])
def test_new_entries_learn_after_one_step_of_the_other_side(kind, more):
    net = LAYERS[kind]()
    if more:
        grown, heads = growth.add_heads(net.params, net.heads, 2, "zero_out", generator()), net.heads.plus(2)
    else:
        grown, heads = growth.widen(net.params, net.heads, 2, "zero_out", generator()), net.heads
    loss = lambda p: (net.f(p, X, heads) - torch.cos(torch.arange(4.0))).square().mean()
    first = grad(loss)(grown)
    moved = trees.axpy(-0.1, first, grown)
    second = grad(loss)(moved)
    for a in head_axes(grown, heads):
        parts = zip(a.segments, a.split(trees.get(first, a.path)), a.split(trees.get(second, a.path)))
        for s, g1, g2 in parts:
            new = slice(net.d, None) if not more else slice(None)
            at = slice(None) if not more else slice(net.heads.groups * (s.heads // heads.groups), None)
            if a.bias and s.role == "k":
                continue  # the same for every position: a bias of k is no matter to softmax, old or new
            now = g1[at, new].abs().sum(-1)
            if s.role == "out" or (s.role == "q" and not more):
                assert (now > 0).all()
            assert (now + g2[at, new].abs().sum(-1) > 0).all(), (s.role, a.bias)


def test_where_new_units_are_and_what_q_becomes():
    net = made(H=2, d=3)
    wide = growth.widen(net.params, net.heads, 1, "zero_out", generator())
    old = lambda t: t.unflatten(0, (2, 4))[:, :3].flatten(0, 1)
    for n in "kv":
        for leaf in ("weight", "bias"):
            assert torch.equal(old(wide[n][leaf]), net.params[n][leaf])
    close(old(wide["q"]["weight"]), net.params["q"]["weight"] * (4 / 3) ** 0.5, 1e-15)
    close(old(wide["q"]["bias"]), net.params["q"]["bias"] * (4 / 3) ** 0.5, 1e-15)
    assert torch.equal(old(wide["o"]["weight"].mT), net.params["o"]["weight"].mT)
    assert torch.equal(wide["o"]["bias"], net.params["o"]["bias"])
    assert (wide["q"]["weight"][[3, 7]] == 0).all()
    assert (wide["o"]["weight"][:, [3, 7]] == 0).all()
    assert (wide["k"]["weight"][[3, 7]] != 0).all()
    assert (wide["v"]["weight"][[3, 7]] != 0).all()
    kept = growth.widen(net.params, net.heads, 1, "zero_out", generator(), rescale=False)
    assert torch.equal(old(kept["q"]["weight"]), net.params["q"]["weight"])


def test_a_constant_scale_needs_no_rescaled_queries():
    net = made("constant")
    kept = growth.widen(net.params, net.heads, 2, "zero_out", generator(), rescale=False, check=(net.f, X))
    close(net.f(kept, X), net.f(net.params, X), 1e-12)
    with pytest.raises(ValueError, match=r"by a constant: rescale=False"):
        growth.widen(net.params, net.heads, 2, "zero_out", generator(), check=(net.f, X))
    plain = made()
    with pytest.raises(ValueError, match="expected the same function"):
        growth.widen(plain.params, plain.heads, 2, "zero_out", generator(), rescale=False, check=(plain.f, X))


def test_values_of_another_width():
    net = made(d=3, dv=2)
    wide = growth.widen(net.params, net.heads, 3, check=(net.f, X))
    assert wide["v"]["weight"].shape == (10, E)
    assert wide["q"]["weight"].shape == (12, E)
    more = growth.add_heads(net.params, net.heads, 1)
    close(net.f(more, X, net.heads.plus(1)), net.f(net.params, X), 1e-12)


@pytest.mark.parametrize("kind", ["sdpa", "packed grouped"])
def test_noise_breaks_the_symmetry(kind):
    net = LAYERS[kind]()
    y = net.f(net.params, X)
    for method in ("split", "pair"):
        change = [
            (net.f(growth.widen(net.params, net.heads, 2, method, generator(), noise=s), X) - y).abs().max().item()
            for s in (0.0, 1e-5, 1e-3)
        ]
        assert change[0] < 1e-12
        assert 30 < change[2] / change[1] < 300
    after = net.heads.plus(1)
    change = [
        (net.f(growth.add_heads(net.params, net.heads, 1, "split", generator(), noise=s), X, after) - y)
        .abs()
        .max()
        .item()
        for s in (0.0, 1e-5, 1e-3)
    ]
    assert change[0] < 1e-12
    assert 30 < change[2] / change[1] < 300


def test_which_are_split():
    net = made(H=3, d=2)
    wide = growth.widen(net.params, net.heads, 2, units=[1, 1])
    v, o = net.params["v"]["weight"].unflatten(0, (3, 2)), net.params["o"]["weight"].unflatten(1, (3, 2))
    assert torch.equal(wide["v"]["weight"], v[:, [0, 1, 1, 1]].flatten(0, 1))
    assert torch.equal(wide["o"]["weight"], torch.stack([o[..., 0], *[o[..., 1] / 3] * 3], -1).flatten(1))
    more = growth.add_heads(net.params, net.heads, 2, units=[2, -1])
    assert torch.equal(more["v"]["weight"], v[[0, 1, 2, 2, 2]].flatten(0, 1))
    assert torch.equal(more["o"]["weight"], torch.cat([o[:, :2], *[o[:, 2:] / 3] * 3], 1).flatten(1))


@pytest.mark.parametrize("kind", ["sdpa", "grouped", "packed"])
def test_over_an_ensemble(kind):
    nets = [LAYERS[kind](seed=2 * s) for s in range(3)]
    members, heads = trees.stack([n.params for n in nets]), nets[0].heads
    d, (H, G) = nets[0].d, (heads.n_heads, heads.groups)
    numbers = normal(3, 3, 2, G * E + G * E + H * E + H * 4)
    wide = vmap(lambda p, z: growth.widen(p, heads, 2, "zero_out", draws=z))(members, numbers)
    same(wide, trees.stack([growth.widen(n.params, heads, 2, "zero_out", draws=z) for n, z in zip(nets, numbers)]))
    m = H // G
    numbers = normal(4, 3, 1, (m + 2) * d * E + m * d * 4)
    more = vmap(lambda p, z: growth.add_heads(p, heads, 1, "zero_out", draws=z))(members, numbers)
    same(more, trees.stack([growth.add_heads(n.params, heads, 1, "zero_out", draws=z) for n, z in zip(nets, numbers)]))
    weakest = lambda p: growth.prune(p, heads, growth.weakest_units(growth.head_scores(p, heads), keep=1))
    same(vmap(weakest)(members), trees.stack([weakest(n.params) for n in nets]))


@pytest.mark.parametrize("kind", ["sdpa", "no bias", "grouped", "packed grouped"])
def test_scores_are_norms_of_what_a_head_can_write(kind):
    net = LAYERS[kind]()
    parts = {
        (s.role, a.bias): t
        for a in head_axes(net.params, net.heads)
        for s, t in zip(a.segments, a.split(trees.get(net.params, a.path)))
    }
    m = net.heads.n_heads // net.heads.groups
    want = []
    for g in range(net.heads.groups):
        V = parts["v", False][g]
        if ("v", True) in parts:
            V = torch.cat([V, parts["v", True][g]], 1)
        each = [parts["out", False][h].mT @ V for h in range(g * m, (g + 1) * m)]
        want.append(torch.stack(each).square().sum().sqrt())
    close(growth.head_scores(net.params, net.heads), torch.stack(want), 1e-12)
    more = growth.add_heads(net.params, net.heads, 1, "zero_out", generator())
    after = net.heads.plus(1)
    assert growth.weakest_units(growth.head_scores(more, after), keep=net.heads.groups).tolist() == [net.heads.groups]


# --- other people's layers ---------------------------------------------------------------------------------------------


class Llama(torch.nn.Module):
    """Separate linear layers, grouped queries, a residual stream of its own width."""

    def __init__(self, E=8, H=4, G=2, d=2):
        super().__init__()
        self.q_proj, self.k_proj = torch.nn.Linear(E, H * d, bias=False), torch.nn.Linear(E, G * d, bias=False)
        self.v_proj, self.o_proj = torch.nn.Linear(E, G * d, bias=False), torch.nn.Linear(H * d, E, bias=False)
        self.H, self.G = H, G

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(-1, (n, -1)).transpose(1, 2)
            for layer, n in ((self.q_proj, self.H), (self.k_proj, self.G), (self.v_proj, self.G))
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def test_a_module_with_linear_layers():
    torch.manual_seed(0)
    module = Llama().double()
    f, params = fisher.functional(module)
    heads, x = Heads("q_proj", "k_proj", "v_proj", "o_proj", 4, n_kv_heads=2), normal(1, 2, 5, 8)
    wide = growth.widen(params, heads, 2, "zero_out", generator(), check=(f, x))
    bigger = growth.into_module(module, wide)
    close(bigger(x).detach(), module(x).detach(), 1e-12)
    assert bigger.q_proj.out_features == 16
    more = growth.into_module(module, growth.add_heads(params, heads, 1))
    more.H, more.G = heads.plus(1).n_heads, heads.plus(1).groups
    close(more(x).detach(), module(x).detach(), 1e-12)


def test_multihead_attention_of_torch_cannot_be_widened_and_says_so():
    module = torch.nn.MultiheadAttention(4, 2, batch_first=True).double()
    _, params = fisher.functional(module)
    g = lambda p, x: torch.func.functional_call(module, p, (x, x, x))[0]
    heads, x = Heads(None, None, None, "out_proj", 2, packed="in_proj_weight"), normal(1, 3, 5, 4)
    assert [a.size for a in head_axes(params, heads)] == [12, 12, 4]
    with pytest.raises(ValueError, match="MultiheadAttention keeps embed_dim"):
        growth.widen(params, heads, 2, check=(g, x))
    with pytest.raises(ValueError, match="MultiheadAttention keeps embed_dim"):
        growth.add_heads(params, heads, 1, check=(g, x))
    for changed in (growth.widen(params, heads, 2), growth.prune(params, heads, [0])):
        with pytest.raises(ValueError, match=r"MultiheadAttention: got .* write the layer out"):
            growth.into_module(module, changed)
    close(g(params, x), made(packed="torch", H=2, d=2, bias=True).f(params | {"o": nested(params)}, x), 1e-12)


def nested(params):
    return {"weight": params["out_proj.weight"], "bias": params["out_proj.bias"]}


def rotary(p, x):
    """Units in two halves, turned by angles that depend on the width."""
    split = lambda t: t.unflatten(-1, (2, -1)).transpose(1, 2)
    q, k, v = (split(F.linear(x, **p[n])) for n in "qkv")
    d = q.shape[-1]
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * 10.0 ** (-torch.arange(d // 2, dtype=x.dtype) / (d // 2))
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    turn = lambda t: t * cos + torch.cat([-t[..., d // 2 :], t[..., : d // 2]], -1) * sin
    y = F.scaled_dot_product_attention(turn(q), turn(k), v)
    return F.linear(y.transpose(1, 2).flatten(2), **p["o"])


def rotary_of_width(p, x):
    n = p["q"]["weight"].shape[0] // 4
    split = lambda t: t.unflatten(-1, (n, 4)).transpose(1, 2)
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1], dtype=x.dtype)
    turn = lambda t: t * angle.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * angle.sin()
    q, k, v = (split(F.linear(x, **p[name])) for name in "qkv")
    y = F.scaled_dot_product_attention(turn(q), turn(k), v)
    return F.linear(y.transpose(1, 2).flatten(2), **p["o"])


def normed(p, x):
    split = lambda t: t.unflatten(-1, (2, -1)).transpose(1, 2)
    q, k, v = (split(F.linear(x, **p[n])) for n in "qkv")
    q, k = (F.rms_norm(t, t.shape[-1:]) for t in (q, k))
    return F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), **p["o"])


@pytest.mark.parametrize("method", ["split", "pair", "zero_out"])
@pytest.mark.parametrize("f", [rotary, normed])
def test_a_check_finds_what_does_not_keep_the_function(f, method):
    net = made(d=4)
    with pytest.raises(ValueError, match=r"Heads\('q', 'k', 'v', 'o', 2\): f changes .* neither turn \(rotary"):
        growth.widen(
            net.params, net.heads, 2, method, generator(), noise=0.1 if method == "split" else 0.0, check=(f, X)
        )
    growth.add_heads(net.params, net.heads, 2, check=(rotary_of_width, X))  # more heads of the same width turn as these


def test_more_heads_of_a_function_with_a_constant_number_of_heads():
    net = made()
    with pytest.raises(ValueError, match="their width after add_heads stays"):
        growth.add_heads(net.params, net.heads, 2, check=(net.f, X))
    f = lambda p, x: net.f(p, x, d=net.d)
    one, two = generator(), generator()
    a = growth.add_heads(net.params, net.heads, 2, "zero_out", one, check=(f, X))
    same(a, growth.add_heads(net.params, net.heads, 2, "zero_out", two))
    assert torch.equal(one.get_state(), two.get_state())


def test_a_pair_across_heads_is_refused_and_told_of_heads():
    net = made(bias=False)
    for method in ("split", "pair", "zero_out"):
        with pytest.raises(ValueError, match=r"reshape of the hidden axis stands in the way.*growth\.Heads"):
            growth.widen(net.params, growth.Pair("v", "o"), 2, method, generator(), check=(net.f, X))


# --- what is wrong -----------------------------------------------------------------------------------------------------


def test_heads_are_plain_data():
    heads = Heads("q", "k", "v", ("a", "o"), 4, n_kv_heads=2)
    assert hash(heads) == hash(pickle.loads(pickle.dumps(heads)))
    assert heads == dataclasses.replace(heads)
    assert heads.plus(-1).plus(1) == heads
    for wrong, words in (
        (lambda: Heads("q", None, "v", "o", 2), "Heads: k is None"),
        (lambda: Heads("q", "k", "v", "o", 2, packed="qkv"), "got q='q' beside packed"),
        (lambda: Heads("q", "k", "q", "o", 2), "expected 4 different layers"),
        (lambda: Heads("q", "k", "v", "o", 0), "n_heads: got 0"),
        (lambda: Heads("q", "k", "v", "o", 4, n_kv_heads=3), "n_heads is 4, expected a multiple of n_kv_heads=3"),
        (lambda: Heads("q", "k", "v", "o", 2.0), "n_heads: got float"),
        (lambda: heads.plus(-2), "n: got -2"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            wrong()


def test_wrong_arguments():
    net = made()
    p, heads = net.params, net.heads
    for wrong, words in (
        (
            lambda: growth.widen(p, dataclasses.replace(heads, n_heads=5), 1),
            "q.weight has 6 rows, expected a multiple of 5",
        ),
        (
            lambda: growth.widen(p, dataclasses.replace(heads, n_kv_heads=1), 1),
            "widths of the heads do not match: q 3, k 6",
        ),
        (lambda: growth.widen(p, dataclasses.replace(heads, q="z"), 1), "z: no such layer"),
        (lambda: growth.widen(trees.stack([p, p]), heads, 1), "map over an ensemble with torch.func.vmap"),
        (lambda: growth.widen(p, heads, -1), "k: got -1"),
        (lambda: growth.widen(p, heads, 1, "pair", generator()), "k: got 1, expected an even number"),
        (lambda: growth.widen(p, heads, 1, "zero_out"), r"generator: got None.*draws= \[1, 44\]"),
        (lambda: growth.widen(p, heads, 1, "zero_out", draws=torch.ones(1, 3)), r"expected \(1, 44\): .* 12 of q"),
        (
            lambda: growth.widen(
                {"a": p["v"]["weight"], "b": p["o"]["weight"]}, growth.Pair("a", "b"), 1, rescale=False
            ),
            "is of Heads",
        ),
        (lambda: growth.widen(p, heads, 1, units=[3]), "units: got"),
        (lambda: growth.add_heads(p, heads, -1), "n: got -1, .* use prune"),
        (lambda: growth.add_heads(p, heads, 1, "pair"), "method: got 'pair'"),
        (lambda: growth.add_heads(p, heads, 1, "zero_out"), r"draws= \[1, 66\]"),
        (lambda: growth.add_heads(p, heads, 1, units=[0, 1]), "units: got 2 for n=1"),
        (lambda: growth.add_heads(p, heads, 1, "zero_out", generator(), noise=0.1), "noise: got 0.1"),
        (lambda: growth.add_heads(p, growth.Pair("v", "o"), 1), "heads: got"),
        (lambda: growth.prune(p, heads, [2]), "units: got"),
        (lambda: growth.cut(p, heads, [1]), "pair: got"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            wrong()
