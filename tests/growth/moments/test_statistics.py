"""Statistics: equal the products of rows found by one backward per sample; do not depend on batching."""

import copy
import io

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap
from torch.nn import functional as F

import growth
from fisher import LayerCollection
from growth.moments.first_order import MEANS
from growth.strategies import ACTIVATIONS, network, networks
from linmaps import trees
from tests.growth.oracle import close, rows


def collect(net, data=None, **options):
    return growth.statistics(net.f, net.params, net.data if data is None else data, net.pair, net.loss, **options)


def same(a, b, tol=1e-12):
    for n in MEANS:
        close(getattr(a, n), getattr(b, n), tol)


@given(networks())
def test_equal_direct_products(net):
    b2, b1, g = rows(net)
    n, s = net.x.shape[0], collect(net)
    for got, left, right in [
        (s.S, b1, b1),
        (s.M, b1, g),
        (s.S_prev, b2, b2),
        (s.M_prev, b2, g),
        (s.P, b2, b1),
        (s.E, g, g),
    ]:
        close(got, left.T @ right / n, 1e-12)
    assert s.count == n
    assert s.positions == len(g)
    assert (s.bias_before, s.bias_after) == net.bias


@given(networks(), st.integers(0, 12), st.permutations(range(12)))
def test_batching_order_and_repetition_change_nothing(net, cut, order):
    order = torch.tensor([i for i in order if i < len(net.x)])
    x, t = net.x[order], net.target[order]
    whole = collect(net)
    same(collect(net, [(x[:cut], t[:cut]), (x[cut:], t[cut:])]), whole)  # empty batches among them
    same(collect(net, [net.data, net.data]), whole)
    assert collect(net, [net.data, net.data]).count == 2 * len(x)


@given(networks(samples=8), st.integers(1, 7))
def test_addition_merges(net, cut):
    parts = [collect(net, (net.x[:cut], net.target[:cut])), collect(net, (net.x[cut:], net.target[cut:]))]
    merged, whole = parts[0] + parts[1], collect(net)
    same(merged, whole)
    assert merged.count == whole.count
    assert merged.positions == whole.positions
    assert merged.pair == whole.pair


def test_the_mean_of_a_batch_is_never_used():
    net = network(3)
    halved = lambda y, t: F.cross_entropy(y, t, reduction="none")
    same(growth.statistics(net.f, net.params, net.data, net.pair, halved), collect(net))
    with pytest.raises(ValueError, match=r"one loss per sample.*reduction=\"none\""):
        growth.statistics(net.f, net.params, net.data, net.pair, F.cross_entropy)


