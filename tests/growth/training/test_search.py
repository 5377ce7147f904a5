"""The search: losses are those of the grown network, never worse than no growth, and close to the best of a dense grid."""

import pytest
import torch
from hypothesis import given
from torch.func import grad, vmap

import growth
from growth.strategies import network, networks
from linmaps import trees
from tests.growth import oracle


def prepare(net, params=None, k=2):
    params = net.params if params is None else params
    stats = growth.statistics(net.f, params, net.data, net.pair, net.loss)
    new = growth.choose_sign(net.f, params, net.data, net.pair, growth.optimal_neurons(stats, k), net.loss)
    return new, growth.optimal_delta(stats)


def search(net, new, delta, params=None, **options):
    params = net.params if params is None else params
    return growth.line_search(net.f, params, net.data, net.pair, new, delta, net.loss, **options)


@given(networks())
def test_the_loss_found_is_that_of_the_grown_network_and_not_above_the_start(net):
    new, delta = prepare(net)
    found = search(net, new, delta)
    assert found.losses.shape == (56,)
    grown = growth.grow(net.params, net.pair, new, delta=delta, scale=found.scale)
    oracle.close(found.loss, oracle.mean_loss(net, grown), 1e-9)
    oracle.close(found.start, oracle.mean_loss(net, net.params), 1e-9)
    assert found.loss <= found.start
    assert found.loss == found.losses.min()


@pytest.mark.parametrize("seed", range(3))
def test_close_to_the_minimum_of_a_dense_grid(seed):
    net = network(seed, samples=60, activation="relu", p=3)
    new, delta = prepare(net)
    found = search(net, new, delta)
    dense = search(net, new, delta, grid=[2.0**i for i in range(-6, 8)])
    start, best = found.start.item(), dense.losses.min().item()
    assert found.loss.item() <= best + 0.01 * (start - best)


def test_exact_refit_of_a_quadratic_problem_is_found():
    f = lambda p, x: x @ p["a.weight"].T @ p["b.weight"].T
    x, y = (torch.randn(20, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (3, 2))
    params = {"a.weight": torch.eye(3, dtype=torch.float64), "b.weight": torch.zeros(2, 3, dtype=torch.float64)}
    pair = growth.Pair("a", "b")
    delta = growth.optimal_delta(growth.statistics(f, params, (x, y), pair, "squared_error"))
    found = growth.line_search(f, params, (x, y), pair, None, delta, "squared_error")
    assert [t.item() for t in found.scale] == [1.0, 0.0]
    assert len(found.losses) == 14


def test_a_step_that_does_not_help_has_scale_zero():
    net = network(1)
    _, delta = prepare(net)
    up = growth.Delta(-delta.weight, -delta.bias, -delta.decrease)
    found = search(net, None, up)
    assert [t.item() for t in found.scale] == [0.0, 0.0]
    assert found.loss == found.start


def test_overflow_at_large_amplitudes_is_no_obstacle():
    net = network(2, loss="squared_error")
    new, delta = prepare(net)
    f = lambda p, x: (
        net.f(p, x) * torch.exp(((p["output"]["weight"][:, :4] - net.params["output"]["weight"]) ** 2).sum())
    )
    big = growth.Delta(1e3 * delta.weight, 1e3 * delta.bias, delta.decrease)
    found = growth.line_search(f, net.params, net.data, net.pair, new, big, net.loss)
    assert not found.losses.isfinite().all()
    assert found.loss.isfinite()
    assert found.loss <= found.start


def test_tied_amplitudes_are_one():
    net = network(3)
    found = search(net, *prepare(net), tied=True)
    assert len(found.losses) == 14
    assert torch.equal(found.amplitudes[:, 0], found.amplitudes[:, 1])


def test_lists_batches_and_chunks_give_the_same_answer():
    net = network(4, samples=12)
    new, delta = prepare(net)
    want = search(net, new, delta)
    parts = [(net.x[:5], net.target[:5]), (net.x[5:], net.target[5:])]
    for found in (
        growth.line_search(net.f, net.params, parts, net.pair, new, delta),
        growth.line_search(net.f, net.params, net.data, [net.pair], [new], [delta]),
        search(net, new, delta, chunk_size=7),
    ):
        oracle.close(found.losses, want.losses, 1e-10)
        oracle.close(torch.stack(found.scale), torch.stack(want.scale), 1e-10)


def test_an_ensemble_is_the_loop():
    nets = [network(seed, samples=20) for seed in range(3)]
    steps = [prepare(n) for n in nets]
    run = lambda p, new, delta: growth.line_search(nets[0].f, p, nets[0].data, nets[0].pair, new, delta)
    loop = [run(n.params, *s) for n, s in zip(nets, steps)]
    batch = vmap(run)(*(trees.stack(list(c)) for c in ([n.params for n in nets], *zip(*steps))))
    for i, one in enumerate(loop):
        oracle.close(batch.losses[i], one.losses, 1e-10)
        oracle.close(torch.stack(batch.scale)[:, i], torch.stack(one.scale), 1e-10)
    assert "±" in repr(batch)


def test_the_loss_is_differentiable_at_fixed_amplitudes():
    net = network(5)
    new, delta = prepare(net)
    scale = search(net, new, delta).scale
    got = grad(lambda p: search(net, new, delta, p).loss)(net.params)
    want = grad(lambda p: oracle.mean_loss(net, growth.grow(p, net.pair, new, delta=delta, scale=scale)))(net.params)
    for a, b in zip(trees.leaves(got), trees.leaves(want)):
        oracle.close(a, b, 1e-10)


def test_single_precision_stays_single():
    net = network(6, dtype=torch.float32)
    found = search(net, *prepare(net))
    assert {t.dtype for t in trees.leaves(found)} == {torch.float32}


def test_it_prints_all_points():
    net = network(7)
    lines = repr(search(net, *prepare(net))).splitlines()
    assert len(lines) == 58
    assert lines[-1].endswith("chosen")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": []}, "grid"),
        ({"grid": [1.0, 0.5]}, "ascending"),
        ({"grid": [0.0, 1.0]}, "grid: got 0.0"),
        ({"delta": None, "tied": True}, "tied"),
        ({"delta": None, "new": None}, "neither"),
    ],
)
def test_errors_say_what_was_got(options, message):
    net = network(8)
    new, delta = prepare(net)
    options = {"new": new, "delta": delta} | options
    with pytest.raises(ValueError, match=message):
        search(net, **options)


