"""Metrics: optimality in each of them, invariance to units, the exact Fisher at the output."""

import dataclasses
import itertools
import math

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacrev, vmap
from torch.nn import functional as F

import growth
from fisher.likelihoods import Gaussian
from growth.moments.metric import shrunk
from growth.strategies import from_rows, network, rows
from linmaps import trees
from tests.growth import oracle
from tests.growth.oracle import close, mean_loss, slope

METRICS = list(itertools.product(["covariance", None], [None, "fisher"]))


def root(m, power):
    """m^power on its range."""
    e, v = torch.linalg.eigh(m)
    kept = e > 1e-10 * e[-1]
    return (v * torch.where(kept, torch.where(kept, e, 1.0) ** power, 0.0)) @ v.mT


def options_of(metrics):
    return {"input_metric": metrics[0], "output_metric": metrics[1]}


def with_E_of_rank(stats, rank):
    """The last outputs are combinations of the first, as the gradients of a softmax."""
    q = stats.M.shape[1]
    g = torch.Generator().manual_seed(4)
    mix = torch.randn(q, rank, generator=g, dtype=torch.float64) @ torch.randn(
        rank, q, generator=g, dtype=torch.float64
    )
    return dataclasses.replace(stats, M=stats.M @ mix, M_prev=stats.M_prev @ mix, E=mix.mT @ stats.E @ mix)


# --- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metrics", METRICS)
@pytest.mark.parametrize("target", ["residual", "gradient"])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
@pytest.mark.parametrize("rank", [4, 2])
def test_the_units_are_the_truncated_svd_of_the_whitened_target(metrics, target, shrinkage, rank):
    stats = with_E_of_rank(from_rows(*rows(1, 40, 5, 3, 4, deficient=True)), rank)
    E = (1 - shrinkage) * stats.E + shrinkage * stats.E.trace() / 4 * torch.eye(4, dtype=torch.float64)
    eye = torch.eye(6, dtype=torch.float64)
    left = eye if metrics[0] is None else root(stats.S_prev, -0.5)
    right = torch.eye(4, dtype=torch.float64) if metrics[1] is None else root(E, -0.5)
    N = -stats.M_prev
    if target == "residual":
        N = N + stats.P @ root(stats.S, -1) @ stats.M
    u, s, v = torch.linalg.svd(left @ N @ right, full_matrices=False)
    alpha = {"shrinkage": shrinkage} if metrics[1] else {}
    for k in (1, 2, 6):
        new = growth.optimal_neurons(stats, k, target, **options_of(metrics), **alpha)
        kept = min(k, 4, rank)
        close(new.eigenvalues[:kept], s[:kept], 1e-10)
        assert (new.eigenvalues[kept:] == 0).all()
        close(new.fan_out @ new.joined, right @ (v[:kept].mT * s[:kept]) @ u[:, :kept].mT @ left, 1e-9)
        inner = new.joined @ (eye if metrics[0] is None else stats.S_prev) @ new.joined.mT
        outer = new.fan_out.mT @ (E if metrics[1] else torch.eye(4, dtype=torch.float64)) @ new.fan_out
        close(inner, torch.diag(new.eigenvalues), 1e-10)
        close(outer, torch.diag(new.eigenvalues), 1e-10)
        close(new.gains, -((new.joined @ stats.M_prev) * new.fan_out.mT).sum(1), 1e-12)


@pytest.mark.parametrize("metrics", METRICS)
@pytest.mark.parametrize("target", ["residual", "gradient"])
def test_gain_is_the_slope_of_the_mean_loss_in_every_metric(metrics, target):
    net = network(21, activation="tanh", samples=20)
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    new = growth.optimal_neurons(stats, 2, target, **options_of(metrics))
    for j in range(2):
        mask = torch.arange(2) == j
        one = dataclasses.replace(new, fan_in=mask[:, None] * new.fan_in, fan_in_bias=mask * new.fan_in_bias)
        measured = -slope(
            lambda t: mean_loss(net, growth.grow(net.params, net.pair, one, scale=(0.0, t))),  # noqa: B023
            0.02 / max(1.0, new.eigenvalues[0].item()),
            root=True,
        )
        assert abs(new.gains[j].item() - measured) <= 1e-4 * abs(new.gain.item())


