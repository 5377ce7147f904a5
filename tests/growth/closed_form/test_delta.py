"""The optimal delta: minimum-norm least squares, with the true slope of the mean loss."""

import dataclasses

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacfwd, jacrev, vmap

import growth
from growth.strategies import from_rows, network, networks, rows, statistics
from linmaps import trees
from tests.growth.oracle import close, mean_loss, slope


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["full", "duplicate", "zero", "fewer rows"])
def test_minimum_norm_least_squares(kind, bias):
    _, b1, g = rows(1, 5 if kind == "fewer rows" else 40, 2, 6, 3)
    if kind == "duplicate":
        b1 = torch.cat([b1, b1[:, :3]], 1)
    if kind == "zero":
        b1 = torch.cat([b1[:, :2], 0 * b1[:, :1], b1[:, 2:]], 1)
    delta = growth.optimal_delta(from_rows(b1, b1, g, (True, bias)))
    full = torch.cat([b1, torch.ones(len(b1), int(bias), dtype=b1.dtype)], 1)
    want = torch.linalg.lstsq(full, g, driver="gelsd", rcond=1e-10).solution
    close(delta.weight, want[: b1.shape[1]].T, 1e-8)
    close(delta.joined, want.T, 1e-8)
    assert (delta.bias is None) is not bias
    close(delta.decrease, ((full @ want) ** 2).sum() / len(b1), 1e-10)


@given(statistics(), st.sampled_from([0.0, 0.3]))
def test_decrease_is_never_negative(stats, ridge):
    assert growth.optimal_delta(stats, ridge).decrease >= -1e-12


def test_ridge_is_in_the_units_of_S():
    stats = from_rows(*rows(2, 30, 3, 4, 2))
    want = torch.linalg.inv(stats.S + 0.7 * torch.eye(5, dtype=torch.float64)) @ stats.M
    close(growth.optimal_delta(stats, 0.7).joined, want.T, 1e-12)
    close(growth.optimal_delta(stats, torch.tensor(0.7, dtype=torch.float64)).joined, want.T, 1e-12)


def test_rtol_cuts_small_directions():
    _, b1, g = rows(3, 30, 1, 3, 2)
    b1[:, 2] = b1[:, 0] + 1e-3 * b1[:, 2]
    stats = from_rows(b1, b1, g, (True, False))
    e, v = torch.linalg.eigh(stats.S)
    want = (v[:, 1:] / e[1:]) @ v[:, 1:].T @ stats.M
    close(growth.optimal_delta(stats, rtol=1e-4).joined, want.T, 1e-9)
    assert growth.optimal_delta(stats).weight.norm() > 2 * want.norm()


@given(networks(samples=10))
def test_decrease_is_the_slope_of_the_mean_loss(net):
    delta = growth.optimal_delta(growth.statistics(net.f, net.params, net.data, net.pair, net.loss))
    measured = -slope(lambda t: mean_loss(net, growth.grow(net.params, net.pair, delta=delta, scale=t)))
    assert abs(measured - delta.decrease.item()) <= 1e-6 * max(1.0, abs(measured))


@pytest.mark.parametrize("bias", [True, False])
def test_one_full_step_is_the_exact_refit_for_squared_error(bias):
    net = network(5, bias=(True, bias))
    f = lambda p, x: torch.nn.functional.linear(
        torch.tanh(x @ p["hidden"]["weight"].T), p["output"]["weight"], p["output"].get("bias")
    )
    params = {"hidden": {"weight": net.params["hidden"]["weight"]}, "output": net.params["output"]}
    target = network(6, loss="squared_error").target[:, :3]
    delta = growth.optimal_delta(growth.statistics(f, params, (net.x, target), net.pair, "squared_error"))
    y = f(growth.grow(params, net.pair, delta=delta), net.x)
    b1 = torch.tanh(net.x @ params["hidden"]["weight"].T)
    b1 = torch.cat([b1, torch.ones(len(b1), int(bias), dtype=b1.dtype)], 1)
    close(y, b1 @ torch.linalg.lstsq(b1, target).solution, 1e-10)


@given(statistics(), st.sampled_from([1e-6, 1e-3, 1e4]), st.sampled_from([1e-6, 1e-3, 1e4]))
def test_scales_of_loss_and_inputs(stats, c, d):
    """Loss times c: delta times c; inputs times d (no bias): delta over d.  The rank kept is the same."""
    if stats.bias_after:
        d = 1.0
    scaled = from_scaled(stats, c, d)
    a, b = growth.optimal_delta(stats), growth.optimal_delta(scaled)
    close(b.weight * d / c, a.weight, 1e-6)
    close(b.decrease / c**2, a.decrease, 1e-9)


def from_scaled(stats, c, d):
    return dataclasses.replace(stats, S=d * d * stats.S, M=c * d * stats.M, P=d * stats.P, M_prev=c * stats.M_prev)


def through(net, t, fn):
    direction = trees.map(lambda p: torch.cos(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape), net.params)
    params = trees.axpy(t, direction, net.params)
    return fn(growth.statistics(net.f, params, net.data, net.pair, net.loss))