def valley(bottom):
    """A delta whose loss along the amplitude is least at `bottom`."""
    f = lambda p, x: x @ p["a.weight"].T @ p["b.weight"].T
    x = torch.eye(2, dtype=torch.float64)
    params = {"a.weight": torch.eye(2).double(), "b.weight": torch.zeros(1, 2).double()}
    delta = growth.Delta(-torch.ones(1, 2).double(), None, torch.ones(()).double())
    data = x, torch.full((2, 1), float(bottom), dtype=torch.float64)
    return f, params, data, growth.Pair("a", "b"), delta


@pytest.mark.parametrize(
    ("bottom", "edge"), [(1.0, False), (60.0, False), (1e4, True), (64 * 8**0.5, False), (0.01, False), (-1.0, False)]
)
def test_a_search_that_ends_where_it_looked_last_says_so(bottom, edge):
    f, params, data, pair, delta = valley(bottom)
    found = growth.line_search(f, params, data, pair, None, delta, "squared_error")
    assert found.at_edge.tolist() == [edge, False]
    assert ("chosen, at the edge of what was tried in t_delta" in repr(found)) is edge
    if edge:
        wider = growth.line_search(
            f,
            params,
            data,
            pair,
            None,
            delta,
            "squared_error",
            grid=[*growth.training.search.GRID, 512.0, 4096.0, 32768.0],
        )
        assert wider.loss < found.loss
        assert not wider.at_edge.any()
    if bottom == -1.0:
        assert found.scale[0] == 0


def test_the_smallest_that_was_tried_is_an_edge_too():
    one = torch.ones(())
    points = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0], [3.0, 3.0]])
    for chosen, edges in (
        ((1, 2), [True, False]),
        ((2, 1), [False, True]),
        ((3, 3), [True, True]),
        ((0, 0), [False, False]),
    ):
        scale = torch.tensor(float(chosen[0])), torch.tensor(float(chosen[1]))
        assert growth.Search(scale, one, one, points, torch.ones(4)).at_edge.tolist() == edges


def test_members_at_the_edge_are_counted():
    f, params, _, pair, delta = valley(1.0)
    run = lambda t: growth.line_search(f, params, (torch.eye(2).double(), t), pair, None, delta, "squared_error")
    targets = torch.tensor([1.0, 1e4, 1e5]).double()[:, None, None].expand(3, 2, 1)
    together = vmap(run)(targets)
    assert together.at_edge.tolist() == [[False, False], [True, False], [True, False]]
    assert "at the edge of what was tried in t_delta of 2 in 3 members" in repr(together)
    for i, t in enumerate(targets):
        assert together.at_edge[i].tolist() == run(t).at_edge.tolist()