@pytest.mark.parametrize("rank", [4, 2])
def test_joint_optimum_in_the_metric_of_outputs(rank):
    b2, b1, g = rows(3, 40, 5, 3, 4)
    mix = torch.randn(4, rank, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    g = g @ mix @ torch.linalg.pinv(mix)
    stats = from_rows(b2, b1, g, (True, True))
    new = growth.optimal_neurons(stats, 2, joint=True, output_metric="fisher")
    b2, b1 = (torch.cat([b, torch.ones(40, 1, dtype=torch.float64)], 1) for b in (b2, b1))
    natural, half = g @ root(stats.E, -1), root(stats.E, 0.5)

    def objective(n, d):
        return (((natural - b1 @ d.joined.T + b2 @ n.joined.T @ n.fan_out.T) @ half) ** 2).sum() / len(g)

    slopes = grad(objective, argnums=(0, 1))(dataclasses.replace(new, delta=None), new.delta)
    assert all(t.abs().max() <= 1e-10 for t in optree.tree_leaves(slopes))
    decrease = growth.optimal_delta(stats, output_metric="fisher").decrease
    drop = decrease + (new.eigenvalues**2).sum()
    close(rank - objective(new, new.delta), drop, 1e-10)  # E |G E^{-1/2}|² is the rank
    assert (new.eigenvalues > 0).all()


def test_a_natural_delta_is_used_again():
    """The residual is what the delta that will be applied leaves, so the units are those that make their own solve."""
    stats = with_E_of_rank(from_rows(*rows(11, 40, 5, 3, 4)), 3)
    for options in ({"shrinkage": 0.0}, {"shrinkage": 0.3}, {"shrinkage": 0.0, "joint": True}):
        alpha = {"output_metric": "fisher", "shrinkage": options["shrinkage"]}
        own = growth.optimal_neurons(stats, 2, output_metric="fisher", **options)
        again = growth.optimal_neurons(
            stats, 2, output_metric="fisher", delta=growth.optimal_delta(stats, **alpha), **options
        )
        close(again.eigenvalues, own.eigenvalues, 1e-10)
        close(again.fan_out @ again.joined, own.fan_out @ own.joined, 1e-9)
        if own.delta is not None:
            close(again.delta.joined, own.delta.joined, 1e-9)


def test_the_metric_of_outputs_acts_on_each_tap():
    """Statistics of two taps: a unit has q x 2 outgoing weights, output-major, and E belongs to the q."""
    b2, b1, g = rows(5, 40, 4, 3, 3)
    other = rows(6, 40, 4, 3, 3)[0]
    one, two = from_rows(b2, b1, g), from_rows(other, b1, g)
    stats = dataclasses.replace(
        one,
        S_prev=one.S_prev + two.S_prev,
        M_prev=torch.stack([one.M_prev, two.M_prev], 2).flatten(1),
        P=torch.stack([one.P, two.P]),
        taps=2,
    )
    half = torch.kron(root(stats.E, -0.5), torch.eye(2, dtype=torch.float64))
    N = -stats.M_prev + stats.crossed(growth.optimal_delta(stats).joined)
    u, s, v = torch.linalg.svd(root(stats.S_prev, -0.5) @ N @ half, full_matrices=False)
    new = growth.optimal_neurons(stats, 3, output_metric="fisher")
    assert new.fan_out.shape == (6, 3)
    close(new.eigenvalues, s[:3], 1e-10)
    close(
        new.fan_out @ new.joined,
        half @ (v[:3].mT * s[:3]) @ u[:, :3].mT @ root(stats.S_prev, -0.5),
        1e-10,
    )
    with pytest.raises(ValueError, match="statistics with 2 taps, expected 1"):
        growth.optimal_neurons(stats, 1, joint=True)


# --- the delta -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("rank", [3, 2])
def test_natural_delta(shrinkage, rank):
    stats = with_E_of_rank(from_rows(*rows(2, 30, 3, 4, 3)), rank)
    E = shrunk(stats.E, shrinkage)
    delta = growth.optimal_delta(stats, 0.1, output_metric="fisher", shrinkage=shrinkage)
    close(delta.joined, root(E, -1) @ stats.M.mT @ torch.linalg.inv(stats.S + 0.1 * torch.eye(5).double()), 1e-9)
    close(delta.decrease, (stats.M * delta.joined.mT).sum(), 1e-12)
    if shrinkage == 1:
        plain = growth.optimal_delta(stats, 0.1)
        close(delta.joined * stats.E.trace() / 3, plain.joined, 1e-12)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
@pytest.mark.parametrize("options", [{}, {"positions": 2}, {"q": 5}, {"bias": (False, False)}])
def test_decrease_of_the_natural_delta_is_a_slope(shrinkage, options):
    net = network(12, samples=10, **options)
    stats = growth.statistics(net.f, net.params, net.data, net.pair, net.loss)
    delta = growth.optimal_delta(stats, output_metric="fisher", shrinkage=shrinkage)
    scale = 1e-2 / delta.weight.abs().max().item()
    measured = -slope(lambda t: mean_loss(net, growth.grow(net.params, net.pair, delta=delta, scale=t)), scale)
    assert abs(measured - delta.decrease.item()) <= 1e-6 * measured


# --- invariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [3.0, 1e-4])
def test_powers_of_the_units_between_layers_of_a_deep_linear_network(c):
    """W1 -> c W1, W4 -> W4 / c leaves the function; the pair in the middle sees inputs times c, gradients over c."""
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)
    params = {f"W{i}": normal(4, 4) / 2 for i in range(1, 5)}
    x, y = normal(30, 4), normal(30, 4)

    def f(p, x):
        for i in range(1, 5):
            x = F.linear(x, p[f"W{i}"])
        return x

    pair = growth.Pair("W2", "W3", torch.nn.Identity())

    def solve(c):
        scaled = params | {"W1": c * params["W1"], "W4": params["W4"] / c}
        stats = growth.statistics(f, scaled, (x, y), pair, "squared_error")
        plain, natural = growth.optimal_delta(stats), growth.optimal_delta(stats, output_metric="fisher")
        units = {m: growth.optimal_neurons(stats, 2, "gradient", **options_of(m)) for m in METRICS}
        return stats, plain, natural, units

    (s0, d0, n0, u0), (s1, d1, n1, u1) = solve(1.0), solve(c)
    for name, power in {"S": 2, "S_prev": 2, "P": 2, "M": 0, "M_prev": 0, "E": -2}.items():
        close(getattr(s1, name) / c**power, getattr(s0, name), 1e-9)
    close(d1.joined * c**2, d0.joined, 1e-9)
    close(n1.joined, n0.joined, 1e-9)
    close(d1.decrease * c**2, d0.decrease, 1e-9)
    close(n1.decrease, n0.decrease, 1e-9)
    powers = {("covariance", None): -1, (None, None): 0, ("covariance", "fisher"): 0, (None, "fisher"): 1}
    for metrics, power in powers.items():
        close(u1[metrics].eigenvalues / c**power, u0[metrics].eigenvalues, 1e-9)
        close(u1[metrics].gains / c ** (2 * power), u0[metrics].gains, 1e-9)
    both = ("covariance", "fisher")
    close(u1[both].fan_out @ u1[both].joined, u0[both].fan_out @ u0[both].joined, 1e-9)