@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"activation": "gelu", "p": 0}])
def test_differentiable_through_statistics_also_without_full_rank(options):
    net = network(7, **options)
    value = lambda t: through(net, t, lambda s: growth.optimal_delta(s).decrease)
    zero, h = torch.zeros((), dtype=torch.float64), 1e-4
    first = (value(zero + h) - value(zero - h)) / (2 * h)
    second = (value(zero + h) - 2 * value(zero) + value(zero - h)) / h**2
    for outer in (jacfwd, jacrev):
        close(outer(value)(zero), first, 1e-5)
        for inner in (jacfwd, jacrev):
            close(outer(inner(value))(zero), second, 1e-4)


def test_ensemble_equals_loop():
    members = [from_rows(*rows(i, 9, 2, 4, 3, deficient=True)) for i in range(4)]
    together = vmap(growth.optimal_delta)(trees.stack(members))
    for i, m in enumerate(members):
        for a, b in zip(optree.tree_leaves(together), optree.tree_leaves(growth.optimal_delta(m)), strict=True):
            close(a[i], b, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept(dtype):
    stats = from_rows(*rows(4, 50, 2, 3, 2))
    got = growth.optimal_delta(trees.map(lambda t: t.to(dtype), stats))
    assert got.weight.dtype == got.bias.dtype == got.decrease.dtype == dtype
    close(got.weight.double(), growth.optimal_delta(stats).weight, 1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": -1.0}, "ridge: got -1.0"),
        ({"ridge": torch.ones(2)}, "ridge: got a tensor of shape"),
        ({"ridge": float("nan")}, "ridge"),
        ({"rtol": -1e-3}, "rtol"),
        ({"rtol": 2.0}, "rtol"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        growth.optimal_delta(from_rows(*rows(0, 9, 2, 2, 2)), **options)


# --- what closed forms must not depend on ----------------------------------------------------------------------------


def test_mean_and_sum_losses_and_batch_sizes_give_one_delta():
    """A loss divided by the size of the batch is refused; per-sample losses give the same delta for any batches."""
    net = network(13, samples=12)
    per_sample = lambda y, t: torch.nn.functional.cross_entropy(y, t, reduction="none")
    whole = growth.optimal_delta(growth.statistics(net.f, net.params, net.data, net.pair, per_sample))
    for size in (1, 5, 12):
        batches = list(zip(net.x.split(size), net.target.split(size)))
        delta = growth.optimal_delta(growth.statistics(net.f, net.params, batches, net.pair))
        close(delta.joined, whole.joined, 1e-10)
        close(delta.decrease, whole.decrease, 1e-10)
    with pytest.raises(ValueError, match="one loss per sample"):
        growth.statistics(net.f, net.params, net.data, net.pair, torch.nn.functional.cross_entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicate_columns_never_give_a_large_delta(dtype):
    """Exact duplicates leave rounding on the null directions of S: over many seeds the norm stays the least one."""
    members, wants = [], []
    for seed in range(50):
        _, b1, g = rows(seed, 100, 1, 16, 5)
        b1 = torch.cat([b1, b1[:, :4]], 1).to(dtype)
        members.append(trees.map(lambda t: t.to(dtype), from_rows(b1, b1, g.to(dtype))))
        full = torch.cat([b1.double(), torch.ones(100, 1, dtype=torch.float64)], 1)
        wants.append(torch.linalg.lstsq(full, g, driver="gelsd", rcond=1e-6).solution.T)
    got = vmap(lambda s: growth.optimal_delta(s).joined)(trees.stack(members)).double()
    close(got, torch.stack(wants), 1e-10 if dtype == torch.float64 else 1e-4)
    for m, want in zip(members[::10], wants[::10]):
        close(growth.optimal_delta(m).joined.double(), want, 1e-10 if dtype == torch.float64 else 1e-4)


def test_asymmetry_at_the_size_of_rounding_is_no_error():
    stats = from_rows(*rows(14, 40, 3, 4, 2))
    noise = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    S = 2500 * stats.S
    tilted = dataclasses.replace(stats, S=S + 1e-4 * noise)
    symmetric = dataclasses.replace(stats, S=S + 5e-5 * (noise + noise.mT))
    close(growth.optimal_delta(tilted).joined * 2500, growth.optimal_delta(symmetric).joined * 2500, 1e-12)


@pytest.mark.parametrize("name", ["S", "M"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(name, value):
    stats = from_rows(*rows(15, 20, 3, 3, 2))
    bad = getattr(stats, name).clone()
    bad[1, 0] = value
    with pytest.raises(ValueError, match=rf"statistics: \['{name}'\] are not finite"):
        growth.optimal_delta(dataclasses.replace(stats, **{name: bad}))
    with pytest.raises(ValueError, match=name):
        vmap(growth.optimal_delta)(trees.stack([stats, dataclasses.replace(stats, **{name: bad})]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["full", "deficient", "zero"])
def test_every_way_keeps_the_dtype_and_the_arguments(dtype, kind):
    b2, b1, g = rows(16, 30, 3, 4, 2, deficient=kind == "deficient")
    b1 = b1 * (torch.arange(4) > 0) if kind == "zero" else b1
    stats = trees.map(lambda t: t.to(dtype), from_rows(b2, b1, g))
    kept = trees.map(torch.clone, stats)
    for options in ({}, {"ridge": 0.1}, {"rtol": 1e-3}, {"output_metric": "fisher", "shrinkage": 0.5}):
        assert {t.dtype for t in optree.tree_leaves(growth.optimal_delta(stats, **options))} == {dtype}
        assert {t.dtype for t in optree.tree_leaves(growth.optimal_neurons(stats, 2, **options))} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(optree.tree_leaves(stats), optree.tree_leaves(kept), strict=True))
