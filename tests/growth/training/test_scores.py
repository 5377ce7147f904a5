"""Scores against brute force: slopes, KFAC of the fisher package, gradient norms by autograd, singular values."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import fisher
import growth
from growth.strategies import from_rows, network, networks, rows
from growth.strategies import statistics as random_statistics
from linmaps import trees
from tests.growth import oracle


def step(net, k=2):
    stats = growth.statistics(net.f, net.params, net.data, net.pair, net.loss)
    new = growth.optimal_neurons(stats, k)
    return growth.choose_sign(net.f, net.params, net.data, net.pair, new, net.loss), growth.optimal_delta(stats)


@given(networks(samples=12))
def test_improvement_is_the_slope_of_the_mean_loss(net):
    new, delta = step(net)
    loss = lambda t: oracle.mean_loss(net, growth.grow(net.params, net.pair, new, delta=delta, scale=t))
    slope = oracle.slope(loss, 1e-4, root=True)
    assert abs(slope + growth.improvement(new, delta).item()) <= 1e-3 * max(1.0, abs(slope))


def test_compare_finds_the_best_pair_and_prints_a_table():
    net = network(3)
    new, delta = step(net)
    pairs = [growth.Pair("hidden", "output"), growth.Pair("first", "hidden")]
    other = [dataclasses.replace(part, pair=pairs[1]) for part in (new, delta)]
    table = growth.compare(pairs, [None, other[0]], [delta, other[1]])
    assert table.best == 1
    torch.testing.assert_close(table.improvements, torch.stack([delta.decrease, delta.decrease + new.gain]))
    head, first, second = repr(table).splitlines()
    assert head.split() == ["pair", "units", "decrease", "gain", "improvement"]
    assert first.split()[3] == "0"
    assert second.split()[-1] == "best"
    assert len(head) == len(first)


def test_compare_over_an_ensemble_prints_spreads():
    stats = dataclasses.replace(trees.stack([from_rows(*rows(seed, 20, 3, 2, 2)) for seed in range(3)]), pair=None)
    pairs = [growth.Pair("a", "b"), growth.Pair("b", "c")]
    table = vmap(lambda s: growth.compare(pairs, [growth.optimal_neurons(s, 1), None], growth.optimal_delta(s)))(stats)
    assert table.best.tolist() == [0, 0, 0]
    assert "±" in repr(table)
    assert repr(table).splitlines()[1].endswith("best")


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_senn_score_of_the_layer_is_the_natural_norm_of_the_fisher_package(ridge):
    net = network(5, samples=30)
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    F = fisher.fim(net.f, net.params, net.data, fisher.PMatKFAC, "categorical", "empirical")
    gradient = grad(lambda p: torch.nn.functional.cross_entropy(net.f(p, net.x), net.target))(net.params)
    only = {n: leaves if n == "output" else trees.zeros_like(leaves) for n, leaves in gradient.items()}
    solved = F.solve(only, regul=ridge) if ridge else F.pinv().mv(only)
    oracle.close(growth.senn_score(stats, ridge, of="layer"), trees.dot(only, solved), 1e-9)


@given(st.integers(0, 10**6), st.tuples(st.booleans(), st.booleans()), st.sampled_from([0.0, 0.2]))
def test_senn_score_of_units_is_that_of_their_rows(seed, bias, ridge):
    b2, b1, g = rows(seed, 30, 4, 3, 2)
    stats = from_rows(b2, b1, g, bias)
    new = growth.optimal_neurons(stats, 2)
    one = torch.ones(30, 1, dtype=torch.float64)
    b2, b1 = (torch.cat([b, one], 1) if has else b for b, has in zip((b2, b1), bias))
    R = g - b1 @ torch.linalg.lstsq(b1, g).solution
    h = b2 @ new.joined.mT
    F = torch.kron(h.mT @ h / 30, g.mT @ g / 30)
    v = (h.mT @ R / 30).flatten()
    want = v @ torch.linalg.solve(F + ridge * torch.eye(4, dtype=torch.float64), v)
    oracle.close(growth.senn_score(stats, ridge, new=new), want, 1e-8)


@given(random_statistics())
def test_senn_score_of_all_inputs_is_the_sum_of_squares_of_the_solution(stats):
    new = growth.optimal_neurons(stats, 20, output_metric="fisher")
    oracle.close(growth.senn_score(stats), (new.eigenvalues**2).sum(), 1e-8)
    some = growth.optimal_neurons(stats, 1)
    assert growth.senn_score(stats, new=some) <= growth.senn_score(stats) * (1 + 1e-8) + 1e-10


def test_senn_scores_of_layer_and_units_are_a_lower_bound_of_the_grown_layer():
    b2, b1, g = rows(4, 40, 4, 3, 2)
    stats = from_rows(b2, b1, g)
    new = growth.optimal_neurons(stats, 2)
    h = b2 @ new.fan_in.mT + new.fan_in_bias
    grown = from_rows(b2, torch.cat([b1, h], 1), g)
    layer = growth.senn_score(stats, of="layer")
    assert layer < layer + growth.senn_score(stats, new=new) <= growth.senn_score(grown, of="layer") + 1e-12
    ones = torch.ones(40, 1, dtype=torch.float64)
    inputs = torch.cat([b1, ones], 1)
    apart = torch.cat([b2, ones], 1)  # inputs of `before` uncorrelated with b1: the bound is attained
    apart = apart - inputs @ torch.linalg.lstsq(inputs, apart).solution
    stats = from_rows(apart, inputs, g, (False, False))
    grown = from_rows(apart, torch.cat([inputs, apart], 1), g, (False, False))
    total = growth.senn_score(stats, of="layer") + growth.senn_score(stats)
    oracle.close(total, growth.senn_score(grown, of="layer"), 1e-9)


def test_senn_score_counts_positions_as_kfac_does():
    net = network(6, positions=3, samples=20)
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    each = dataclasses.replace(stats, E=stats.E * stats.count / stats.positions, positions=stats.count)
    oracle.close(growth.senn_score(stats), growth.senn_score(each), 1e-12)
    oracle.close(
        3 * growth.senn_score(dataclasses.replace(stats, positions=stats.count)), growth.senn_score(stats), 1e-9
    )


def test_senn_trigger_has_two_thresholds():
    added, current = torch.tensor([3.0, 1.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])
    assert growth.senn_trigger(added, current).tolist() == [True, False, True]
    assert growth.senn_trigger(added, current, least=3.5).tolist() == [False] * 3
    assert growth.senn_trigger(added, current, ratio=1.4).tolist() == [True, True, True]


@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_north_score_counts_singular_values(seed, p, bias):
    b2, b1, g = rows(seed, 30, 2, p, 2, deficient=True)
    b1 = b1 * torch.logspace(0, -4, p, dtype=torch.float64)
    values = torch.linalg.svdvals(b1 / 30**0.5)
    want = (values > 0.01).double().mean()
    oracle.close(growth.north_score(from_rows(b2, b1, g, (True, bias))), want, 0)
    oracle.close(growth.north_score(b1.mT @ b1 / 30), want, 0)


def test_north_score_of_a_layer_without_units():
    assert growth.north_score(from_rows(*rows(0, 5, 2, 0, 2))) == 1


def test_north_trigger_adds_units_while_they_stay_independent():
    score = torch.tensor([1.0, 0.9, 0.5])
    assert growth.north_trigger(score, torch.tensor(1.0), 40, gamma=0.9, most=8).tolist() == [4, 0, 0]
    assert growth.north_trigger(score, torch.tensor(1.0), 400, gamma=0.9, most=8).tolist() == [8, 0, 0]


def test_gradmax_score_is_the_gradient_of_new_incoming_weights():
    net = network(7, samples=30, activation="tanh")
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    out = torch.linalg.svd(stats.M_prev).Vh[:2].mT
    grown = growth.grow(net.params, net.pair, growth.optimal_neurons(stats, 2), scale=0.0)
    p = net.params["hidden"]["weight"].shape[0]
    weight = torch.cat([net.params["output"]["weight"], out], 1)
    grown = trees.replace(grown, "output.weight", weight)
    gradient = grad(lambda q: oracle.mean_loss(net, q))(grown)["hidden"]
    norm = (gradient["weight"][p:] ** 2).sum() + (gradient["bias"][p:] ** 2).sum()
    oracle.close(growth.gradmax_score(stats, 2), norm, 1e-9)
    oracle.close(growth.gradmax_score(stats, 99), growth.gradmax_score(stats), 1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: growth.improvement(None, None), ValueError, "neither"),
        (lambda s: growth.improvement(s, None), TypeError, "new: got Statistics"),
        (lambda s: growth.senn_score(s, -1.0), ValueError, "ridge"),
        (lambda s: growth.senn_score(s, of="all"), ValueError, "of: got 'all'"),
        (lambda s: growth.senn_score(s, of="layer", new=growth.optimal_neurons(s, 1)), ValueError, "with new"),
        (lambda s: growth.senn_trigger(s.M, s.M, ratio=0.5), ValueError, "ratio"),
        (lambda s: growth.north_score(s.M), ValueError, "square"),
        (lambda s: growth.north_score(s, eps=-1.0), ValueError, "eps"),
        (lambda s: growth.north_trigger(s.M, s.M, 3, gamma=-1.0, most=2), ValueError, "gamma"),
        (lambda s: growth.gradmax_score(s, -1), ValueError, "k: got -1"),
        (lambda s: growth.compare([growth.Pair("a", "b")], [None, None], None), ValueError, "news: got a list of 2"),
    ],
)
def test_errors_say_what_was_got(call, error, message):
    with pytest.raises(error, match=message):
        call(from_rows(*rows(0, 10, 3, 3, 2)))