@given(
    st.integers(0, 10**6),
    st.sampled_from([1e-8, 1e-3, 1e8]),
    st.sampled_from([1e-8, 1e4, 1e8]),
    st.sampled_from(METRICS),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([0.0, 0.4]),
)
def test_choices_do_not_depend_on_the_scales_of_loss_and_inputs(seed, c, d, metrics, dtype, shrinkage):
    b2, b1, g = rows(seed, 30, 4, 3, 3)
    stats = from_rows(b2, b1, g, (False, False))
    scaled = from_rows(d * b2, d * b1, c * g, (False, False))
    alpha = {"shrinkage": shrinkage} if metrics[1] else {}
    floor = growth.noise_floor(stats, 0.2, **options_of(metrics), **alpha)
    floor_scaled = growth.noise_floor(scaled, 0.2, **options_of(metrics), **alpha)
    power = (0 if metrics[0] else 1, 0 if metrics[1] else 1)
    unit = d ** power[0] * c ** power[1]
    close(floor_scaled / unit, floor, 1e-9)
    cast = trees.map(lambda t: t.to(dtype), scaled)
    for options in ({}, {"threshold": 0.5}):
        a = growth.optimal_neurons(stats, 3, **options_of(metrics), **options, **alpha)
        b = growth.optimal_neurons(cast, 3, **options_of(metrics), **options, **alpha)
        ratios = a.eigenvalues[1:] / a.eigenvalues[:1]
        if ((ratios - 0.5).abs() > 0.01).all() and (ratios > 0.01).all():
            assert ((a.eigenvalues > 0) == (b.eigenvalues > 0)).all()
            close(b.eigenvalues.double() / unit, a.eigenvalues, 1e-9 if dtype == torch.float64 else 1e-2)


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metrics", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_gives_no_unit_in_any_metric(metrics, dtype):
    b2, b1, g = rows(7, 20, 3, 3, 2)
    for stats in (
        from_rows(b2, b1, 0 * g),
        dataclasses.replace(from_rows(b2, b1, g), M=torch.zeros(4, 2).double(), M_prev=torch.zeros(4, 2).double()),
        from_rows(0 * b2, b1, g, (False, True)),
    ):
        new = growth.optimal_neurons(trees.map(lambda t: t.to(dtype), stats), 3, **options_of(metrics))
        parts = (new.fan_in, new.fan_in_bias, new.fan_out, new.eigenvalues, new.gains, new.gain)
        assert all((t == 0).all() for t in parts if t is not None)


