"""States of attention layers go along: old entries where they are now, never silently elsewhere."""

import pytest
import torch
from torch.func import vmap

import fisher
import growth
from growth.reading.transformers.heads import head_axes
from linmaps import trees
from tests.growth.oracle import close
from tests.growth.rows_surgery import normal
from tests.growth.surgery.attentions import LAYERS, X, made


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def changes(net):
    """What was done to the layer, and its heads afterwards."""
    return {
        "wider": (lambda p: growth.widen(p, net.heads, 2, "zero_out", generator()), net.heads),
        "split": (lambda p: growth.widen(p, net.heads, 3), net.heads),
        "more": (lambda p: growth.add_heads(p, net.heads, 2, "zero_out", generator()), net.heads.plus(2)),
    }


def moved(net, m, grown, heads):
    """By definition: zeros, and in them the old entries by role, head and unit."""
    new = trees.zeros_like(grown)
    for a, b in zip(head_axes(net.params, net.heads), head_axes(grown, heads)):
        parts = [t.clone() for t in b.split(trees.get(new, b.path))]
        for t, old in zip(parts, a.split(trees.get(m, a.path))):
            t[: old.shape[0], : old.shape[1]] = old
        new = trees.replace(new, b.path, b.joined(parts))
    return new if trees.get(m, "o").keys() == {"weight"} else trees.replace(new, "o.bias", trees.get(m, "o.bias"))


def equal(a, b):
    for path, s, t in zip(trees.paths(a), trees.leaves(a), trees.leaves(b), strict=True):
        assert torch.equal(s, t), trees.path_str(path)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("change", ["wider", "split", "more"])
def test_old_entries_of_moments_are_where_those_of_params_are(kind, change):
    net = LAYERS[kind]()
    make, heads = changes(net)[change]
    grown, m = make(net.params), trees.map(torch.cos, net.params)
    got = growth.grow_like({"m": m, "step": 3}, net.params, grown, heads=net.heads)
    equal(got["m"], moved(net, m, grown, heads))
    assert got["step"] == 3
    members = [LAYERS[kind](seed=2 * s) for s in range(2)]
    stacked = trees.stack([n.params for n in members])
    wide = trees.stack([make(n.params) for n in members])
    whole = growth.grow_like(trees.map(torch.cos, stacked), stacked, wide, heads=net.heads)
    each = vmap(lambda m, p, g: growth.grow_like(m, p, g, heads=net.heads))(
        trees.map(torch.cos, stacked), stacked, wide
    )
    equal(whole, each)
    equal(trees.unstack(whole)[0], got["m"])


@pytest.mark.parametrize("kind", [n for n in LAYERS if n != "one head"])
@pytest.mark.parametrize("change", ["wider", "split", "more"])
def test_without_heads_nothing_is_carried_silently_elsewhere(kind, change):
    net = LAYERS[kind]()
    make, heads = changes(net)[change]
    grown, m = make(net.params), trees.map(torch.cos, net.params)
    live = trees.map(lambda t: t.clone().requires_grad_(), net.params)
    optimizer = torch.optim.SGD(trees.leaves(live), 0.1)
    if change == "more" and "packed" not in kind:
        equal(growth.grow_like(m, net.params, grown), moved(net, m, grown, heads))
        growth.swap_parameters(optimizer, live, grown)
        return
    with pytest.raises(ValueError, match=r"is at \d+ in grown.* give heads=growth\.Heads"):
        growth.grow_like(m, net.params, grown)
    with pytest.raises(ValueError, match=r"give heads=growth\.Heads"):
        growth.swap_parameters(optimizer, live, grown)
    last = growth.grow_like(m, net.params, grown, heads=())  # who says so has it
    assert torch.equal(last["o"]["weight"][:, : m["o"]["weight"].shape[1]], m["o"]["weight"])


@pytest.mark.parametrize("kind", ["sdpa", "packed grouped"])
def test_pruned_heads_take_their_state_along(kind):
    net = LAYERS[kind]()
    m = trees.map(torch.cos, net.params)
    small = growth.prune_like({"m": m}, net.params, net.heads, [0])["m"]
    equal(small, growth.prune(m, net.heads, [0]))
    live = trees.map(lambda t: t.clone().requires_grad_(), net.params)
    optimizer = torch.optim.Adam(trees.leaves(live), 0.1)
    net.f(live, X).square().sum().backward()
    optimizer.step()
    moments = trees.map(lambda t: optimizer.state[t]["exp_avg"], live)
    fewer = growth.prune(trees.map(torch.detach, live), net.heads, [0])
    new = growth.swap_parameters(optimizer, live, fewer, pair=net.heads, units=[0])
    equal(trees.map(lambda t: optimizer.state[t]["exp_avg"], new), growth.prune(moments, net.heads, [0]))


