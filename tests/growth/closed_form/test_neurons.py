"""New neurons: the best rank-k move, its exact drop and slope, the joint optimum, masks, invariances."""

import dataclasses

import optree
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

import growth
from growth.strategies import ACTIVATIONS, SHIFTED, from_rows, network, rows, statistics
from linmaps import trees
from tests.growth import oracle
from tests.growth.oracle import close, mean_loss, slope

BIASES = [(True, True), (True, False), (False, True), (False, False)]


def with_ones(b2, b1, g, bias):
    return *(torch.cat([b, torch.ones(len(b), int(one), dtype=b.dtype)], 1) for b, one in zip((b2, b1), bias)), g


def residual(b1, g):
    return -(g - b1 @ torch.linalg.lstsq(b1, g, driver="gelsd", rcond=1e-10).solution)


def best_move(b2, target, k):
    """The best rank-k approximation of the target by functions of b2: truncated SVD of its projection on their span."""
    u, s, _ = torch.linalg.svd(b2, full_matrices=False)
    u = u[:, s > 1e-10 * s[0]]
    a, e, c = torch.linalg.svd(u.T @ target, full_matrices=False)
    return u @ (a[:, :k] * e[:k]) @ c[:k], e[:k]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("deficient", [False, True])
@pytest.mark.parametrize("target", ["residual", "gradient"])
def test_best_rank_k_and_its_drop(bias, deficient, target):
    given_rows = rows(1, 30, 5, 3, 4, deficient)
    b2, b1, g = with_ones(*given_rows, bias)
    R = residual(b1, g) if target == "residual" else -g
    for k in (1, 2, 4):
        new = growth.optimal_neurons(from_rows(*given_rows, bias), k, target)
        move = b2 @ new.joined.T @ new.fan_out.T
        want, singular = best_move(b2, R, k)
        close(move, want, 1e-10)
        n = len(g)
        close(new.eigenvalues, singular / n**0.5, 1e-10)
        drop = (R**2).sum() / n - ((R - move) ** 2).sum() / n
        close(drop, (new.eigenvalues**2).sum(), 1e-10)
        assert (new.fan_in_bias is not None) is bias[0]
        assert new.fan_in.shape == (k, 5)
        assert new.fan_out.shape == (4, k)


def test_amplitude_is_shared_evenly():
    stats = from_rows(*rows(2, 30, 5, 3, 4))
    new = growth.optimal_neurons(stats, 4)
    gram = new.joined @ stats.S_prev @ new.joined.T
    close(gram, torch.diag(new.eigenvalues), 1e-12)
    close(new.fan_out.T @ new.fan_out, torch.diag(new.eigenvalues), 1e-12)
    assert (new.eigenvalues.diff() <= 0).all()


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("deficient", [False, True])
def test_joint_optimum(bias, deficient):
    given_rows = rows(3, 30, 5, 3, 4, deficient)
    b2, b1, g = with_ones(*given_rows, bias)
    stats = from_rows(*given_rows, bias)
    delta = growth.optimal_delta(stats)
    for k in (1, 2):
        new = growth.optimal_neurons(stats, k, joint=True)

        def objective(n, d):
            return ((g - b1 @ d.joined.T + b2 @ n.joined.T @ n.fan_out.T) ** 2).sum() / len(g)

        drop = (g**2).sum() / len(g) - objective(new, new.delta)
        close(drop, delta.decrease + (new.eigenvalues**2).sum(), 1e-10)
        close(new.delta.decrease, (stats.M * new.delta.joined.T).sum(), 1e-12)
        apart = growth.optimal_neurons(stats, k, delta=delta)
        assert apart.delta is None
        assert objective(new, new.delta) < objective(apart, delta) - 1e-3
        # stationary: no change of the delta or of the units lowers the objective to first order
        slopes = grad(objective, argnums=(0, 1))(dataclasses.replace(new, delta=None), new.delta)
        assert all(t.abs().max() <= 1e-10 for t in optree.tree_leaves(slopes))