@pytest.mark.parametrize("metrics", METRICS)
def test_threshold_and_floor_mask_from_the_end(metrics):
    stats = from_rows(*rows(8, 30, 5, 3, 4))
    every = growth.optimal_neurons(stats, 4, **options_of(metrics))
    lam = every.eigenvalues
    for keep in range(1, 5):
        middle = lam[keep - 1] if keep == 4 else (lam[keep - 1] + lam[keep]) / 2
        for options in (
            {"threshold": (middle / lam[0]).item() * (1 - 1e-12)},
            {"threshold": middle / lam[0] * (1 - 1e-12)},
            {"noise_floor": middle.item()},
            {"noise_floor": middle * (1 - 1e-12)},
        ):
            new = growth.optimal_neurons(stats, 4, **options_of(metrics), **options)
            close(new.eigenvalues, torch.where(torch.arange(4) < keep, lam, 0.0), 1e-12)
            close(new.fan_in[:keep], every.fan_in[:keep], 1e-12)
            assert (new.joined[keep:] == 0).all()
            assert (new.fan_out[:, keep:] == 0).all()
            assert (new.gains[keep:] == 0).all()
    none = growth.optimal_neurons(stats, 4, **options_of(metrics), noise_floor=2 * lam[0])
    assert (none.joined == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_metric": "E"}, "output_metric: got 'E'"),
        ({"shrinkage": 0.5}, "shrinkage: got 0.5 without a metric"),
        ({"output_metric": "fisher", "shrinkage": 1.5}, "shrinkage: got 1.5"),
        ({"output_metric": "fisher", "shrinkage": math.nan}, "shrinkage"),
        ({"output_metric": "fisher", "shrinkage": torch.ones(2)}, "shrinkage"),
    ],
)
def test_bad_metrics(options, message):
    stats = from_rows(*rows(0, 9, 2, 2, 2))
    for fn in (growth.optimal_delta, lambda s, **o: growth.optimal_neurons(s, 1, **o)):
        with pytest.raises(ValueError, match=message):
            fn(stats, **options)


# --- derivatives and ensembles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metrics", "options"), [(METRICS[1], {"q": 5}), (METRICS[1], {}), (METRICS[2], {})])
def test_differentiable_in_every_metric_also_with_singular_E(metrics, options):
    net = network(7, activation="gelu", **options)
    direction = trees.map(
        lambda p: 0.1 * torch.cos(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape), net.params
    )

    def value(t):
        stats = growth.statistics(net.f, trees.axpy(t, direction, net.params), net.data, net.pair)
        new = growth.optimal_neurons(stats, 2, **options_of(metrics))
        delta = growth.optimal_delta(stats, output_metric=metrics[1])
        move = new.fan_out @ new.joined
        total = (move * torch.cos(torch.arange(move.numel()).reshape(move.shape))).sum() + new.gain + new.eigenvalues[0]
        return total + delta.weight.sum() + delta.decrease

    oracle.twice_differentiable(value)


@pytest.mark.parametrize("metrics", METRICS)
def test_ensemble_equals_loop(metrics):
    members = [from_rows(*rows(i, 15, 4, 3, 3, deficient=i % 2 == 0)) for i in range(4)]
    stacked = trees.stack(members)
    solve = lambda s: growth.optimal_neurons(s, 3, **options_of(metrics))
    together = vmap(solve)(stacked)
    natural = vmap(lambda s: growth.optimal_delta(s, output_metric=metrics[1]))(stacked)
    for i, m in enumerate(members):
        one = solve(m)
        close(together.fan_out[i] @ together.fan_in[i], one.fan_out @ one.fan_in, 1e-10)
        close(together.eigenvalues[i], one.eigenvalues, 1e-10)
        close(natural.weight[i], growth.optimal_delta(m, output_metric=metrics[1]).weight, 1e-10)


# --- the exact Fisher at the output ----------------------------------------------------------------------------------


def by_jacobians(f, params, x, path, q):
    """Mean of J' (diag π - π π') J over samples, by a jacobian of each sample with respect to a shift of the bias."""
    total = torch.zeros(q, q, dtype=torch.float64)
    for xi in x:
        shifted = lambda a: f(trees.replace(params, path, trees.get(params, path) + a), xi[None])[0]  # noqa: B023
        J = jacrev(shifted)(torch.zeros(q, dtype=torch.float64))
        p = shifted(torch.zeros(q, dtype=torch.float64)).softmax(-1)
        total = total + J.mT @ (torch.diag(p) - torch.outer(p, p)) @ J
    return total / len(x)


