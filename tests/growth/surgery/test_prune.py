"""prune: the inverse of growth, by index, mask and score; least-squares compensation; out and back bit by bit."""

import dataclasses

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.func import vmap

import fisher
import growth
from fisher.recipes import pruning_scores, unit_mask, unit_scores
from growth.reading.layers import layers_of
from growth.strategies import SHIFTED, network, networks
from linmaps import trees
from tests.growth.oracle import clear, close, leaf, rows
from tests.growth.rows_surgery import NETS, Net, convolutions, dense, flattened


def same(a, b):
    assert trees.paths(a) == trees.paths(b)
    for path, s, t in zip(trees.paths(a), trees.leaves(a), trees.leaves(b)):
        assert torch.equal(s, t), trees.path_str(path)


@given(networks(), st.integers(0, 4))
def test_prune_undoes_growth(net, k):
    new = growth.optimal_neurons(growth.statistics(net.f, net.params, net.data, net.pair, net.loss), k)
    new = dataclasses.replace(new, sigma0=0 * new.sigma0)
    p = leaf(net, net.params, "hidden", "weight").shape[0]
    grown = growth.grow(net.params, net.pair, new)
    same(growth.prune(grown, net.pair, range(p, p + k)), net.params)
    same(growth.prune(grown, net.pair, torch.arange(p, p + k)), net.params)
    same(growth.prune(grown, net.pair, torch.arange(p + k) >= p), net.params)


@pytest.mark.parametrize("name", [*SHIFTED, "flattened", "kernels"])
@pytest.mark.parametrize("scale", [1.0, (0.0, 0.3)])
def test_prune_gives_the_constant_back(name, scale):
    """Where σ(0) != 0, of dense layers, of a flattened map and of a convolution with its kernel; and of a whole step."""
    net = {"flattened": lambda: flattened(torch.sigmoid), "kernels": kernels}.get(name, lambda: dense(name))()
    x, target = net.x, torch.arange(len(net.x)) % net.f(net.params, net.x).shape[-1]
    stats = growth.statistics(net.f, net.params, (x, target), net.pair)
    new = growth.optimal_neurons(stats, 2, "gradient")
    assert new.sigma0 != 0
    made = growth.step(net.f, net.params, (x, target), net.pair, 2, scale=scale, delta=False)
    for grown in (growth.grow(net.params, net.pair, new, scale=scale), made.params):
        plain = growth.prune(grown, net.pair, [-1, -2])
        back = growth.prune(grown, net.pair, [-2, -1], sigma0=new.sigma0)
        for got, want in zip(trees.leaves(back), trees.leaves(net.params), strict=True):
            close(got, want, 1e-12)
        assert (net.f(plain, x) - net.f(net.params, x)).abs().max() > 1e-6
        same(growth.prune(grown, net.pair, [-2, -1], sigma0=float(new.sigma0), f=net.f, x=x), back)
    for options, words in (({"stats": stats}, "beside stats"), ({"sigma0": torch.nan}, "sigma0: got nan")):
        with pytest.raises(ValueError, match=words):
            growth.prune(net.params, net.pair, [0], **({"sigma0": 0.5} | options))


