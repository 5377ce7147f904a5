"""grow_like: any state goes along, old entries in place, new ones zero; the next step of an optimizer is the same."""

import dataclasses
from collections import namedtuple

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import fisher
import growth
from growth.strategies import network, networks
from linmaps import trees
from tests.growth.oracle import close
from tests.growth.rows_surgery import collect, dense, matrices


def grown_of(net, zero=None, k=2):
    stats = growth.statistics(net.f, net.params, net.data, net.pair, net.loss)
    new = growth.optimal_neurons(stats, k)
    if zero is not None:
        new = dataclasses.replace(new, **{n: 0 * getattr(new, n) for n in zero if getattr(new, n) is not None})
    return growth.grow(net.params, net.pair, new)


Adam = namedtuple("Adam", "step mu nu")


@given(networks())
def test_moments_anywhere_in_a_state(net):
    grown = grown_of(net)
    state = {
        "opt": [Adam(7, net.params, trees.scale(2.0, net.params)), ()],
        "ema": {"params": net.params},
        "lr": 0.1,
        "none": None,
    }
    carried = growth.grow_like(state, net.params, grown)
    assert type(carried["opt"][0]) is Adam
    assert (carried["opt"][0].step, carried["lr"], carried["none"]) == (7, 0.1, None)
    for tree, factor in ((carried["opt"][0].mu, 1), (carried["opt"][0].nu, 2), (carried["ema"]["params"], 1)):
        trees.check_like(tree, grown, "carried")
        for new, old in zip(optree.tree_leaves(tree), optree.tree_leaves(net.params), strict=True):
            corner = tuple(slice(0, n) for n in old.shape)
            assert torch.equal(new[corner], factor * old)
            assert (
                new.abs().sum() == factor * old.abs().sum() or abs(new.abs().sum() - factor * old.abs().sum()) < 1e-12
            )


def test_nothing_grew():
    net = network(41)
    state = {"m": net.params, "step": torch.tensor(3)}
    same = growth.grow_like(state, net.params, net.params)
    for a, b in zip(optree.tree_leaves(same), optree.tree_leaves(state), strict=True):
        assert torch.equal(a, b)


def adam(params, grads, state, lr=0.1, eps=1e-3):
    t = state["step"] + 1
    m = trees.map(lambda m, g: 0.9 * m + 0.1 * g, state["m"], grads)
    v = trees.map(lambda v, g: 0.99 * v + 0.01 * g * g, state["v"], grads)
    new = trees.map(lambda p, m, v: p - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + eps), params, m, v)
    return new, {"step": t, "m": m, "v": v}


@pytest.mark.parametrize("zero", [("fan_in", "fan_in_bias"), ("fan_out",)])
def test_next_step_of_old_entries_is_the_same(zero):
    net = network(42)
    loss = lambda p: torch.nn.functional.cross_entropy(net.f(p, net.x), net.target)
    params, state = net.params, {"step": 0, "m": trees.zeros_like(net.params), "v": trees.zeros_like(net.params)}
    for _ in range(3):
        params, state = adam(params, grad(loss)(params), state)
    net = dataclasses.replace(net, params=params)
    grown = grown_of(net, zero)
    want, _ = adam(params, grad(loss)(params), state)
    got, carried = adam(grown, grad(loss)(grown), growth.grow_like(state, params, grown))
    assert carried["step"] == 4
    for a, b in zip(optree.tree_leaves(got), optree.tree_leaves(want), strict=True):
        close(a[tuple(slice(0, n) for n in b.shape)], b, 1e-12)


@pytest.mark.parametrize("order", ["insertion", "sorted"])
@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)])
def test_torch_optim(order, make):
    net = network(43, flat=True)
    if order == "sorted":
        net.params["z"] = torch.ones(1, dtype=torch.float64)  # the two orders differ in shapes
    tensors = trees.map(lambda t: t.clone().requires_grad_(), net.params)
    listed = list(tensors.values()) if order == "insertion" else optree.tree_leaves(tensors)
    optimizer = make(listed, lr=0.05)

    def train(optimizer, tensors):
        optimizer.zero_grad()
        y = net.f(tensors, net.x) * tensors.get("z", 1)
        torch.nn.functional.cross_entropy(y, net.target).backward()
        optimizer.step()

    train(optimizer, tensors)
    old = trees.map(torch.Tensor.detach, tensors)
    stats = growth.statistics(net.f, old, net.data, net.pair)
    new = growth.optimal_neurons(stats, 2)
    grown = growth.grow(old, net.pair, trees.map(lambda t: t, new), scale=0.0)
    larger = trees.map(lambda t: t.clone().requires_grad_(), grown)
    listed = list(larger.values()) if order == "insertion" else optree.tree_leaves(larger)
    again = make(listed, lr=0.05)
    state = optimizer.state_dict()
    again.load_state_dict(growth.grow_like(state, old, grown))
    assert state["state"][2]["exp_avg" if make is torch.optim.Adam else "momentum_buffer"].shape != torch.Size([])
    train(optimizer, tensors)
    train(again, larger)
    for k, t in tensors.items():
        close(larger[k].detach()[tuple(slice(0, n) for n in t.shape)], t.detach(), 1e-12)