def test_joint_with_nothing_left_masks_everything():
    b2, _, g = rows(4, 30, 4, 4, 3)
    new = growth.optimal_neurons(from_rows(b2, b2, g), 2, joint=True)  # the inputs of both layers are the same
    assert all((t == 0).all() for t in (new.fan_in, new.fan_out, new.eigenvalues, new.gains))
    close(new.delta.weight, growth.optimal_delta(from_rows(b2, b2, g)).weight, 1e-10)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("target", ["residual", "gradient"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_gain_is_the_slope_of_the_mean_loss(name, target, loss):
    net = network(11, activation=name, loss=loss, samples=20)
    stats = growth.statistics(net.f, net.params, net.data, net.pair, loss)
    new = growth.optimal_neurons(stats, 2, target)
    if name in ("relu", "leaky_relu", "selu"):
        new = growth.choose_sign(net.f, net.params, net.data, net.pair, new, loss)
    measured = -slope(lambda t: mean_loss(net, growth.grow(net.params, net.pair, new, scale=(0.0, t))), 0.02, root=True)
    assert abs(new.gain.item() - measured) <= 1e-4 * abs(measured)
    close(new.gains.sum(), new.gain, 1e-12)
    if target == "gradient" and name in ("identity", "tanh"):
        close(new.gain, (new.eigenvalues**2).sum(), 1e-12)
    assert (new.sigma0 != 0) == (name in SHIFTED)


def test_delta_and_gain_add_up():
    net = network(12, activation="gelu", samples=20)
    stats = growth.statistics(net.f, net.params, net.data, net.pair)
    for joint in (False, True):
        new = growth.optimal_neurons(stats, 2, joint=joint)
        delta = new.delta if joint else growth.optimal_delta(stats)
        grown = lambda t: mean_loss(net, growth.grow(net.params, net.pair, new, delta=delta, scale=t))  # noqa: B023
        assert abs(slope(grown, 0.02, root=True) + (delta.decrease + new.gain).item()) <= 1e-5


@given(statistics(), st.integers(0, 7), st.booleans())
def test_rank_bounds_and_masks(stats, k, joint):
    new = growth.optimal_neurons(stats, k, joint=joint)
    rank = min(int(torch.linalg.matrix_rank(stats.S_prev, hermitian=True, rtol=1e-10)), stats.M.shape[1])
    alive = new.eigenvalues > 0
    assert alive.sum() <= min(k, rank)
    assert new.size == k == len(new.eigenvalues) == len(new.gains)
    assert not alive[int(alive.sum()) :].any()
    assert (new.joined[~alive] == 0).all()
    assert (new.fan_out[:, ~alive] == 0).all()
    assert all(t.isfinite().all() for t in optree.tree_leaves(new))


@pytest.mark.parametrize("options", [{}, {"target": "gradient"}, {"joint": True}])
def test_no_gradient_no_neurons(options):
    b2, b1, g = rows(5, 20, 3, 3, 2)
    stats = from_rows(b2, b1, 0 * g)

    def solve(M):
        return optree.tree_leaves(growth.optimal_neurons(dataclasses.replace(stats, M_prev=M), 3, **options))

    assert all((t == 0).all() for t in solve(stats.M_prev))
    for mode in (jacrev, jacfwd):
        assert all(t.isfinite().all() for t in mode(solve)(stats.M_prev))


def test_what_the_delta_can_do_gives_no_neurons():
    """A gradient that is linear in b1: N is rounding only."""
    b2, b1, _ = rows(6, 40, 4, 3, 2)
    g = b1 @ torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        stats = trees.map(lambda t: t.to(dtype), from_rows(b2, b1, g))  # noqa: B023
        assert (growth.optimal_neurons(stats, 2).eigenvalues == 0).all()
        assert (growth.optimal_neurons(stats, 2, "gradient").eigenvalues > 0).all()


@given(statistics(), st.sampled_from([1e-6, 1e-3, 1e5]), st.sampled_from([1e-6, 1e-3, 1e5]), st.booleans())
def test_scale_invariance_of_choices(stats, c, d, joint):
    """Loss times c and inputs of the pair times d (no biases): as many units, the same move in those units."""
    assume(not (stats.bias_before or stats.bias_after))
    scaled = dataclasses.replace(
        stats,
        S=d * d * stats.S,
        S_prev=d * d * stats.S_prev,
        P=d * d * stats.P,
        M=c * d * stats.M,
        M_prev=c * d * stats.M_prev,
    )
    a, b = growth.optimal_neurons(stats, 2, joint=joint), growth.optimal_neurons(scaled, 2, joint=joint)
    assert ((a.eigenvalues > 0) == (b.eigenvalues > 0)).all()
    close(b.eigenvalues / c, a.eigenvalues, 1e-7)


def test_float32_keeps_units_at_any_scale():
    b2, b1, g = rows(7, 60, 4, 3, 3)
    for c in (1e-12, 1.0, 1e12):
        stats = trees.map(torch.Tensor.float, from_rows(b2, b1, c * g))
        new = growth.optimal_neurons(stats, 3)
        assert (new.eigenvalues > 0).all()
        close(new.eigenvalues.double() / c, growth.optimal_neurons(from_rows(b2, b1, g), 3).eigenvalues, 1e-4)


def test_delta_is_used_again():
    stats = from_rows(*rows(8, 30, 4, 3, 2))
    zero = trees.zeros_like(growth.optimal_delta(stats))
    with_zero = growth.optimal_neurons(stats, 2, delta=zero)
    close(with_zero.eigenvalues, growth.optimal_neurons(stats, 2, "gradient").eigenvalues, 1e-12)


def test_width_zero_learns_at_once():
    """From no hidden unit at all: with linear activation and enough units, one step is the least-squares fit."""
    net = network(9, p=0, q=2, activation="identity")
    f = lambda p, x: x @ p["hidden"]["weight"].T @ p["output"]["weight"].T + p["output"]["bias"]
    params = {"hidden": {"weight": torch.zeros(0, 3).double()}, "output": net.params["output"]}
    target = network(3, loss="squared_error").target[:, :2]
    stats = growth.statistics(f, params, (net.x, target), net.pair, "squared_error")
    new = growth.optimal_neurons(stats, 2, joint=True)
    y = f(growth.grow(params, net.pair, new, delta=new.delta), net.x)
    full = torch.cat([net.x, torch.ones(len(net.x), 1).double()], 1)
    close(y, full @ torch.linalg.lstsq(full, target).solution, 1e-10)


@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"r": 1, "q": 4, "p": 1}, {"activation": "gelu", "p": 0}])
@pytest.mark.parametrize("joint", [False, True])
def test_differentiable_through_statistics_also_without_full_rank(options, joint):
    net = network(7, **options)
    direction = trees.map(
        lambda p: 0.1 * torch.cos(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape), net.params
    )

    def value(t):
        stats = growth.statistics(net.f, trees.axpy(t, direction, net.params), net.data, net.pair)
        new = growth.optimal_neurons(stats, 2, joint=joint)
        move = new.fan_out @ new.joined
        return (move * torch.cos(torch.arange(move.numel()).reshape(move.shape))).sum() + new.gain + new.eigenvalues[0]

    oracle.twice_differentiable(value)


