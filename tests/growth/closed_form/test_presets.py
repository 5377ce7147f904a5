"""Presets: their optimality, their slopes, the function they keep, and that no unit they make is dead."""

import dataclasses
import functools

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap
from torch.nn import functional as F

import growth
from growth.checks.losses import per_sample
from growth.closed_form.units import live
from growth.strategies import ACTIVATIONS, SHIFTED, from_rows, network, rows, statistics
from linmaps import trees
from tests.growth.oracle import close, leaf, mean_loss, slope
from tests.growth.test_convolution import net


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


PRESETS = {
    "tiny": growth.tiny,
    "gradmax": growth.gradmax,
    "senn": growth.senn,
    "zero_in": growth.zero_in,
    "zero_out": growth.zero_out,
    "random": lambda stats, k: growth.random(stats, k, generator=generator()),
    "random both": lambda stats, k: growth.random(stats, k, generator=generator(), std_out=0.3),
}
FILLED = {
    "gradmax": lambda stats, k: growth.gradmax(stats, k, generator=generator()),
    "senn": lambda stats, k: growth.senn(stats, k, generator=generator()),
    "zero_in": lambda stats, k: growth.zero_in(stats, k, generator=generator()),
    "zero_out": lambda stats, k: growth.zero_out(stats, k, generator=generator()),
}


@functools.cache
def prepared(*seed, **options):
    net = network(*seed, **options)
    return net, growth.statistics(net.f, net.params, net.data, net.pair, net.loss)


def gradients(net, params, old):
    """Norms `[k]` of the gradient of the mean loss for fan_in with its bias, and for fan_out, of the new units."""
    g = grad(lambda p: per_sample(net.loss)(net.f(p, net.x), net.target).mean())(params)
    inward = leaf(net, g, "hidden", "weight")[old:]
    bias = leaf(net, g, "hidden", "bias")
    inward = inward if bias is None else torch.cat([inward, bias[old:, None]], 1)
    return inward.norm(dim=1), leaf(net, g, "output", "weight")[:, old:].norm(dim=0), g


def lives(net, new):
    """Each unit has a gradient at once, and both its sides have after one step of gradient descent."""
    grown = growth.grow(net.params, net.pair, new)
    old = leaf(net, net.params, "output", "weight").shape[1]
    inward, outward, g = gradients(net, grown, old)
    there = live(new)
    assert (torch.maximum(inward, outward)[there] > 1e-6).all()
    inward, outward, _ = gradients(net, trees.axpy(-0.3, g, grown), old)
    assert (inward[there] > 1e-9).all()
    assert (outward[there] > 1e-9).all()


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_no_unit_is_dead(preset, activation):
    for seed in range(2):
        net, stats = prepared(seed, activation=activation, samples=24, r=4, p=2, q=4)
        new = PRESETS[preset](stats, 3)
        assert live(new).all()
        lives(net, new)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("preset", sorted(FILLED))
def test_units_beyond_the_rank_are_masked_or_random_and_alive(preset, activation):
    net, stats = prepared(3, activation=activation, samples=24, q=3, r=2)
    k = 7
    masked, filled = PRESETS[preset](stats, k), FILLED[preset](stats, k)
    rank = int((masked.eigenvalues > 0).sum())
    assert rank <= 3
    assert not live(masked)[rank:].any()
    assert live(filled).all()
    assert torch.equal(filled.eigenvalues, masked.eigenvalues)
    for name in ("fan_in", "fan_in_bias", "gains"):
        assert torch.equal(getattr(filled, name)[:rank], getattr(masked, name)[:rank])
    lives(net, filled)


