"""Noise: standard errors that cover, a floor that pure noise stays below and signals pass."""

import dataclasses
import itertools
import math

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

import growth
from growth.moments.first_order import MEANS
from growth.strategies import from_rows, network, rows
from linmaps import trees
from tests.growth.oracle import close

METRICS = list(itertools.product(["covariance", None], [None, "fisher"]))


def drawn(seed, n, r, q, *, p=2, signal=0.0, spread=True):
    """Rows whose gradients are noise of unequal sizes and correlated outputs, plus a planted rank-one dependence on b2."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)
    b2, b1 = normal(n, r), normal(n, p)
    noise = normal(n, q) @ (torch.eye(q, dtype=torch.float64) + (0.5 * normal(q, q) if spread else 0.0))
    u, v = normal(r), normal(q)
    return b2, b1, noise + signal * torch.outer(b2 @ u / u.norm(), v / v.norm())


def some(seed, k, n=30, **options):
    return [from_rows(*drawn(100 * seed + i, n, 4, 3, **options)) for i in range(k)]


# --- standard errors -------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_standard_errors_by_their_definition(seed, sizes):
    parts = [from_rows(*rows(seed + i, n, 3, 2, 2)) for i, n in enumerate(sizes)]
    total = sum(parts[1:], parts[0])
    got = growth.standard_errors(iter(parts))
    for name in MEANS:
        away = sum(n * (getattr(s, name) - getattr(total, name)).square().sum() for n, s in zip(sizes, parts))
        close(getattr(got, name), (away / (len(sizes) - 1) / sum(sizes)).sqrt(), 1e-12)
    assert got.count == sum(sizes)
    if len(sizes) == 2:
        half = growth.split_half(*parts)
        for a, b in zip(optree.tree_leaves(half), optree.tree_leaves(got), strict=True):
            close(a, b, 1e-14)
        close(half.M, (parts[0].M - parts[1].M).norm() * (sizes[0] * sizes[1]) ** 0.5 / sum(sizes), 1e-12)


def test_the_estimated_error_is_the_true_error():
    """Over many data sets the mean of se² is the mean of |statistic - expectation|², for halves and for unequal parts."""
    truth = from_rows(*drawn(0, 200_000, 4, 3, spread=False))
    many = [torch.stack(t) for t in zip(*(drawn(1 + i, 40, 4, 3, spread=False) for i in range(300)))]
    for cuts in ((20, 20), (4, 12, 24)):

        def both(b2, b1, g):
            parts = [from_rows(*t) for t in zip(b2.split(cuts), b1.split(cuts), g.split(cuts))]  # noqa: B023
            return growth.standard_errors(parts), from_rows(b2, b1, g)

        got, whole = vmap(both)(*many)
        for name in MEANS:
            error = (getattr(whole, name) - getattr(truth, name)).square().sum((1, 2)).mean()
            ratio = getattr(got, name).square().mean() / error
            assert 0.8 < ratio < 1.25, f"{name}: {ratio}"


def test_errors_of_passes_over_a_network_fall_as_the_root_of_samples():
    net = network(3, samples=256)
    batches = [
        growth.statistics(net.f, net.params, (x, t), net.pair) for x, t in zip(net.x.split(8), net.target.split(8))
    ]
    few, many = growth.standard_errors(batches[:8]), growth.standard_errors(batches)
    for name in MEANS:
        assert 1.4 < getattr(few, name) / getattr(many, name) < 2.8  # 2 expected


def test_one_part_says_nothing():
    one = growth.standard_errors(some(1, 1))
    assert all(getattr(one, name) == float("inf") for name in MEANS)
    same = growth.split_half(*(some(1, 1) * 2))
    assert all(getattr(same, name) == 0 for name in MEANS)
    with pytest.raises(ValueError, match="parts: got none"):
        growth.standard_errors([])
    with pytest.raises(TypeError, match="part 1: got float"):
        growth.standard_errors([*some(1, 1), 1.0])


# --- floors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metrics", METRICS)
@pytest.mark.parametrize(("n", "r", "q"), [(60, 5, 3), (300, 20, 10), (200, 3, 16), (800, 40, 1)])
def test_noise_stays_below_the_floor_and_not_far_below(metrics, n, r, q):
    options = {"input_metric": metrics[0], "output_metric": metrics[1]}

    def one(b2, b1, g):
        stats = from_rows(b2 * torch.linspace(0.3, 3, r), b1, g)
        floor = growth.noise_floor(stats, 0.05, **options)
        kept = growth.optimal_neurons(stats, 1, "gradient", noise_floor=floor, **options).eigenvalues > 0
        return kept[0], growth.optimal_neurons(stats, 1, "gradient", **options).eigenvalues[0] / floor

    kept, ratios = vmap(one)(*(torch.stack(t) for t in zip(*(drawn(i, n, r, q) for i in range(40)))))
    assert kept.sum() <= 7  # at most 2 expected, more than 7 with probability 0.001
    assert ratios.mean() > 0.25


def test_the_edge_of_white_noise():
    """Σ = I: the largest λ is (√r + √q) / √n, Marchenko and Pastur."""
    n, r, q = 4000, 80, 20
    stats = from_rows(*drawn(3, n, r, q, spread=False), (False, True))
    edge = (r**0.5 + q**0.5) / n**0.5
    close(growth.noise_floor(stats, 1 - 1e-12), torch.tensor(edge, dtype=torch.float64), 0.02)
    lam = growth.optimal_neurons(stats, 1, "gradient").eigenvalues[0]
    assert 0.93 * edge < lam < edge * 1.02


def stacked(seeds, n, r, q, change=lambda b2, g: (b2, g), **options):
    """Halves of the data of several seeds: b2, b1, g `[seeds, 2, n / 2, ...]`."""
    all_rows = []
    for seed in range(seeds):
        b2, b1, g = drawn(seed, n, r, q, **options)
        b2, g = change(b2, g)
        all_rows.append([torch.stack([t[0::2], t[1::2]]) for t in (b2, b1, g)])
    return [torch.stack(t) for t in zip(*all_rows)]


def units(floor_of, options, k):
    """How many units a floor lets live, for rows of two halves."""

    def one(b2, b1, g):
        first, second = (from_rows(b2[i], b1[i], g[i]) for i in range(2))
        stats = first + second
        counted = floor_of == "counts"
        floor = growth.noise_floor(stats, **options) if counted else growth.split_floor(first, second, **options)
        return (growth.optimal_neurons(stats, k, noise_floor=floor, **options).eigenvalues > 0).sum()

    return vmap(one)


@pytest.mark.parametrize("metrics", METRICS)
@pytest.mark.parametrize("floor_of", ["counts", "halves"])
def test_a_planted_signal_is_kept_and_noise_is_not(metrics, floor_of):
    count = units(floor_of, {"input_metric": metrics[0], "output_metric": metrics[1]}, 4)
    assert (count(*stacked(20, 600, 10, 4, signal=1.5)) == 1).all()
    assert (count(*stacked(20, 600, 10, 4)) == 0).all()


def test_halves_see_noise_whose_size_depends_on_the_inputs():
    """Gradients of mean zero, but only where b2 is large: counts alone believe in units, halves do not."""

    def rare(b2, g):
        large = (torch.arange(len(g)) % 37 < 2)[:, None]
        return torch.where(large, 20 * b2, b2), torch.where(large, g, 0.0)

    data = stacked(30, 400, 3, 8, change=rare)
    assert units("counts", {}, 1)(*data).sum() >= 25
    assert units("halves", {}, 1)(*data).sum() <= 1


def test_floor_falls_with_samples_and_rises_with_confidence():
    stats = some(5, 1)[0]
    more = dataclasses.replace(stats, count=4 * stats.count)
    close(growth.noise_floor(more), growth.noise_floor(stats) / 2, 1e-14)
    assert growth.noise_floor(stats, 0.001) > growth.noise_floor(stats, 0.1)
    wide = dataclasses.replace(stats, taps=3)
    assert growth.noise_floor(wide) > growth.noise_floor(stats)


def test_dead_inputs_make_no_noise():
    b2, b1, g = drawn(2, 100, 6, 3)
    dead = torch.cat([b2, torch.zeros(100, 50, dtype=torch.float64)], 1)
    close(growth.noise_floor(from_rows(dead, b1, g)), growth.noise_floor(from_rows(b2, b1, g)), 1e-14)


def test_floor_of_nothing_is_zero():
    b2, b1, g = rows(5, 20, 3, 3, 2)
    stats = from_rows(b2, b1, 0 * g)
    for metrics in METRICS:
        assert growth.noise_floor(stats, input_metric=metrics[0], output_metric=metrics[1]) == 0


def test_the_part_of_the_floor_that_halves_show():
    """A difference of halves has the law of the noise: √(n1 n2)/n |H1 - H2|, in the metric of both and with one delta."""
    first, second = some(7, 2, n=50)
    third = some(8, 1, n=25)[0]
    for a, b in ((first, second), (first, third)):
        both = a + b
        delta = growth.optimal_delta(both)
        e, v = torch.linalg.eigh(both.S_prev)
        half = (v * e**-0.5) @ v.mT
        apart = [half @ (-s.M_prev + s.crossed(delta.joined)) for s in (a, b)]
        share = a.count / both.count
        want = torch.linalg.matrix_norm(apart[0] - apart[1], 2) * (share * (1 - share)).sqrt()
        close(growth.split_floor(a, b, 1 - 1e-15), want, 1e-7)
        close(growth.split_floor(a, b, 1 - 1e-15, delta=delta), want, 1e-7)


def test_ensemble_equals_loop():
    members = [some(i, 2) for i in range(3)]
    first, second = (trees.stack([m[i] for m in members]) for i in range(2))
    for fn in (growth.split_half, growth.split_floor, lambda a, b: growth.noise_floor(a + b, output_metric="fisher")):
        together = vmap(fn)(first, second)
        for i, m in enumerate(members):
            for a, b in zip(optree.tree_leaves(together), optree.tree_leaves(fn(*m)), strict=True):
                close(a[i], b, 1e-10)


def test_dtype_is_kept():
    parts = [trees.map(lambda t: t.to(torch.float32), s) for s in some(1, 2)]
    for out in (growth.split_half(*parts), growth.noise_floor(parts[0]), growth.split_floor(*parts)):
        assert {t.dtype for t in optree.tree_leaves(out)} == {torch.float32}


@pytest.mark.parametrize("probability", [0, 1.0, -0.5, math.nan])
def test_bad_probability(probability):
    parts = some(1, 2)
    for call in (lambda: growth.noise_floor(parts[0], probability), lambda: growth.split_floor(*parts, probability)):
        with pytest.raises(ValueError, match="probability: got"):
            call()


def test_bad_metrics_and_numbers():
    stats = some(1, 1)[0]
    with pytest.raises(ValueError, match="input_metric: got 'fisher'"):
        growth.noise_floor(stats, input_metric="fisher")
    with pytest.raises(ValueError, match="output_metric: got 'E'"):
        growth.noise_floor(stats, output_metric="E")
    with pytest.raises(ValueError, match=r"\['E'\] are not finite"):
        growth.noise_floor(dataclasses.replace(stats, E=stats.E * float("nan")))