def test_a_state_dict_of_other_parameters_raises():
    net = network(44)
    state = {"state": {0: {"exp_avg": torch.zeros(77)}}, "param_groups": []}
    with pytest.raises(ValueError, match=r"torch\.optim state dict.*77"):
        growth.grow_like(state, net.params, grown_of(net))


def test_lists_in_leaf_order():
    net = network(45)
    grown = grown_of(net)
    carried = growth.grow_like({"moments": optree.tree_leaves(net.params)}, net.params, grown)
    assert [t.shape for t in carried["moments"]] == [t.shape for t in optree.tree_leaves(grown)]


def test_by_shape_alone():
    params = {"a": {"weight": torch.ones(5, 3)}, "b": {"weight": torch.ones(2, 5)}}
    grown = {"a": {"weight": torch.ones(7, 3)}, "b": {"weight": torch.ones(2, 7)}}
    carried = growth.grow_like({"x": torch.ones(5, 3), "y": torch.ones(4)}, params, grown)
    assert carried["x"].shape == (7, 3)
    assert carried["y"].shape == (4,)
    square = {"a": {"weight": torch.ones(3, 3)}, "b": {"weight": torch.ones(3, 3)}}
    larger = {"a": {"weight": torch.ones(4, 3)}, "b": {"weight": torch.ones(3, 4)}}
    with pytest.raises(ValueError, match=r"x has shape \(3, 3\), which fits \['a.weight', 'b.weight'\]"):
        growth.grow_like({"x": torch.ones(3, 3)}, square, larger)
    by_path = growth.grow_like({"m": square}, square, larger)
    assert [by_path["m"][k]["weight"].shape for k in "ab"] == [(4, 3), (3, 4)]


def test_ensembles():
    net = network(46)
    members = [network(s).params for s in range(3)]
    grown = [grown_of(network(s)) for s in range(3)]
    stacked, larger = trees.stack(members), trees.stack(grown)
    carried = growth.grow_like({"m": stacked, "step": torch.zeros(3)}, stacked, larger)
    trees.check_like(carried["m"], larger, "carried")
    mapped = vmap(lambda s, p, g: growth.grow_like(s, p, g))(stacked, stacked, larger)
    for a, b in zip(optree.tree_leaves(mapped), optree.tree_leaves(carried["m"]), strict=True):
        assert torch.equal(a, b)
    state = torch.optim.Adam(
        optree.tree_leaves(trees.map(lambda t: t.clone().requires_grad_(), net.params))
    ).state_dict()
    assert growth.grow_like(state, net.params, grown[0])["state"] == {}


def test_bad_arguments():
    net = network(47)
    with pytest.raises(ValueError, match="grown: leaves do not match"):
        growth.grow_like({}, net.params, {"hidden": net.params["hidden"]})
    with pytest.raises(ValueError, match=r"grown: .* expected at least"):
        growth.grow_like({}, grown_of(net), net.params)


@given(networks(p=4), st.lists(st.integers(-4, 3), unique_by=lambda i: i % 4, max_size=4))
def test_moments_of_pruned_units_go(net, units):
    state = {
        "opt": [Adam(7, net.params, trees.scale(2.0, net.params)), ()],
        "list": trees.leaves(net.params),
        "lr": 0.1,
        "none": None,
    }
    carried = growth.prune_like(state, net.params, net.pair, units)
    small = growth.prune(net.params, net.pair, units)
    assert type(carried["opt"][0]) is Adam
    assert (carried["opt"][0].step, carried["lr"], carried["none"]) == (7, 0.1, None)
    for got, want in (
        (carried["opt"][0].mu, small),
        (carried["opt"][0].nu, trees.scale(2.0, small)),
        (carried["list"], trees.leaves(small)),
    ):
        for a, b in zip(trees.leaves(got), trees.leaves(want), strict=True):
            assert torch.equal(a, b)


def test_prune_like_undoes_grow_like():
    net = dense()
    grown = growth.widen(net.params, net.pair, 2, "zero_out", torch.Generator().manual_seed(0))
    state = {"m": net.params, "F": matrices(net)["kfac"], "D": matrices(net)["dense"], "s": collect(net, net.params)}
    back = growth.prune_like(growth.grow_like(state, net.params, grown), grown, net.pair, [4, 5])
    for a, b in zip(trees.leaves(back), trees.leaves(state), strict=True):
        assert torch.equal(a, b)
    assert back["F"].layers == state["F"].layers
    assert back["F"].layout == state["F"].layout


def test_pruning_by_score_over_an_ensemble():
    net = dense()
    pair, members = net.pair, trees.stack([dense(seed=s).params for s in range(3)])

    def member(p):
        units = growth.weakest_units(growth.unit_scores(p, pair), keep=3)
        F = fisher.fim(net.f, p, net.x, fisher.PMatKFAC, layers=layers)
        return growth.prune_like({"m": trees.scale(3.0, p), "F": F}, p, pair, units)

    layers = fisher.LayerCollection.from_function(net.f, net.params, net.x)
    mapped = vmap(member)(members)
    loop = trees.stack([member(p) for p in trees.unstack(members)])
    for a, b in zip(trees.leaves(mapped), trees.leaves(loop), strict=True):
        close(a, b, 1e-10)