@pytest.mark.parametrize("bias", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_units_of_positive_inputs_are_active_for_some_input(preset, bias):
    """ReLU after ReLU: a unit with negative weights alone would never be active."""
    b2, b1, g = rows(1, 40, 5, 4, 3)
    stats = dataclasses.replace(from_rows(b2.abs(), b1.relu(), g, bias), slope_minus=torch.zeros(()).double())
    new = PRESETS[preset](stats, 3)
    u = b2.abs() @ new.fan_in.T + (0.0 if new.fan_in_bias is None else new.fan_in_bias)
    assert (u > 0).any(0).all()
    turned = PRESETS[preset](dataclasses.replace(stats, slope_minus=stats.slope_plus), 3)
    if preset != "zero_in":
        close(new.fan_out @ new.joined, turned.fan_out @ turned.joined, 1e-14)
        close(new.joined.abs(), turned.joined.abs(), 1e-14)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("preset", ["senn", "zero_in", "zero_out", "random"])
def test_function_is_preserved(preset, activation):
    net, stats = prepared(7, activation=activation, samples=20)
    for make in (PRESETS[preset], FILLED.get(preset, PRESETS[preset])):
        new = make(stats, 6)
        assert new.gain == 0
        assert (new.gains == 0).all()
        grown = growth.grow(net.params, net.pair, new, scale=2.0)
        close(net.f(grown, net.x), net.f(net.params, net.x), 1e-12)


@pytest.mark.parametrize("activation", ["identity", "tanh", "gelu", "sigmoid", "softplus", "relu"])
@pytest.mark.parametrize("preset", ["tiny", "gradmax", "random both"])
def test_gain_is_the_slope_of_the_mean_loss(preset, activation):
    net, stats = prepared(11, activation=activation, samples=20)
    new = PRESETS[preset](stats, 3)
    if activation == "relu":
        new = growth.choose_sign(net.f, net.params, net.data, net.pair, new)
    measured = -slope(lambda t: mean_loss(net, growth.grow(net.params, net.pair, new, scale=t)), 0.01, root=True)
    assert abs(new.gain.item() - measured) <= 1e-4 * abs(measured)
    assert (new.gains >= 0).all() or preset == "tiny"


@given(statistics(), st.integers(0, 5))
def test_tiny_is_the_optimal_move(stats, k):
    new, want = growth.tiny(stats, k), growth.optimal_neurons(stats, k)
    close(new.fan_out @ new.joined, want.fan_out @ want.joined, 1e-13)
    assert new.delta is None
    for name in ("eigenvalues", "gains", "gain"):
        assert torch.equal(getattr(new, name), getattr(want, name))


@given(statistics(), st.integers(1, 5), st.integers(0, 100))
def test_gradmax_maximises_the_gradient_of_fan_in(stats, k, seed):
    new = growth.gradmax(stats, k)
    rank = int((new.eigenvalues > 0).sum())
    out = new.fan_out[:, :rank]
    close(out.T @ out, torch.eye(rank).double(), 1e-9)
    mine = (stats.M_prev @ out).square().sum()
    close(mine, torch.linalg.svdvals(stats.M_prev)[:k].square().sum(), 1e-10)
    close(new.eigenvalues[:rank], (stats.M_prev @ out).norm(dim=0), 1e-8)
    other = torch.randn(stats.M.shape[1], k, generator=generator(seed), dtype=torch.float64)
    other = other / other.norm(dim=0)
    assert (stats.M_prev @ other).norm(dim=0).max() <= new.eigenvalues[0] * (1 + 1e-9)
    size = ((new.joined @ stats.S_prev) * new.joined).sum(1)
    assert (size[:rank] > 0).all()
    assert (size <= 1e-6 * (1 + 1e-9) * stats.positions / stats.count).all()


def test_gradmax_gradient_at_the_grown_network():
    """Small A: the measured gradient of fan_in at the grown network is that of A = 0 to first order in scale."""
    net, stats = prepared(13, samples=20)
    errors = []
    for scale in (1e-2, 1e-3, 1e-4):
        new = growth.gradmax(stats, 2, scale=scale)
        inward, _, _ = gradients(net, growth.grow(net.params, net.pair, new), 4)
        errors.append((inward - new.eigenvalues).abs().max().item())
    assert errors[2] <= 1e-3 * new.eigenvalues[1]
    assert 5 <= errors[0] / errors[1] <= 20
    assert 5 <= errors[1] / errors[2] <= 20


@given(statistics(), st.integers(0, 4))
def test_senn_has_the_directions_of_both_metrics(stats, k):
    new = growth.senn(stats, k)
    want = growth.optimal_neurons(stats, k, output_metric="fisher")
    close(new.joined, want.joined, 1e-14)
    assert (new.fan_out == 0).all()
    assert torch.equal(new.eigenvalues, want.eigenvalues)
    plain = growth.zero_out(stats, k)
    close(plain.joined, growth.optimal_neurons(stats, k).joined, 1e-14)


@given(statistics(), st.integers(0, 4))
def test_zero_in_is_zero_where_the_activation_is_smooth(stats, k):
    new = growth.zero_in(stats, k)
    assert (new.joined == 0).all()
    close(new.fan_out, growth.optimal_neurons(stats, k).fan_out, 1e-14)
    kinked = growth.zero_in(dataclasses.replace(stats, slope_minus=0 * stats.slope_minus), k)
    assert (kinked.joined.abs() <= 1e-150).all()
    assert torch.equal(live(kinked), new.eigenvalues > 0)


@given(statistics(), st.integers(0, 8), st.integers(0, 100))
def test_random_scores_are_quotients_in_order(stats, k, seed):
    new = growth.random(stats, k, generator=generator(seed), std_out=0.1)
    best = growth.optimal_neurons(stats, 1, "gradient").eigenvalues[0]
    assert (new.eigenvalues.diff() <= 0).all()
    assert (new.eigenvalues <= best + 1e-9).all()
    assert (new.gains >= 0).all()
    for j in range(k):
        A = new.joined[j]
        close(new.eigenvalues[j], (A @ stats.M_prev).norm() / (A @ stats.S_prev @ A).sqrt(), 1e-12)
    one = growth.optimal_neurons(stats, 1, "gradient")
    A = one.joined[0]
    close((A @ stats.M_prev).norm() / (A @ stats.S_prev @ A).sqrt(), best, 1e-7)


def test_random_sizes():
    stats = from_rows(3 * rows(0, 200, 6, 3, 3)[0], *rows(0, 200, 6, 3, 3)[1:])
    new = growth.random(stats, 4000, generator=generator())
    u = (new.joined @ stats.S_prev * new.joined).sum(1)
    assert abs(u.mean() - 1) < 0.05
    new = growth.random(stats, 4000, generator=generator(), std=0.2, std_out=0.7)
    assert abs(new.joined.std() - 0.2) < 0.01
    assert abs(new.fan_out.std() - 0.7) < 0.03
    fixed = growth.random(stats, 2000, std=1.0)
    assert torch.equal(fixed.fan_in, growth.random(stats, 2000, std=1.0).fan_in)
    assert abs(fixed.joined.std() - 1) < 0.02
    assert abs(fixed.joined.mean()) < 0.02


@pytest.mark.parametrize("activation", ["tanh", "gelu", "sigmoid", "softplus"])
@pytest.mark.parametrize("bias", [(True, True), (False, True)])
def test_gradient_norms_at_the_grown_network(activation, bias):
    net, stats = prepared(
        17, activation=activation, samples=20, bias=bias, positions=2 * (activation == "softplus"), p=2
    )
    small = growth.scale_neurons(growth.zero_out(stats, 3), fan_in=1e-7)
    for new in (growth.zero_in(stats, 3), small):
        inward, outward, _ = gradients(net, growth.grow(net.params, net.pair, new), 2)
        norms = growth.gradient_norms(stats, new)
        close(norms / norms.max(), (inward**2 + outward**2).sqrt() / norms.max(), 1e-6)
    assert (growth.gradient_norms(stats, growth.zero_in(stats, 2)) > 1e-3).all()
    assert (stats.sigma0 != 0) == (activation in SHIFTED)


CONVOLUTIONS = [
    ("same", torch.relu, (True, True)),
    ("valid", F.softplus, (False, True)),
    ("flat", F.softplus, (True, True)),
]


@functools.cache
def convolution(kind, activation, bias):
    n = net(kind, activation, bias)
    return n, growth.statistics(n.f, n.params, n.data, n.pair)


@pytest.mark.parametrize(("kind", "activation", "bias"), CONVOLUTIONS)
@pytest.mark.parametrize("preset", sorted(FILLED))
def test_convolutions(preset, kind, activation, bias):
    n, stats = convolution(kind, activation, bias)
    new = FILLED[preset](stats, 3)
    assert live(new).all()
    params = growth.grow(n.params, n.pair, new)
    if preset != "gradmax":
        close(n.f(params, n.x), n.f(n.params, n.x), 1e-12)
    g = grad(lambda p: F.cross_entropy(n.f(p, n.x), n.t))(params)
    columns = new.fan_out.shape[0] // 4 if kind == "flat" else 1
    inward = g["hidden"]["weight"][3:].flatten(1)
    inward = torch.cat([inward, g["hidden"]["bias"][3:, None]], 1) if bias[0] else inward
    outward = g["output"]["weight"][:, 3 * columns :].unflatten(1, (3, columns)).transpose(0, 1).flatten(1)
    assert (torch.maximum(inward.norm(dim=1), outward.norm(dim=1)) > 1e-6).all()
    if preset == "zero_in" and activation is not torch.relu:
        close(growth.gradient_norms(stats, new), torch.cat([inward, outward], 1).norm(dim=1), 1e-12)


def test_no_signal():
    b2, b1, g = rows(5, 20, 3, 3, 2)
    stats = from_rows(b2, b1, 0 * g)
    for preset in ("tiny", "gradmax", "senn", "zero_in", "zero_out"):
        assert not live(PRESETS[preset](stats, 2)).any()
    for preset in FILLED:
        new = FILLED[preset](dataclasses.replace(stats, slope_minus=0 * stats.slope_minus), 2)
        assert live(new).all()
    new = PRESETS["random"](stats, 2)
    assert live(new).all()
    assert (new.eigenvalues == 0).all()


@pytest.mark.parametrize("preset", [*PRESETS, *(f"{n} filled" for n in FILLED)])
def test_ensemble_equals_loop(preset):
    make = FILLED[preset.removesuffix(" filled")] if preset.endswith("filled") else PRESETS[preset]
    draws = torch.randn(4, 5 + 3, generator=generator(), dtype=torch.float64)
    if preset in FILLED or preset.endswith("filled"):
        fn = getattr(growth, preset.removesuffix(" filled"))
        make = lambda s, k: fn(s, k, draws=draws)
    elif preset.startswith("random"):
        make = lambda s, k: growth.random(s, k, draws=draws, std_out=0.2)
    members = [
        dataclasses.replace(
            from_rows(*rows(i, 15, 4, 3, 3, deficient=i == 1)), slope_minus=torch.tensor(i % 2.0).double()
        )
        for i in range(3)
    ]
    together = vmap(lambda s: make(s, 4))(trees.stack(members))
    for i, m in enumerate(members):
        one = make(m, 4)
        close(together.fan_out[i] @ together.fan_in[i], one.fan_out @ one.fan_in, 1e-10)
        close(together.fan_in[i].T @ together.fan_in[i], one.fan_in.T @ one.fan_in, 1e-10)
        close(together.eigenvalues[i], one.eigenvalues, 1e-10)
        close(together.gains[i], one.gains, 1e-10)


def test_generator_draws_apart_in_an_ensemble():
    members = trees.stack([from_rows(*rows(i, 15, 4, 3, 3)) for i in range(3)])
    g = generator()
    new = vmap(lambda s: growth.random(s, 2, generator=g), randomness="different")(members)
    assert (new.fan_in[0] - new.fan_in[1]).abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_dtype_is_kept(preset, dtype):
    stats = trees.map(lambda t: t.to(dtype), from_rows(*rows(4, 50, 3, 2, 2)))
    stats = dataclasses.replace(stats, slope_minus=0 * stats.slope_minus)
    new = PRESETS[preset](stats, 2)
    assert {t.dtype for t in optree.tree_leaves(new)} == {dtype}
    assert live(new).all()
    assert growth.gradient_norms(stats, new).dtype == dtype


def test_bad_arguments():
    stats = from_rows(*rows(0, 9, 2, 2, 2))
    for make in PRESETS.values():
        with pytest.raises(ValueError, match="k: got -1"):
            make(stats, -1)
    with pytest.raises(ValueError, match="scale: got 0"):
        growth.gradmax(stats, 1, scale=0)
    with pytest.raises(ValueError, match="draws: got"):
        growth.zero_in(stats, 1, draws=torch.ones(2, 2))
    with pytest.raises(TypeError, match="metric"):
        growth.zero_out(stats, 1, metric=None)