@pytest.mark.parametrize("q", [3, 6])
def test_exact_fisher_equals_jacobians(q):
    net = network(31, q=q, samples=9)
    want = by_jacobians(net.f, net.params, net.x, ("output", "bias"), q)
    got = growth.output_fisher(net.f, net.params, net.data, net.pair)
    close(got, want, 1e-12)
    batches = [(net.x[:2], net.target[:2]), (net.x[2:], net.target[2:])]
    close(growth.output_fisher(net.f, net.params, batches, net.pair, chunk_size=1), want, 1e-12)
    close(growth.output_fisher(net.f, net.params, net.x, net.pair), want, 1e-12)
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    replaced = growth.with_fisher(stats, net.f, net.params, net.data, net.pair)
    close(replaced.E, want, 1e-12)
    assert torch.equal(replaced.S, stats.S)


def test_exact_fisher_is_the_expectation_of_E_over_targets_of_the_model():
    net = network(32, samples=5)
    p = net.f(net.params, net.x).softmax(-1)
    mean = torch.zeros(3, 3, dtype=torch.float64)
    for i, c in itertools.product(range(5), range(4)):
        one = growth.statistics(net.f, net.params, (net.x[i : i + 1], torch.tensor([c])), net.pair)
        mean = mean + p[i, c] * one.E / 5
    close(growth.output_fisher(net.f, net.params, net.data, net.pair), mean, 1e-12)


def test_exact_fisher_of_sequences_sums_positions():
    """Positions are apart in this network: each is a sample of its own, and a mean over samples has three of them."""
    net = network(33, positions=3, samples=5)
    want = 3 * by_jacobians(net.f, net.params, net.x.flatten(0, 1), ("output", "bias"), 3)
    close(growth.output_fisher(net.f, net.params, net.data, net.pair), want, 1e-12)


def test_other_likelihoods_and_lists_of_pairs():
    net = network(34, samples=6)
    pairs = [net.pair, growth.Pair("first", "hidden")]
    last, first = growth.output_fisher(net.f, net.params, net.x, pairs, Gaussian())
    J = jacrev(lambda b: net.f(trees.replace(net.params, ("hidden", "bias"), b), net.x))(net.params["hidden"]["bias"])
    close(first, torch.einsum("bcp,bcq->pq", J, J) / 6, 1e-12)
    close(last, growth.output_fisher(net.f, net.params, net.x, net.pair, "gaussian"), 1e-12)
    stats = growth.statistics(net.f, net.params, net.data, pairs)
    both = growth.with_fisher(stats, net.f, net.params, net.data, pairs, "gaussian")
    close(both[1].E, first, 1e-12)
    with pytest.raises(ValueError, match="stats: is of"):
        growth.with_fisher(stats[0], net.f, net.params, net.data, pairs[1])
    with pytest.raises(TypeError, match="stats: got dict"):
        growth.with_fisher({}, net.f, net.params, net.data, net.pair)


def test_exact_fisher_refuses_what_is_not_there():
    net = network(35)
    with pytest.raises(ValueError, match="at least one sample"):
        growth.output_fisher(net.f, net.params, [(net.x[:0], net.target[:0])], net.pair)
    with pytest.raises(ValueError, match="data: batch 0"):
        growth.output_fisher(net.f, net.params, net.x * float("nan"), net.pair)
    with pytest.raises(ValueError, match="likelihood"):
        growth.output_fisher(net.f, net.params, net.x, net.pair, "softmax")


def test_a_delta_of_another_metric_is_refused():
    stats = from_rows(*rows(5, 30, 4, 3, 3))
    for metric, other in ((None, "fisher"), ("fisher", None)):
        delta = growth.optimal_delta(stats, output_metric=metric)
        growth.optimal_neurons(stats, 2, delta=delta, output_metric=metric)
        with pytest.raises(ValueError, match="is none of another"):
            growth.optimal_neurons(stats, 2, delta=delta, output_metric=other)


def test_masked_samples_are_not_in_the_exact_fisher():
    f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    p, x, t = {"a.weight": draw(4, 3), "b.weight": draw(3, 4)}, draw(6, 3), torch.tensor([0, -100, 2, 1, -100, 0])
    pair = growth.Pair("a", "b")
    kept = t >= 0
    want = growth.output_fisher(f, p, x[kept], pair) * kept.sum() / 6
    close(growth.output_fisher(f, p, (x, t), pair), want, 1e-13)
