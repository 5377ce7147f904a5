"""swap_parameters: the next step of old entries is the one without growth, for every optimizer; nothing old is kept."""

import copy
import gc

import pytest
import torch
from torch import nn

import growth
from growth.carry.optimizers import swap_parameters
from growth.strategies import network
from linmaps import trees

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}
FIRST_UNITS = ("hidden", "weight", 0), ("hidden", "bias", 0), ("output", "weight", 1)


def setting(seed=0, activation="tanh"):
    net = network(seed, activation=activation, samples=40)
    return net, trees.map(lambda t: t.clone().requires_grad_(), net.params)


def loss_of(net, params):
    return torch.nn.functional.cross_entropy(net.f(params, net.x), net.target)


def train(net, params, optimizer, steps=1):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(net, params)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return trees.map(torch.Tensor.detach, params)


def copied(params, optimizer):
    """Both, the copy of the optimizer for the copy of params."""
    for t in trees.leaves(params):
        t.grad = None
    return copy.deepcopy((params, optimizer))


def old_part(tree, like):
    return trees.map(lambda t, s: t[tuple(slice(0, n) for n in s.shape)], tree, like)


def silent(net, params, k=2):
    """k more units that lead nowhere, with random incoming weights."""
    values = trees.map(torch.Tensor.detach, params)
    return growth.widen(values, net.pair, k, "zero_out", torch.Generator().manual_seed(1))