def test_pruning_by_shape_alone():
    params = {"a": {"weight": torch.ones(5, 3)}, "b": {"weight": torch.ones(2, 5)}, "c": torch.ones(5, 3)}
    pair = growth.Pair("a", "b")
    assert growth.prune_like({"x": torch.ones(2, 5)}, params, pair, [0])["x"].shape == (2, 4)
    with pytest.raises(ValueError, match=r"x has shape \(5, 3\), which fits \['a.weight', 'c'\]"):
        growth.prune_like({"x": torch.ones(5, 3)}, params, pair, [0])


def test_carried_tensors_are_new():
    """Optimizers change their state in place: a carried state must not share memory with the old one."""
    net = dense()
    state = {"m": net.params, "s": collect(net, net.params), "t": torch.tensor(3.0), **matrices(net)}
    same = growth.grow_like(state, net.params, net.params)
    pointers = {t.data_ptr() for t in trees.leaves(state) if t.numel()}
    assert not pointers & {t.data_ptr() for t in trees.leaves(same) if t.numel()}
    for a, b in zip(trees.leaves(same), trees.leaves(state), strict=True):
        assert torch.equal(a, b)


# --- orders ----------------------------------------------------------------------------------------------------------

SQUARE = {"z": torch.ones(4, 4), "a": torch.ones(4, 4)}  # both orders have the shapes
WIDER = {"z": torch.ones(6, 4), "a": torch.ones(4, 6)}


def adam_state(named, *, groups=None):
    optimizer = torch.optim.Adam(groups or named)
    for group in optimizer.param_groups:
        for t in group["params"]:
            t.grad = torch.ones_like(t)
    optimizer.step()
    return optimizer.state_dict()


def trainable(params=SQUARE):
    return {k: t.clone().requires_grad_() for k, t in params.items()}


@pytest.mark.parametrize("order", ["insertion", "leaves", ["a", "z"], [("z",), ("a",)]])
def test_an_order_that_is_given_is_used(order):
    tensors = trainable()
    names = {"insertion": ["z", "a"], "leaves": ["a", "z"]}.get(order, order) if isinstance(order, str) else order
    names = [n if isinstance(n, str) else n[0] for n in names]
    state = growth.grow_like(adam_state([tensors[n] for n in names]), SQUARE, WIDER, order=order)
    assert [state["state"][i]["exp_avg"].shape for i in (0, 1)] == [WIDER[n].shape for n in names]
    listed = growth.grow_like([SQUARE[n] for n in names], SQUARE, WIDER, order=order)
    assert [t.shape for t in listed] == [WIDER[n].shape for n in names]


def test_an_order_is_not_guessed():
    state = adam_state(list(trainable().values()))
    for ambiguous in (state, [torch.ones(4, 4)] * 2):
        with pytest.raises(ValueError, match="order="):
            growth.grow_like(ambiguous, SQUARE, WIDER)
    assert growth.grow_like(state, SQUARE, SQUARE)["state"].keys() == {0, 1}  # nothing to tell apart
    plain = torch.optim.SGD(list(trainable().values())).state_dict()
    assert growth.grow_like(plain, SQUARE, WIDER)["state"] == {}  # nothing to carry


def test_named_parameters_tell_their_order():
    tensors = trainable()
    state = adam_state([(n, tensors[n]) for n in ("a", "z")])
    carried = growth.grow_like(state, SQUARE, WIDER)["state"]
    assert [carried[i]["exp_avg"].shape for i in (0, 1)] == [(4, 6), (6, 4)]


def test_an_optimizer_of_some_parameters():
    params = {"a": torch.ones(4, 4), "b": torch.ones(4, 4), "c": torch.ones(4)}
    grown = {"a": torch.ones(6, 4), "b": torch.ones(4, 6), "c": torch.ones(4)}
    tensors = trainable(params)
    state = adam_state([tensors["b"], tensors["c"]])
    with pytest.raises(ValueError, match="order="):
        growth.grow_like(state, params, grown)
    carried = growth.grow_like(state, params, grown, order=["b", "c"])["state"]
    assert [carried[i]["exp_avg"].shape for i in (0, 1)] == [(4, 6), (4,)]
    two = adam_state(None, groups=[{"params": [tensors["c"]]}, {"params": [tensors["b"]], "lr": 0.1}])
    carried = growth.grow_like(two, params, grown, order=["c", "b"])["state"]
    assert [carried[i]["exp_avg"].shape for i in (0, 1)] == [(4,), (4, 6)]


@pytest.mark.parametrize(
    ("order", "message"), [("sorted", "order: got 'sorted'"), (["a", "y"], r"order: got \['y'\]"), (["a"], "shapes")]
)
def test_orders_that_do_not_fit_raise(order, message):
    with pytest.raises(ValueError, match=message):
        growth.grow_like(adam_state(list(trainable().values())), SQUARE, WIDER, order=order)