def test_ensemble_equals_loop():
    members = [from_rows(*rows(i, 15, 4, 3, 3, deficient=i % 2 == 0)) for i in range(4)]
    for joint in (False, True):
        solve = lambda s: growth.optimal_neurons(s, 3, joint=joint)  # noqa: B023
        together = vmap(solve)(trees.stack(members))
        for i, m in enumerate(members):
            one = solve(m)
            close(together.fan_out[i] @ together.fan_in[i], one.fan_out @ one.fan_in, 1e-10)
            close(together.eigenvalues[i], one.eigenvalues, 1e-10)
            close(together.gains[i], one.gains, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept(dtype):
    stats = from_rows(*rows(4, 50, 3, 2, 2))
    new = growth.optimal_neurons(trees.map(lambda t: t.to(dtype), stats), 2, joint=True)
    assert {t.dtype for t in optree.tree_leaves(new)} == {dtype}
    close(
        new.eigenvalues.double(),
        growth.optimal_neurons(stats, 2, joint=True).eigenvalues,
        1e-5 if dtype == torch.float32 else 3e-2,
    )


@pytest.mark.parametrize(
    ("k", "options", "error", "message"),
    [
        (-1, {}, ValueError, "k: got -1"),
        (1.0, {}, TypeError, "k: got float"),
        (True, {}, TypeError, "k: got bool"),
        (1, {"target": "loss"}, ValueError, "target: got 'loss'"),
        (1, {"target": "gradient", "joint": True}, ValueError, "joint=True"),
        (1, {"ridge": -1.0}, ValueError, "ridge"),
        (1, {"delta": growth.Delta(torch.ones(2, 5), None, torch.ones(()))}, ValueError, "delta: got"),
    ],
)
def test_bad_options(k, options, error, message):
    with pytest.raises(error, match=message):
        growth.optimal_neurons(from_rows(*rows(0, 9, 2, 2, 2)), k, **options)


# --- what closed forms must not depend on ----------------------------------------------------------------------------


def test_batch_sizes_change_no_choice():
    net = network(14, samples=12, activation="gelu")
    whole = growth.optimal_neurons(growth.statistics(net.f, net.params, net.data, net.pair), 4)
    for size in (1, 5):
        batches = list(zip(net.x.split(size), net.target.split(size)))
        new = growth.optimal_neurons(growth.statistics(net.f, net.params, batches, net.pair), 4)
        assert ((new.eigenvalues > 0) == (whole.eigenvalues > 0)).all()
        close(new.eigenvalues, whole.eigenvalues, 1e-10)
        close(new.fan_out @ new.joined, whole.fan_out @ whole.joined, 1e-9)


@pytest.mark.parametrize("zeroed", ["fan_in", "fan_out"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_units_that_preserve_the_function_promise_no_decrease(zeroed, activation):
    net = network(15, activation=activation)
    new = growth.optimal_neurons(growth.statistics(net.f, net.params, net.data, net.pair), 2)
    assert (new.gains.abs() > 1e-6).any()
    parts = {"fan_in": 0 * new.fan_in, "fan_in_bias": 0 * new.fan_in_bias}
    still = dataclasses.replace(new, **(parts if zeroed == "fan_in" else {"fan_out": 0 * new.fan_out}))
    exact = growth.choose_sign(net.f, net.params, net.data, net.pair, still)
    assert (exact.gains == 0).all()
    assert exact.gain == 0
    masked = growth.optimal_neurons(growth.statistics(net.f, net.params, net.data, net.pair), 9)
    dead = masked.eigenvalues == 0
    assert dead.any()
    assert (masked.gains[dead] == 0).all()


@pytest.mark.parametrize("c", [1e-8, 1e-2, 1e8])
@pytest.mark.parametrize("d", [1e-8, 1e-4, 1e8])
def test_as_many_units_at_any_scale_of_loss_and_inputs(c, d):
    """Well-conditioned inputs of scale 1e-4 have their full rank, small gradients near convergence keep all units."""
    b2, b1, g = rows(17, 60, 6, 4, 5)
    for dtype in (torch.float32, torch.float64):
        stats = trees.map(lambda t: t.to(dtype), from_rows(d * b2, d * b1, c * g, (False, False)))  # noqa: B023
        for options in ({}, {"joint": True}, {"target": "gradient"}):
            assert (growth.optimal_neurons(stats, 5, **options).eigenvalues > 0).all()


def test_a_residual_of_zero_keeps_no_unit_and_a_gradient_of_zero_neither():
    b2, b1, g = rows(18, 30, 4, 3, 5)
    fitted = b1 @ torch.linalg.lstsq(b1, g).solution
    for gradients in (0 * g, fitted):
        for k in (1, 4, 9):
            new = growth.optimal_neurons(from_rows(b2, b1, gradients, (True, False)), k)
            assert new.size == k
            assert all((t == 0).all() for t in (new.joined, new.fan_out, new.eigenvalues, new.gains, new.gain))


def test_the_units_of_sequences_count_samples_once():
    """Targets of sequences are sums over positions, means over samples, in every statistic: the drop is in these units."""
    n, positions = 6, 5
    b2, b1, g = rows(19, n * positions, 4, 3, 3)
    by_row = from_rows(b2, b1, g)
    names = ("S", "M", "S_prev", "M_prev", "P", "E")
    stats = dataclasses.replace(
        by_row, **{m: positions * getattr(by_row, m) for m in names}, count=by_row.count / positions
    )
    new, delta = growth.optimal_neurons(stats, 2), growth.optimal_delta(stats)
    close(delta.joined, growth.optimal_delta(by_row).joined, 1e-10)
    one2, one1 = (torch.cat([b, torch.ones(len(b), 1, dtype=b.dtype)], 1) for b in (b2, b1))
    R = -(g - one1 @ delta.joined.T)
    move = one2 @ new.joined.T @ new.fan_out.T
    close(((R**2).sum() - ((R - move) ** 2).sum()) / n, (new.eigenvalues**2).sum(), 1e-10)
    net = network(20, positions=3, samples=4)
    seen = growth.statistics(net.f, net.params, net.data, net.pair)
    assert (seen.count, seen.positions) == (4, 12)
    flat = growth.statistics(net.f, net.params, (net.x.flatten(0, 1), net.target.flatten()), net.pair)
    close(growth.optimal_neurons(seen, 2).eigenvalues, 3**0.5 * growth.optimal_neurons(flat, 2).eigenvalues, 1e-9)


@pytest.mark.parametrize(
    ("activation", "slope_at_0"),
    [
        (torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.5).eval()), 0.5),
        (torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Hardtanh()), 1.0),
        (lambda z: 3 * torch.tanh(2 * z), 6.0),
        (torch.nn.PReLU(init=0.5).double().requires_grad_(False), 0.75),
    ],
)
def test_gains_use_the_slope_of_the_composed_activation(activation, slope_at_0):
    net = network(16)
    f = lambda p, x: torch.nn.functional.linear(
        activation(torch.nn.functional.linear(x, p["hidden"]["weight"], p["hidden"]["bias"])),
        p["output"]["weight"],
        p["output"]["bias"],
    )
    params = {"hidden": net.params["hidden"], "output": net.params["output"]}
    pair = growth.Pair("hidden", "output", activation=activation)
    target = net.target % 3
    for _ in range(2):
        stats = growth.statistics(f, params, (net.x, target), pair)
        new = growth.optimal_neurons(stats, 2)
        assert abs(stats.slope.item() - slope_at_0) < 1e-12
        close(new.gains, -slope_at_0 * torch.einsum("ki,iq,qk->k", new.joined, stats.M_prev, new.fan_out), 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_metric": "fisher"}, "input_metric: got 'fisher'"),
        ({"input_metric": None, "joint": True}, "input_metric=None"),
        ({"threshold": 1.0}, "threshold: got 1.0"),
        ({"noise_floor": -1.0}, "noise_floor: got -1.0"),
        ({"noise_floor": torch.ones(2)}, "noise_floor"),
    ],
)
def test_bad_metrics_and_floors(options, message):
    with pytest.raises(ValueError, match=message):
        growth.optimal_neurons(from_rows(*rows(0, 9, 2, 2, 2)), 1, **options)