@pytest.mark.parametrize("kind", ["sdpa", "packed gpt", "grouped"])
def test_a_live_optimizer_goes_on(kind):
    """Old entries of k, v and out step as they would have: where new units are silent their gradients are the same."""
    net = LAYERS[kind]()
    loss = lambda p: (net.f(p, X) - 1).square().mean()

    def trained(params):
        live = trees.map(lambda t: t.clone().requires_grad_(), params)
        optimizer = torch.optim.Adam(trees.leaves(live), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loss(live).backward()
            optimizer.step()
        return live, optimizer

    def step(live, optimizer):
        optimizer.zero_grad()
        loss(live).backward()
        optimizer.step()
        return trees.map(torch.detach, live)

    live, optimizer = trained(net.params)
    wide = growth.widen(trees.map(torch.detach, live), net.heads, 2, "zero_out", generator())
    larger = growth.swap_parameters(optimizer, live, wide, heads=net.heads)
    after, plain = step(larger, optimizer), step(*trained(net.params))
    for a, b in zip(head_axes(after, net.heads), head_axes(plain, net.heads)):
        parts = zip(a.segments, a.split(trees.get(after, a.path)), b.split(trees.get(plain, b.path)))
        for s, new, old in parts:
            if s.role != "q":
                close(new[:, : old.shape[1]], old, 1e-9)


def test_modules_with_their_optimizer():
    from tests.growth.surgery.test_heads import Llama

    module = Llama().double()
    optimizer, x = torch.optim.Adam(module.parameters(), 0.01), normal(1, 2, 5, 8)
    module(x).square().sum().backward()
    optimizer.step()
    heads = growth.Heads("q_proj", "k_proj", "v_proj", "o_proj", 4, n_kv_heads=2)
    old = optimizer.state[module.v_proj.weight]["exp_avg"].clone()
    _, params = fisher.functional(module)
    wider = growth.into_module(
        module, growth.widen(params, heads, 1, "zero_out", generator()), optimizer=optimizer, heads=heads
    )
    close(wider(x).detach(), module(x).detach(), 1e-12)
    new = optimizer.state[wider.v_proj.weight]["exp_avg"].unflatten(0, (2, 3))
    assert torch.equal(new[:, :2].flatten(0, 1), old)
    assert (new[:, 2] == 0).all()


MATRICES = {"dense": fisher.PMatDense, "kfac": fisher.PMatKFAC, "diagonal": fisher.PMatDiag, "ekfac": fisher.PMatEKFAC}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("layer", ["sdpa", "packed grouped"])
@pytest.mark.parametrize("change", ["wider", "more"])
def test_matrices_over_params(kind, layer, change):
    """As quadratic forms: of the carried matrix at a carried vector that of the old one at the old."""
    net = LAYERS[layer]()
    make, _ = changes(net)[change]
    grown, f = make(net.params), lambda p, x: net.f(p, x).mean(1)
    F = fisher.fim(f, net.params, X, MATRICES[kind])
    v = trees.map(lambda t: normal(5, *t.shape), net.params)
    big, w = (growth.grow_like(s, net.params, grown, heads=net.heads) for s in (F, v))
    close(big.vTMv(w), F.vTMv(v), 1e-10)


def test_what_heads_do_not_explain_is_refused():
    net = made(H=2, d=3)
    p, heads = net.params, net.heads
    twice = growth.add_heads(growth.widen(p, heads, 2), heads, 1)
    with pytest.raises(ValueError, match="old entries of k and v are not where 3 more heads"):
        growth.grow_like(p, p, twice, heads=heads)
    changed = trees.map(lambda t: t + 1, growth.widen(p, heads, 2))
    with pytest.raises(ValueError, match="old entries of k and v are not where 2 more units in each head"):
        growth.grow_like(p, p, changed, heads=heads)
    across = growth.widen(p, growth.Pair("v", "o"), 2)
    with pytest.raises(ValueError, match="expected one step of widen"):
        growth.grow_like(p, p, across, heads=heads)
    with pytest.raises(TypeError, match="heads: got"):
        growth.grow_like(p, p, p, heads=growth.Pair("v", "o"))
    equal(growth.grow_like(p, p, p, heads=[heads]), p)
    meta = trees.map(lambda t: t.to("meta"), p)
    with pytest.raises(ValueError, match="2 more heads or 3 more units in each head"):
        growth.grow_like(meta, meta, growth.add_heads(meta, heads, 2), heads=heads)


def test_neighbours_that_grow_by_pairs_go_along():
    net = made(H=2, d=3)
    params = net.params | {"mlp": {"weight": normal(1, 5, 4)}, "head": {"weight": normal(2, 2, 5)}}
    grown = growth.widen(growth.widen(params, net.heads, 1), growth.Pair("mlp", "head"), 2)
    m = trees.map(torch.sin, params)
    got = growth.grow_like(m, params, grown, heads=net.heads)
    assert torch.equal(got["mlp"]["weight"][:5], m["mlp"]["weight"])
    assert (got["mlp"]["weight"][5:] == 0).all()
    assert torch.equal(got["v"]["weight"].unflatten(0, (2, 4))[:, :3].flatten(0, 1), m["v"]["weight"])