def close(a, b, tol=1e-12):
    for path, s, t in zip(trees.paths(b), trees.leaves(a), trees.leaves(b), strict=True):
        assert s.shape == t.shape
        assert (s - t).abs().max() <= tol, trees.path_str(path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_next_step_of_old_entries(name):
    net, params = setting()
    optimizer = OPTIMIZERS[name](trees.leaves(params))
    train(net, params, optimizer, 3)
    twin_params, twin = copied(params, optimizer)
    larger = swap_parameters(optimizer, params, silent(net, params))
    assert larger["hidden"]["weight"].shape[0] == 6
    without, grown = train(net, twin_params, twin), train(net, larger, optimizer)
    close(old_part(grown, without), without)
    new = grown["output"]["weight"][:, 4:]
    assert (new != 0).all(), "new entries are trained"
    for key, value in twin.state_dict()["state"].get(0, {}).items():
        other = optimizer.state_dict()["state"][0][key]
        if torch.is_tensor(value) and value.ndim:
            assert value.shape == (4,) or value.shape == twin_params["first"]["bias"].shape
            assert other.shape == larger["first"]["bias"].shape
        else:
            assert torch.as_tensor(other).equal(torch.as_tensor(value)), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruning_what_was_grown_gives_the_same_training(name):
    net, params = setting(1)
    optimizer = OPTIMIZERS[name](trees.leaves(params))
    train(net, params, optimizer, 3)
    twin_params, twin = copied(params, optimizer)
    larger = swap_parameters(optimizer, params, silent(net, params))
    values = trees.map(torch.Tensor.detach, larger)
    again = swap_parameters(optimizer, larger, growth.prune(values, net.pair, [-1, -2]), pair=net.pair, units=[-1, -2])
    close(train(net, again, optimizer, 3), train(net, twin_params, twin, 3), 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruning_a_silent_unit_anywhere(name):
    net, params = setting(2)
    with torch.no_grad():
        for layer, leaf, axis in FIRST_UNITS:
            params[layer][leaf].narrow(axis, 1, 1).zero_()
    hook = params["output"]["weight"].register_hook(lambda g: g * torch.tensor([1.0, 0, 1, 1]))
    optimizer = OPTIMIZERS[name](trees.leaves(params))
    train(net, params, optimizer, 3)
    hook.remove()
    values = trees.map(torch.Tensor.detach, params)
    assert not values["output"]["weight"][:, 1].any()
    pruned = growth.prune(values, net.pair, [1])
    twin_params, twin = copied(params, optimizer)
    smaller = swap_parameters(optimizer, params, pruned, pair=net.pair, units=[1])
    full = train(net, twin_params, twin)
    close(train(net, smaller, optimizer), growth.prune(full, net.pair, [1]))


def test_groups_keep_their_options_and_schedulers_go_on():
    net, params = setting(3)
    groups = [
        {"params": list(params["head"].values()), "lr": 0.02},
        {"params": [params["hidden"]["weight"], params["output"]["weight"]], "weight_decay": 0.1, "name": "weights"},
        {"params": [params["output"]["bias"], params["hidden"]["bias"], *params["first"].values()]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(net, params, optimizer)
    scheduler.step()
    identities = [id(g) for g in optimizer.param_groups]
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    larger = swap_parameters(optimizer, params, silent(net, params))
    assert [id(g) for g in optimizer.param_groups] == identities
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == options
    held = [[id(t) for t in g["params"]] for g in optimizer.param_groups]
    layers = [
        list(larger["head"].values()),
        [larger["hidden"]["weight"], larger["output"]["weight"]],
        [larger["output"]["bias"], larger["hidden"]["bias"], *larger["first"].values()],
    ]
    assert held == [[id(t) for t in group] for group in layers]
    train(net, larger, optimizer)
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.005, 0.0025, 0.0025]


@pytest.mark.parametrize("name", ["adam", "momentum", "lbfgs"])
def test_nothing_refers_to_the_old_tensors(name):
    net, params = setting(4)
    make = OPTIMIZERS.get(name, lambda p: torch.optim.LBFGS(p, lr=0.1))
    optimizer = make(trees.leaves(params))
    train(net, params, optimizer, 2)
    old = {id(t) for t in trees.leaves(params)}
    pointers = {t.data_ptr() for t in trees.leaves(params)}
    larger = swap_parameters(optimizer, params, silent(net, params))

    def reachable(node, seen):
        if id(node) in seen:
            return
        seen.add(id(node))
        yield node
        if isinstance(node, torch.Tensor):
            return
        parts = node.items() if isinstance(node, dict) else [(None, v) for v in node]
        for key, value in parts:
            for child in (key, value):
                if isinstance(child, (dict, list, tuple, set, torch.Tensor)):
                    yield from reachable(child, seen)

    found = [t for t in reachable(vars(optimizer), set()) if isinstance(t, torch.Tensor)]
    assert {id(t) for t in trees.leaves(larger)} <= {id(t) for t in found}
    assert not old & {id(t) for t in found}
    assert not pointers & {t.data_ptr() for t in found}
    assert set(optimizer.state) <= set(trees.leaves(larger))
    gc.collect()
    before = trees.map(lambda t: t.detach().clone(), larger)
    after = train(net, larger, optimizer)
    assert all((a != b).any() for a, b in zip(trees.leaves(before), trees.leaves(after)))


def test_lbfgs():
    net, params = setting(5)
    optimizer = torch.optim.LBFGS(trees.leaves(params), lr=0.5, max_iter=4, history_size=5)
    train(net, params, optimizer, 2)
    twin_params = trees.map(lambda t: t.detach().clone().requires_grad_(), params)
    twin = torch.optim.LBFGS(trees.leaves(twin_params), lr=0.5, max_iter=4, history_size=5)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # a copy of it does not work
    values = trees.map(torch.Tensor.detach, params)
    dead = growth.grow_like(values, values, silent(net, params))  # zero on both sides: no gradient at tanh
    larger = swap_parameters(optimizer, params, dead)
    close(old_part(train(net, larger, optimizer, 2), twin_params), train(net, twin_params, twin, 2))
    vectors = optimizer.state_dict()["state"][0]
    assert vectors["d"].shape == vectors["prev_flat_grad"].shape == (sum(t.numel() for t in trees.leaves(larger)),)
    start = loss_of(net, larger).item()
    more = swap_parameters(optimizer, larger, silent(net, larger))
    train(net, more, optimizer, 5)
    assert loss_of(net, more) < start


def test_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
            self.a.bias.requires_grad_(False)

    model = Net()
    params = dict(model.named_parameters()) | dict(model.named_buffers())
    held = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(held)
    values = trees.map(torch.Tensor.detach, params)
    grown = growth.widen(values, growth.Pair("a", "b", norm="n"), 2)
    larger = swap_parameters(optimizer, params, grown)
    assert all(isinstance(larger[k], nn.Parameter) for k, _ in model.named_parameters())
    assert not any(isinstance(larger[k], nn.Parameter) for k, _ in model.named_buffers())
    assert not larger["a.bias"].requires_grad
    assert not larger["n.running_mean"].requires_grad
    assert larger["n.running_mean"].shape == larger["n.weight"].shape == (6,)
    assert [tuple(t.shape) for t in optimizer.param_groups[0]["params"]] == [(6, 3), (6,), (6,), (2, 6), (2,)]
    assert not any(t is s for t in trees.leaves(larger) for s in trees.leaves(grown))
    for k in grown:
        assert torch.equal(larger[k], grown[k])


def test_tied_tensors_stay_tied():
    w = torch.ones(2, 2, requires_grad=True)
    params = {"a": w, "b": w, "c": torch.ones(3, requires_grad=True)}
    optimizer = torch.optim.SGD([w, params["c"]], lr=0.1, momentum=0.9)
    grown = {"a": torch.ones(3, 2), "b": torch.ones(3, 2), "c": torch.ones(3)}
    with pytest.raises(ValueError, match="b: is one tensor with another leaf"):
        swap_parameters(optimizer, params, grown | {"b": torch.ones(4, 2)})
    assert optimizer.param_groups[0]["params"][0] is w
    larger = swap_parameters(optimizer, params, grown)
    assert larger["a"] is larger["b"] is optimizer.param_groups[0]["params"][0]


def test_other_tensors_of_the_optimizer_stay():
    net, params = setting(6)
    other = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.Adam([*trees.leaves(params), other], lr=0.1)
    (loss_of(net, params) + other.sum()).backward()
    optimizer.step()
    before = optimizer.state[other]["step"].clone()
    assert before == 1
    swap_parameters(optimizer, params, silent(net, params))
    assert optimizer.param_groups[0]["params"][-1] is other
    assert optimizer.state[other]["step"] == before


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adagrad", "adamax", "rprop"])
def test_fill_with_the_mean(name):
    net, params = setting(7)
    first, second = [], []
    for fill in ("zero", "mean"):
        mine = trees.map(lambda t: t.detach().clone().requires_grad_(), params)
        optimizer = OPTIMIZERS[name](trees.leaves(mine))
        train(net, mine, optimizer, 20)
        old = trees.map(lambda t: t.detach().clone(), mine)
        larger = swap_parameters(optimizer, mine, silent(net, mine), fill=fill)
        start = trees.map(lambda t: t.detach().clone(), larger)
        move = trees.sub(train(net, larger, optimizer), start)
        first.append(move["output"]["weight"][:, 4:].abs().max().item())
        second.append(old_part(move, old))
    close(second[0], second[1])
    assert first[1] > 0
    if name == "rprop":
        assert first[0] < 1e-5 < first[1]  # from the smallest step there is
    else:
        assert first[1] < first[0]


def test_size_of_adams_first_step_of_new_entries():
    """(1 - beta1) / sqrt(1 - beta2) times the learning rate, as the docstring of grow_like says."""
    net, params = setting(8)
    optimizer = torch.optim.Adam(trees.leaves(params), lr=0.01, eps=0)
    train(net, params, optimizer, 2)
    for state in optimizer.state.values():
        state["step"].fill_(1e6)
    larger = swap_parameters(optimizer, params, silent(net, params))
    start = larger["output"]["weight"].detach().clone()
    move = (train(net, larger, optimizer)["output"]["weight"] - start)[:, 4:]
    assert (move.abs() - 0.01 * 0.1 / 0.001**0.5).abs().max() < 1e-6


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.LBFGS])
def test_state_dict_and_swap_agree(make):
    net, params = setting(9)
    optimizer = make(trees.leaves(params), lr=0.01)
    train(net, params, optimizer, 2)
    values, grown = trees.map(torch.Tensor.detach, params), silent(net, params)
    for fill in ("zero", "mean"):
        lists = trees.leaves(values), trees.leaves(grown)
        state = growth.grow_like(copy.deepcopy(optimizer.state_dict()), *lists, fill=fill)
        twin = make(trees.leaves(params), lr=0.01)
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        swap_parameters(twin, params, grown, fill=fill)
        other = twin.state_dict()
        assert other["param_groups"] == state["param_groups"]
        for i, entry in state["state"].items():
            same = zip(trees.leaves(entry), trees.leaves(other["state"][i]), strict=True)
            assert all(torch.equal(torch.as_tensor(s), torch.as_tensor(t)) for s, t in same)
            sizes = {t.shape for t in trees.leaves(entry) if isinstance(t, torch.Tensor) and t.ndim}
            assert sizes == ({(sum(t.numel() for t in trees.leaves(grown)),)} if make is torch.optim.LBFGS else sizes)


def test_order_of_a_flat_vector_is_not_guessed():
    net, params = setting(11)
    optimizer = torch.optim.LBFGS(trees.leaves(params), lr=0.01)
    train(net, params, optimizer)
    values = trees.map(torch.Tensor.detach, params)
    with pytest.raises(ValueError, match=r"L-BFGS .* of unknown order"):
        growth.grow_like(optimizer.state_dict(), values, silent(net, params))


def test_bad_arguments():
    net, params = setting(10)
    optimizer = torch.optim.Adam(trees.leaves(params))
    train(net, params, optimizer)
    grown = silent(net, params)
    untouched = [id(t) for t in optimizer.param_groups[0]["params"]]
    copies = trees.map(lambda t: t.detach().clone(), params)
    with pytest.raises(TypeError, match="optimizer: got dict"):
        swap_parameters({}, params, grown)
    with pytest.raises(ValueError, match="holds none of the tensors of params"):
        swap_parameters(optimizer, copies, grown)
    with pytest.raises(ValueError, match=r"grown: .* expected at least.*prune_like"):
        swap_parameters(optimizer, params, growth.prune(copies, net.pair, [0]))
    with pytest.raises(ValueError, match="pair, units: got one of them"):
        swap_parameters(optimizer, params, grown, pair=net.pair)
    with pytest.raises(ValueError, match=r"pruned: hidden.bias has shape \(6,\), expected \(3,\)"):
        swap_parameters(optimizer, params, grown, pair=net.pair, units=[0])
    with pytest.raises(ValueError, match="fill: got 'ones'"):
        swap_parameters(optimizer, params, grown, fill="ones")
    some = torch.optim.SGD([params["first"]["weight"]], lr=0.1)
    with pytest.raises(ValueError, match=r"hidden.bias: is resized and requires grad, but the optimizer does not hold"):
        swap_parameters(some, params, grown)
    optimizer.state[params["hidden"]["weight"]]["rows"] = torch.ones(len(params["hidden"]["weight"]))
    with pytest.raises(ValueError, match=r"state: rows of hidden.weight \(4, \d\), .* start such state anew"):
        swap_parameters(optimizer, params, grown)
    assert [id(t) for t in optimizer.param_groups[0]["params"]] == untouched
    assert len(optimizer.state) == len(untouched)