def kernels():
    g = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv1d(2, 3, 2), torch.nn.Sigmoid(), torch.nn.Conv1d(3, 2, 3), torch.nn.Flatten()
    )
    f, params = fisher.functional(model.double())
    params = {k: torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in params.items()}
    return Net(f, params, growth.Pair("0", "2"), torch.randn(7, 2, 5, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("kind", NETS)
def test_a_pruned_unit_is_one_without_outgoing_weights(kind):
    net = NETS[kind]()
    _, after = layers_of(net.params, net.pair)
    p = after.weight.shape[1] // after.columns
    for units in ([], [1], [p - 1, 0], [-1]):
        gone = torch.zeros(p, dtype=torch.bool)
        gone[list(units)] = True
        weight = after.weight.clone()
        weight[:, gone.repeat_interleave(after.columns)] = 0
        silent = trees.replace(net.params, after.weight_path, weight)
        small = growth.prune(net.params, net.pair, units)
        close(net.f(small, net.x), net.f(silent, net.x), 1e-12)
        assert layers_of(small, net.pair)[0].weight.shape[0] == p - len(units)
        same(growth.prune(net.params, net.pair, gone), small)


@pytest.mark.parametrize("kind", NETS)
@given(seed=st.integers(0, 100))
def test_out_and_back(kind, seed):
    net = NETS[kind]()
    p = layers_of(net.params, net.pair)[0].weight.shape[0]
    generator = torch.Generator().manual_seed(seed)
    units = torch.randperm(p, generator=generator)[: seed % p]
    small, removed = growth.cut(net.params, net.pair, units)
    same(small, growth.prune(net.params, net.pair, units))
    same(growth.restore(small, net.pair, removed), net.params)
    trained = trees.map(lambda t: t + 1, small)
    back = growth.restore(trained, net.pair, removed)
    same(growth.prune(back, net.pair, removed.units), trained)


def test_out_and_back_over_an_ensemble():
    members = trees.stack([dense(seed=s).params for s in range(3)])
    pair, units = dense().pair, torch.tensor([[0, 3], [2, 1], [3, 2]])
    small, removed = vmap(lambda p, u: growth.cut(p, pair, u))(members, units)
    same(vmap(lambda p, r: growth.restore(p, pair, r))(small, removed), members)
    loop = [growth.prune(p, pair, u.tolist()) for p, u in zip(trees.unstack(members), units)]
    same(small, trees.stack(loop))


# --- compensation ------------------------------------------------------------------------------------------------


def hidden_rows(net: object) -> torch.Tensor:
    """b1 of all samples, with a last 1."""
    return rows(net)[1]


def output_error(net, params, other):
    """Mean square of the change of the output of `after`, by its definition."""

    def outputs(p):
        z = torch.tanh(net.x @ leaf(net, p, "first", "weight").mT + leaf(net, p, "first", "bias"))
        bias = leaf(net, p, "hidden", "bias")
        z = net.activation(z @ leaf(net, p, "hidden", "weight").mT + (0 if bias is None else bias))
        bias = leaf(net, p, "output", "bias")
        return z @ leaf(net, p, "output", "weight").mT + (0 if bias is None else bias)

    return (outputs(params) - outputs(other)).square().sum(-1).mean()


@given(networks(p=4, positions=0), st.lists(st.integers(0, 3), unique=True, min_size=1, max_size=3))
def test_compensation_is_least_squares(net, units):
    stats = growth.statistics(net.f, net.params, net.data, net.pair, net.loss)
    plain = growth.prune(net.params, net.pair, units)
    better = growth.prune(net.params, net.pair, units, stats=stats)
    b1 = hidden_rows(net)
    kept = [j for j in range(b1.shape[1]) if j not in units]
    assume(clear(b1[:, kept]))
    target = b1[:, units] @ leaf(net, net.params, "output", "weight")[:, units].mT
    move = torch.linalg.lstsq(b1[:, kept], target, driver="gelsd").solution
    least = (target - b1[:, kept] @ move).square().sum(-1).mean()
    got = output_error(net, better, net.params)
    assert abs(got - least) < 1e-9 * max(1.0, target.square().sum(-1).mean().item())
    assert got <= output_error(net, plain, net.params) + 1e-12
    for name in ("hidden", "first"):
        assert torch.equal(leaf(net, better, name, "weight"), leaf(net, plain, name, "weight"))


def test_compensation_lowers_the_error_by_much():
    net = network(5, p=4, samples=40, activation="softplus")
    stats = growth.statistics(net.f, net.params, net.data, net.pair, net.loss)
    errors = [
        output_error(net, growth.prune(net.params, net.pair, [1], stats=s), net.params).item() for s in (None, stats)
    ]
    assert errors[1] < 0.05 * errors[0]


@pytest.mark.parametrize("kind", ["dense", "flat", "convolutions", "flattened"])
def test_compensation_is_exact_for_duplicates(kind):
    net = NETS[kind]()
    wide = growth.widen(net.params, net.pair, 2, units=[0, 1])
    p = layers_of(net.params, net.pair)[0].weight.shape[0]
    target = torch.zeros(len(net.x), dtype=torch.long)
    stats = growth.statistics(net.f, wide, (net.x, target), net.pair)
    for units in ([0, 1], [p, p + 1], [p, 1]):
        small = growth.prune(wide, net.pair, units, stats=stats)
        close(net.f(small, net.x), net.f(net.params, net.x), 1e-9)
        plain = growth.prune(wide, net.pair, units)
        assert (net.f(plain, net.x) - net.f(net.params, net.x)).abs().max() > 1e-4


def test_the_bias_takes_over_a_constant_unit():
    net = dense("sigmoid", (True, True))
    params = trees.replace(
        net.params, "hidden.weight", net.params["hidden"]["weight"] * torch.tensor([1, 0, 1, 1])[:, None]
    )
    stats = growth.statistics(net.f, params, (net.x, torch.zeros(len(net.x)).long()), net.pair)
    small = growth.prune(params, net.pair, [1], stats=stats)
    close(net.f(small, net.x), net.f(params, net.x), 1e-9)


def test_ridge_tends_to_plain_pruning():
    net = network(6, samples=30)
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    plain, ridged = (growth.prune(net.params, net.pair, [0], **o) for o in ({}, {"stats": stats, "ridge": 1e12}))
    close(ridged["output"]["weight"], plain["output"]["weight"], 1e-9)


# --- scores ------------------------------------------------------------------------------------------------------


@given(networks(p=4))
def test_scores_by_their_definition(net):
    U, W = leaf(net, net.params, "hidden", "weight"), leaf(net, net.params, "output", "weight")
    c = leaf(net, net.params, "hidden", "bias")
    c = torch.zeros(4, dtype=U.dtype) if c is None else c
    want = torch.stack([(U[j].square().sum() + c[j] ** 2).sqrt() * W[:, j].norm() for j in range(4)])
    close(growth.unit_scores(net.params, net.pair), want, 1e-12)
    stats = growth.statistics(net.f, net.params, net.data, net.pair, net.loss)
    b1 = hidden_rows(net)[:, :4]
    want = torch.stack([(b1[:, j].square().sum() / len(net.x)).sqrt() * W[:, j].norm() for j in range(4)])
    close(growth.unit_scores(net.params, net.pair, stats=stats), want, 1e-9)


def test_scores_with_statistics_are_what_pruning_costs():
    net = network(8, p=4, samples=25)
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    scores = growth.unit_scores(net.params, net.pair, stats=stats)
    for j in range(4):
        cost = output_error(net, growth.prune(net.params, net.pair, [j]), net.params).sqrt()
        close(scores[j], cost, 1e-9)


def test_scores_of_convolutions():
    net = convolutions()
    a, b = net.params["a"], net.params["b"]
    want = (a["weight"].flatten(1).square().sum(1) + a["bias"] ** 2).sqrt() * b["weight"].transpose(0, 1).flatten(
        1
    ).norm(dim=1)
    close(growth.unit_scores(net.params, net.pair), want, 1e-12)
    net = flattened()
    stats = growth.statistics(net.f, net.params, (net.x, torch.zeros(len(net.x)).long()), net.pair)
    z = torch.relu(torch.nn.functional.conv1d(net.x, net.params["net.a.weight"], net.params["net.a.bias"], padding=1))
    W = net.params["net.b.weight"].unflatten(1, (3, 5))
    want = torch.einsum("nps,qps->npq", z, W).square().sum(2).mean(0).sqrt()
    close(growth.unit_scores(net.params, net.pair, stats=stats), want, 1e-9)


def test_weakest_units():
    scores = torch.tensor([2.0, 5.0, 2.0, 1.0, 7.0])
    assert [growth.weakest_units(scores, keep=k).tolist() for k in (5, 3, 2, 0)] == [
        [],
        [2, 3],
        [0, 2, 3],
        [0, 1, 2, 3, 4],
    ]
    many = torch.stack([scores, -scores])
    assert vmap(lambda s: growth.weakest_units(s, keep=2))(many).tolist() == [[0, 2, 3], [1, 2, 4]]
    with pytest.raises(ValueError, match="keep: got 6, expected an int from 0 to 5"):
        growth.weakest_units(scores, keep=6)
    with pytest.raises(ValueError, match=r"scores: got shape \(2, 5\)"):
        growth.weakest_units(many, keep=1)


def test_by_score_over_an_ensemble():
    nets = [dense(seed=s) for s in range(4)]
    pair = nets[0].pair
    small = lambda p: growth.prune(p, pair, growth.weakest_units(growth.unit_scores(p, pair), keep=2))
    same(vmap(small)(trees.stack([n.params for n in nets])), trees.stack([small(n.params) for n in nets]))
    for n in nets:
        kept = small(n.params)["hidden"]["weight"]
        order = growth.unit_scores(n.params, pair).topk(2).indices.sort().values
        assert torch.equal(kept, n.params["hidden"]["weight"][order])


def test_by_fisher_score():
    net = network(9, p=5, samples=30)
    layers = fisher.LayerCollection.from_function(net.f, net.params, net.x)
    F = fisher.fim(net.f, net.params, net.x, fisher.PMatDiag, layers=layers)
    scores = unit_scores(pruning_scores(F, net.params), layers)["hidden"]
    units = growth.weakest_units(scores, keep=3)
    small = growth.prune(net.params, net.pair, units)
    mask = torch.ones(5, dtype=torch.float64)
    mask[units] = 0
    masked = trees.map(torch.mul, net.params, unit_mask({"hidden": mask}, layers, net.params))
    close(net.f(small, net.x), net.f(masked, net.x), 1e-12)
    assert scores[units].max() <= scores[mask > 0].min()


# --- errors ------------------------------------------------------------------------------------------------------


def test_bad_arguments():
    net = dense()
    with pytest.raises(ValueError, match=r"units: got .*7.*, expected indices .* of 4 units"):
        growth.prune(net.params, net.pair, [7])
    with pytest.raises(ValueError, match="expected each unit once"):
        growth.prune(net.params, net.pair, [1, -3])
    with pytest.raises(TypeError, match=r"units: got torch.float64"):
        growth.prune(net.params, net.pair, torch.ones(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="outside of transforms"):
        vmap(lambda m: growth.prune(net.params, net.pair, m))(torch.eye(4) > 0)
    with pytest.raises(TypeError, match="stats: got dict"):
        growth.prune(net.params, net.pair, [0], stats={})
    other = network(1, p=3)
    stats = growth.statistics(other.f, other.params, other.data, other.pair)
    for call in (growth.unit_scores, lambda p, pair, stats: growth.prune(p, pair, [0], stats=stats)):
        with pytest.raises(ValueError, match=r"stats.S has shape \(4, 4\), expected \(5, 5\) for output.weight"):
            call(net.params, net.pair, stats=stats)
    small, removed = growth.cut(net.params, net.pair, [0])
    with pytest.raises(TypeError, match="removed: got list"):
        growth.restore(small, net.pair, [removed])
    with pytest.raises(ValueError, match="entries of 3 leaves, expected 2"):
        growth.restore({k: {"weight": v["weight"]} for k, v in small.items()}, net.pair, removed)
    neighbour = growth.Pair("first", "hidden")
    with pytest.raises(ValueError, match=r"hidden.weight: removed entries have shape \(1, 3\), expected \(1, 2\)"):
        growth.restore(growth.prune(small, neighbour, [0]), net.pair, removed)
    with pytest.raises(ValueError, match="ridge: got -1"):
        growth.prune(net.params, net.pair, [0], stats=growth.statistics(*_data(net), net.pair), ridge=-1)


def _data(net):
    return net.f, net.params, (net.x, torch.zeros(len(net.x)).long())


def test_all_units():
    net = dense()
    none, removed = growth.cut(net.params, net.pair, range(4))
    assert none["hidden"]["weight"].shape == (0, 3)
    assert none["output"]["weight"].shape == (3, 0)
    same(growth.restore(none, net.pair, removed), net.params)
    stats = growth.statistics(*_data(net), net.pair)
    mean = growth.prune(net.params, net.pair, range(4), stats=stats)
    hidden = net.params["output"]["bias"] + net.params["output"]["weight"] @ stats.S[:4, 4]
    close(mean["output"]["bias"], hidden, 1e-9)
    assert growth.unit_scores(none, net.pair).shape == (0,)


def test_float32_stays():
    net = dense()
    single = trees.map(torch.Tensor.float, net.params)
    stats = growth.statistics(*_data(net), net.pair)
    for t in trees.leaves(growth.prune(single, net.pair, [0], stats=stats)):
        assert t.dtype == torch.float32
    assert growth.unit_scores(single, net.pair).dtype == torch.float32