@pytest.mark.parametrize(
    ("name", "plus", "minus"),
    [
        ("identity", 1, 1),
        ("tanh", 1, 1),
        ("gelu", 0.5, 0.5),
        ("selu", 1.0507009873554805, 1.7580993408473766),
        ("relu", 1, 0),
        ("leaky_relu", 1, 0.2),
        ("sigmoid", 0.25, 0.25),
        ("softplus", 0.5, 0.5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_of_the_activation(name, plus, minus, dtype):
    s = collect(network(activation=name, dtype=dtype))
    want = [plus, minus, ACTIVATIONS[name](torch.zeros((), dtype=dtype)).item()]
    for got, value in zip((s.slope_plus, s.slope_minus, s.sigma0), want):
        assert got.dtype == dtype
        assert abs(got.item() - value) <= (1e-6 if dtype == torch.float32 else 1e-12)


def test_an_activation_given_is_the_one_that_is_read():
    net = network(activation="gelu")
    s = growth.statistics(net.f, net.params, net.data, growth.Pair("hidden", "output", activation=F.gelu))
    assert (s.slope_plus, s.slope_minus) == (0.5, 0.5)
    same(s, collect(net))


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_a_constant_that_nothing_compensates_raises(name):
    net = network(activation=name, bias=(True, False))
    with pytest.raises(ValueError, match=r"0 or a bias.*give output a bias"):
        collect(net)
    stacked = trees.stack([net.params, net.params])
    with pytest.raises(ValueError, match="give output a bias"):
        vmap(lambda p: growth.statistics(net.f, p, net.data, net.pair))(stacked)


def test_a_list_of_pairs_is_one_pass():
    net = network(4, q=4)
    calls = []

    def f(p, x):
        calls.append(1)
        return net.f(p, x)

    pairs = [growth.Pair("hidden", "output"), growth.Pair("first", "hidden"), growth.Pair("output", "head")]
    alone = [growth.statistics(net.f, net.params, net.data, p) for p in pairs]
    layers = LayerCollection.from_function(net.f, net.params, net.x)
    together = growth.statistics(f, net.params, [net.data, net.data], pairs, layers=layers)
    assert len(calls) == 6 + len(pairs)  # the first batch: is f random, what stands between, and one more unit of each
    for a, b in zip(together, alone, strict=True):
        same(a, b)
        assert a.pair == b.pair


@pytest.mark.parametrize("positions", [0, 3, 32])
@pytest.mark.parametrize("inner", ["batch first", "positions first", "one long row"])
def test_large_batches_in_any_layout(positions, inner):
    """The layers are found from a few samples; what is inside f may put the examples on another axis."""
    net = network(64, samples=70, positions=positions)

    def f(p, x):
        if not positions or inner == "batch first":
            return net.f(p, x)
        if inner == "positions first":
            return net.f(p, x.transpose(0, 1)).transpose(0, 1)
        return net.f(p, x.reshape(-1, 3)).reshape(*x.shape[:2], 4)

    s = growth.statistics(f, net.params, net.data, net.pair)
    b2, b1, g = rows(net)
    close(s.M, b1.T @ g / 70, 1e-12)
    close(s.P, b2.T @ b1 / 70, 1e-12)
    assert (s.count, s.positions) == (70, len(g))


def test_ensemble_equals_loop():
    nets = [network(seed, activation="gelu") for seed in range(3)]
    stacked = trees.stack([n.params for n in nets])
    net = nets[0]
    together = vmap(lambda p: growth.statistics(net.f, p, net.data, net.pair))(stacked)
    for i, n in enumerate(nets):
        one = growth.statistics(net.f, n.params, net.data, net.pair)
        for a, b in zip(optree.tree_leaves(together), optree.tree_leaves(one), strict=True):
            close(a[i], b, 1e-10)


def test_data_can_be_mapped_too():
    net = network(positions=3)
    x, t = torch.stack([net.x, net.x.flip(0) + 1]), torch.stack([net.target, net.target.flip(0)])
    together = vmap(lambda x, t: growth.statistics(net.f, net.params, (x, t), net.pair).M)(x, t)
    close(together[1], collect(net, (x[1], t[1])).M, 1e-12)


def test_width_zero():
    net = network(p=0)
    s = collect(net)
    assert s.S.tolist() == [[1.0]]
    close(s.M[0], rows(net)[2].mean(0), 1e-12)
    assert collect(network(p=0, bias=(False, False))).S.shape == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_and_half_precision(dtype):
    s, want = collect(network(dtype=dtype)), collect(network())
    assert {t.dtype for t in optree.tree_leaves(s)} == {torch.float32}
    same(trees.map(torch.Tensor.double, s), want, 1e-5 if dtype == torch.float32 else 3e-2)


def test_ignored_positions_do_not_count():
    net = network(positions=3)
    target = net.target.clone()
    target[:, 2] = -100
    short = collect(net, (net.x[:, :2], target[:, :2]))
    close(collect(net, (net.x, target)).M, short.M, 1e-12)


def test_the_record_is_saved_and_copied():
    s = collect(network())
    file = io.BytesIO()
    torch.save(s, file)
    file.seek(0)
    again = torch.load(file)
    assert again.pair == s.pair
    assert again.bias_after is True
    same(copy.deepcopy(again), s, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t: [(x, t), (torch.full_like(x, torch.nan), t)], "batch 1: x: .*NaN"),
        (lambda x, t: (x * torch.inf, t), "batch 0: x"),
        (lambda x, t: (x, t + 9), "classes from"),
        (lambda x, t: (x, t.double()), "expected integer classes"),
        (lambda x, t: (x, t[:-1]), "expected integer classes"),
        (lambda x, t: x, "NoneType, expected integer classes"),
        (lambda x, t: [(x[:0], t[:0])], "only empty batches"),
        (lambda x, t: [], "no batch"),
    ],
)
def test_bad_data(change, message):
    net = network()
    with pytest.raises(ValueError, match=message):
        collect(net, change(net.x, net.target))


def test_overflow_in_the_network_is_named():
    net = network(dtype=torch.float32)
    f = lambda p, x: net.f(p, x) * 1e30
    layers = LayerCollection.from_function(f, net.params, net.x)
    data = net.x, torch.zeros(12, 4)
    with pytest.raises(ValueError, match=r"batch 0: x and target are finite but the statistics .*'M'"):
        growth.statistics(f, net.params, data, net.pair, "squared_error", layers=layers)
    loose = growth.statistics(f, net.params, data, net.pair, "squared_error", layers=layers, check_finite=False)
    assert not loose.M.isfinite().all()


def test_merging_other_statistics_raises():
    a, b = collect(network()), collect(network(p=3))
    with pytest.raises(ValueError, match="shape"):
        a + b
    net = network(p=3, q=3)
    with pytest.raises(ValueError, match="expected one of Pair"):
        collect(net) + growth.statistics(net.f, net.params, net.data, growth.Pair("first", "hidden"))
