"""Convolutional pairs: statistics against patches by hand, slopes and drops, surgery, the layer behind a flattened map."""

import dataclasses
import math

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

import growth
from growth.checks.losses import per_sample
from linmaps import trees
from tests.growth.oracle import close, slope

KINDS = {  # geometry of the layer after, spatial axes
    "same": {"dim": 2, "kernel": 3, "padding": 1},
    "valid": {"dim": 2, "kernel": 3},
    "stride": {"dim": 2, "kernel": 3, "stride": 2, "padding": 1},
    "dilated": {"dim": 2, "kernel": (2, 3), "dilation": 2, "padding": 2},
    "line": {"dim": 1, "kernel": 5, "padding": 2},
    "volume": {"dim": 3, "kernel": 2},
    "pointwise": {"dim": 2, "kernel": 1},
    "flat": {"dim": 2, "kernel": None},
}
CASES = [(kind, taps) for kind in KINDS for taps in ("all", "centre") if (kind, taps) != ("flat", "centre")]
BIAS = [(True, True), (False, True), (True, False), (False, False)]


@dataclasses.dataclass(frozen=True)
class Net:
    f: object
    params: dict
    x: torch.Tensor
    t: torch.Tensor
    geometry: dict
    activation: object

    pair = growth.Pair("hidden", "output")

    @property
    def data(self):
        return self.x, self.t


def each(value, dim):
    return (value,) * dim if isinstance(value, int) else tuple(value)


def net(kind, activation=torch.tanh, bias=(True, True), seed=0, size=5, p=3, norm=False):
    """first (1x1) -> tanh -> hidden -> (norm ->) activation -> output -> tanh -> mean over positions."""
    geometry = {"dim": 2, **KINDS[kind]}
    dim = geometry["dim"]
    g = torch.Generator().manual_seed(seed)
    normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dim]
    size = min(size, 4) if dim == 3 else size
    flat = geometry["kernel"] is None
    inside = size - 1  # a kernel of 2 without padding
    columns = (inside**dim,) if flat else ()
    kernel = () if flat else each(geometry["kernel"], dim)

    def layer(o, i, kernel, has):
        return {"weight": normal(o, i, *kernel) / max(1, i) ** 0.5} | ({"bias": normal(o) * 0.3} if has else {})

    params = {
        "first": layer(2, 1, (1,) * dim, True),
        "hidden": layer(p, 2, (2,) * dim, bias[0]),
        "output": layer(4, p * math.prod(columns), kernel, bias[1]),
    }
    if norm:
        params["norm"] = {
            "weight": normal(p),
            "bias": normal(p),
            "running_mean": normal(p),
            "running_var": normal(p) ** 2,
        }
    options = {k: geometry[k] for k in ("stride", "padding", "dilation") if k in geometry}

    def f(params, x):
        w = lambda n: (params[n]["weight"], params[n].get("bias"))
        z = conv(torch.tanh(conv(x, *w("first"))), *w("hidden"))
        if norm:
            m = params["norm"]
            z = F.batch_norm(z, m["running_mean"], m["running_var"], m["weight"], m["bias"], eps=1e-12)
        h = activation(z)
        a = F.linear(h.flatten(1), *w("output"))[..., None] if flat else conv(h, *w("output"), **options)
        return torch.tanh(a).flatten(2).mean(-1)

    count = 60 if flat else 14
    x = normal(count, 1, *(size,) * dim)
    return Net(f, params, x, torch.randint(0, 4, (count,), generator=g), geometry, activation)


def mean_loss(n, params):
    return per_sample("cross_entropy")(n.f(params, n.x), n.t).mean()


def collect(n, **options):
    return growth.statistics(n.f, n.params, n.data, n.pair, **options)


def rows(n, bias, taps):
    """b2 [B, X, e, r+1], b1 [B, X, p+1], g [B, X, q] by unfolding with loops over positions and taps."""
    dim = n.geometry["dim"]
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dim]
    w = lambda name: (n.params[name]["weight"], n.params[name].get("bias"))
    source = torch.tanh(conv(n.x, *w("first")))
    hidden = n.activation(conv(source, *w("hidden")))
    B, shape = len(n.x), hidden.shape[2:]
    patch = lambda y: source[(slice(None), slice(None), *(slice(i, i + 2) for i in y))].flatten(1)
    ones = torch.ones(B, 1, dtype=torch.float64)
    weight, b = w("output")
    options = {k: each(n.geometry.get(k, d), dim) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1))}
    if weight.ndim == 2:
        a = F.linear(hidden.flatten(1), weight, b)[..., None]
        options, kernel, out = {k: (0,) * dim if k == "padding" else (1,) * dim for k in options}, shape, (1,) * dim
    else:
        a = conv(hidden, weight, b, **options)
        kernel, out = weight.shape[2:], a.shape[2:]
    a = a.detach().requires_grad_()
    loss = F.cross_entropy(torch.tanh(a).flatten(2).mean(-1), n.t, reduction="sum")
    g = torch.autograd.grad(loss, a)[0].flatten(2).transpose(1, 2)
    grid = lambda s: torch.cartesian_prod(*(torch.arange(k) for k in s)).reshape(-1, len(s)).tolist()
    b2, b1 = [], []
    for x in grid(out):
        here, inputs = [], []
        for e in grid(kernel):
            y = [
                i * s - p + j * d
                for i, j, s, p, d in zip(x, e, *(options[k] for k in ("stride", "padding", "dilation")))
            ]
            inside = all(0 <= i < m for i, m in zip(y, shape))
            row = torch.cat([patch(y), ones[:, : int(bias[0])]], 1) if inside else None
            width = source.shape[1] * 2**dim + int(bias[0])
            here.append(row if inside else torch.zeros(B, width, dtype=torch.float64))
            inputs.append(
                hidden[(slice(None), slice(None), *y)]
                if inside
                else torch.zeros_like(hidden[:, :, 0].flatten(1)[:, :1]).expand(B, hidden.shape[1])
            )
        if taps == "centre":
            here = [here[grid(kernel).index([(k - 1) // 2 for k in kernel])]]
        b2.append(torch.stack(here, 1))
        b1.append(torch.cat([torch.stack(inputs, 2).flatten(1), ones[:, : int(bias[1])]], 1))
    return torch.stack(b2, 1), torch.stack(b1, 1), g


@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize(("kind", "taps"), CASES)
def test_statistics_are_sums_over_positions_and_taps(kind, bias, taps):
    n = net(kind, bias=bias)
    s = collect(n, taps=taps)
    b2, b1, g = rows(n, bias, taps)
    B = len(n.x)
    close(s.S, torch.einsum("bxi,bxj->ij", b1, b1) / B, 1e-12)
    close(s.M, torch.einsum("bxi,bxq->iq", b1, g) / B, 1e-12)
    close(s.E, torch.einsum("bxp,bxq->pq", g, g) / B, 1e-12)
    close(s.S_prev, torch.einsum("bxei,bxej->ij", b2, b2) / B, 1e-12)
    close(s.M_prev, torch.einsum("bxei,bxq->iqe", b2, g).flatten(1) / B, 1e-12)
    P = torch.einsum("bxei,bxj->eij", b2, b1) / B
    close(s.P, P[0] if b2.shape[2] == 1 else P, 1e-12)
    assert s.count == B
    assert s.positions == B * b1.shape[1]
    change = torch.randn(g.shape[2], b1.shape[2], dtype=torch.float64)
    close(s.crossed(change), torch.einsum("bxei,bxq->iqe", b2, b1 @ change.T).flatten(1) / B, 1e-12)


@pytest.mark.parametrize("activation", [torch.tanh, F.gelu, torch.relu])
@pytest.mark.parametrize(("kind", "taps"), CASES)
def test_decrease_and_gain_are_slopes(kind, activation, taps):
    n = net(kind, activation)
    s = collect(n, taps=taps)
    delta = growth.optimal_delta(s)
    new = growth.optimal_neurons(s, 3, delta=delta)
    if activation is torch.relu:
        new = growth.choose_sign(n.f, n.params, n.data, n.pair, new, taps=taps)
    assert new.gain > 0
    assert delta.decrease > 0
    assert growth.grow(n.params, n.pair, new)["hidden"]["weight"].shape[0] == 6
    moved = lambda t: mean_loss(n, growth.grow(n.params, n.pair, None, delta=delta, scale=t))
    grown = lambda t: mean_loss(n, growth.grow(n.params, n.pair, new, scale=t))
    assert abs(slope(moved, 1e-2) / -delta.decrease - 1) < 1e-6
    assert abs(slope(grown, 1e-2, root=True) / -new.gain - 1) < 1e-4
    close(grown(0.0), mean_loss(n, n.params), 1e-14)


@pytest.mark.parametrize("kind", ["same", "valid", "stride", "line"])
def test_centre_taps_give_the_best_rank_k_move(kind):
    """Only the alignment of positions enters, so the drop of the linearised residual is exact."""
    n = net(kind)
    s = collect(n, taps="centre")
    b2, b1, g = (t.flatten(0, 1) for t in rows(n, (True, True), "centre"))
    b2 = b2[:, 0]
    delta = growth.optimal_delta(s)
    residual = -(g - b1 @ delta.joined.T)
    for k in (1, 3):
        new = growth.optimal_neurons(s, k, delta=delta)
        left = residual - b2 @ new.joined.T @ new.fan_out.T
        drop = ((residual**2).sum() - (left**2).sum()) / len(n.x)
        close(drop, (new.eigenvalues**2).sum(), 1e-10)


def test_preview_is_what_is_applied_and_neighbours_grow_together():
    g = torch.Generator().manual_seed(3)
    normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    params = {
        "a": {"weight": normal(2, 1, 3, 3), "bias": normal(2)},
        "b": {"weight": normal(3, 2, 3, 3), "bias": normal(3)},
        "c": {"weight": normal(4, 3 * 16), "bias": normal(4)},
    }

    def f(p, x):
        w = lambda n: (p[n]["weight"], p[n]["bias"])
        h = torch.tanh(F.conv2d(x, *w("a"), padding=1))
        return F.linear(F.gelu(F.conv2d(h, *w("b"), padding=1)).flatten(1), *w("c"))

    x, t = normal(7, 1, 4, 4), torch.randint(0, 4, (7,), generator=g)
    pairs = [growth.Pair("a", "b"), growth.Pair("b", "c")]
    stats = growth.statistics(f, params, (x, t), pairs)
    deltas = [growth.optimal_delta(s) for s in stats]
    news = [growth.optimal_neurons(s, 2, delta=d) for s, d in zip(stats, deltas)]
    first = growth.grow(params, pairs, news, delta=deltas, scale=0.3)
    second = growth.grow(params, pairs[::-1], news[::-1], delta=deltas[::-1], scale=0.3)
    for p in (first, second):
        assert p["b"]["weight"].shape == (5, 4, 3, 3)
        assert p["c"]["weight"].shape == (4, 5 * 16)
        close(f(p, x), f(first, x), 1e-12)
    close(growth.apply_extended(f, params, pairs, news, deltas, 0.3, x), f(first, x), 1e-14)
    one = growth.grow(params, pairs[0], news[0], delta=deltas[0], scale=0.3)
    two = growth.grow(one, pairs[1], news[1], delta=deltas[1], scale=0.3)
    close(f(two, x), f(first, x), 1e-12)


def test_second_growth_of_a_biased_convolution():
    n = net("same")
    params = n.params
    for width in (5, 7, 9):
        stats = growth.statistics(n.f, params, n.data, n.pair)
        new = growth.optimal_neurons(stats, 2)
        before = per_sample("cross_entropy")(n.f(params, n.x), n.t).mean()
        params = growth.grow(params, n.pair, new, scale=0.5)
        assert params["hidden"]["weight"].shape[0] == width
        assert per_sample("cross_entropy")(n.f(params, n.x), n.t).mean() < before


def test_batch_norm_between_grows_along():
    n = net("same", torch.relu, norm=True)
    pair = growth.Pair("hidden", "output", norm="norm")
    s = growth.statistics(n.f, n.params, n.data, pair)
    new = growth.choose_sign(n.f, n.params, n.data, pair, growth.optimal_neurons(s, 2))
    grown = lambda t: growth.grow(n.params, pair, new, scale=t)
    at_once = grown(0.1)["norm"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(at_once[name][:3], n.params["norm"][name])
    close(at_once["bias"][3:], at_once["running_mean"][3:], 0.0)
    close(at_once["weight"][3:] ** 2, at_once["running_var"][3:] + 1e-12, 1e-14)  # of mean and variance: test_norms
    close(mean_loss(n, grown(0.0)), mean_loss(n, n.params), 1e-14)
    assert abs(slope(lambda t: mean_loss(n, grown(t)), 1e-2, root=True) / -new.gain - 1) < 1e-4
    with pytest.raises(ValueError, match="norm='norm'"):
        growth.statistics(n.f, n.params, n.data, n.pair)


def test_activation_with_a_value_at_zero():
    n = net("valid", torch.sigmoid)
    s = collect(n)
    new = growth.optimal_neurons(s, 2)
    grown = lambda t: mean_loss(n, growth.grow(n.params, n.pair, new, scale=t))
    close(grown(0.0), mean_loss(n, n.params), 1e-14)
    assert abs(slope(grown, 1e-2, root=True) / -new.gain - 1) < 1e-4
    with pytest.raises(ValueError, match="pads its input"):
        collect(net("same", torch.sigmoid))


def test_batches_and_sizes_do_not_matter():
    n = net("same")
    whole = collect(n)
    parts = growth.statistics(n.f, n.params, [(n.x[:2], n.t[:2]), (n.x[2:2], n.t[2:2]), (n.x[2:], n.t[2:])], n.pair)
    merged = growth.statistics(n.f, n.params, (n.x[:2], n.t[:2]), n.pair) + growth.statistics(
        n.f, n.params, (n.x[2:], n.t[2:]), n.pair
    )
    for other in (parts, merged):
        for a, b in zip(trees.leaves(whole), trees.leaves(other)):
            close(b, a, 1e-12)
    small = n.x[:3, :, :4, :4]
    mixed = growth.statistics(n.f, n.params, [(n.x, n.t), (small, n.t[:3])], n.pair)
    apart = whole + growth.statistics(n.f, n.params, (small, n.t[:3]), n.pair)
    close(mixed.M_prev, apart.M_prev, 1e-12)


def test_an_ensemble_is_the_loop():
    members = [net("same", seed=s).params for s in range(4)]
    n = net("same")

    def step(params):
        s = growth.statistics(n.f, params, n.data, n.pair)
        delta = growth.optimal_delta(s)
        new = growth.choose_sign(n.f, params, n.data, n.pair, growth.optimal_neurons(s, 2, delta=delta))
        return growth.grow(params, n.pair, new, delta=delta, scale=0.5)

    got = trees.unstack(vmap(step)(trees.stack(members)))
    for a, b in zip(got, map(step, members)):
        for s, t in zip(trees.leaves(a), trees.leaves(b)):
            close(s, t, 1e-10)


def test_what_cannot_grow_says_why():
    n = net("same")
    grouped = lambda p, x: F.conv2d(torch.tanh(F.conv2d(x, p["a"]["weight"])), p["b"]["weight"], groups=2).mean((2, 3))
    params = {"a": {"weight": torch.ones(2, 1, 2, 2)}, "b": {"weight": torch.ones(4, 1, 2, 2)}}
    with pytest.raises(ValueError, match=r"do not match|groups"):
        growth.statistics(grouped, params, (n.x.float(), n.t), growth.Pair("a", "b"))
    pooled = lambda p, x: F.linear(F.conv2d(x, p["a"]["weight"]).cummax(-1)[0].amax((2, 3)), p["b"]["weight"])
    with pytest.raises(ValueError, match="cannot be read"):
        growth.statistics(
            pooled,
            {"a": {"weight": torch.ones(3, 1, 2, 2)}, "b": {"weight": torch.ones(4, 3)}},
            (n.x.float(), n.t),
            growth.Pair("a", "b"),
        )
    with pytest.raises(ValueError, match="taps"):
        collect(n, taps="some")
    with pytest.raises(ValueError, match="has no centre"):
        collect(net("flat"), taps="centre")
    new = growth.optimal_neurons(collect(n), 2)
    with pytest.raises(ValueError, match="4 outputs x 9 taps"):
        growth.grow(n.params, n.pair, dataclasses.replace(new, fan_out=new.fan_out[:-1]))


def test_a_residual_block_grows_from_nothing():
    """A unit of zeros stands for none: it moves nothing, and goes again."""
    g = torch.Generator().manual_seed(0)
    normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    zeros = lambda *s: torch.zeros(*s, dtype=torch.float64)
    params = {
        "first": {"weight": normal(3, 1, 3, 3), "bias": normal(3)},
        "a": {"weight": zeros(1, 3, 3, 3), "bias": zeros(1)},
        "b": {"weight": zeros(3, 1, 3, 3), "bias": zeros(3)},
        "head": {"weight": normal(4, 3), "bias": normal(4)},
    }

    def f(p, x):
        conv = lambda n, x: F.conv2d(x, p[n]["weight"], p[n]["bias"], padding=1)
        h = torch.tanh(conv("first", x))
        h = h + conv("b", torch.relu(conv("a", h)))
        return F.linear(torch.tanh(h).mean((2, 3)), p["head"]["weight"], p["head"]["bias"])

    data = normal(30, 1, 5, 5), torch.randint(0, 4, (30,), generator=g)
    loss = lambda p: per_sample("cross_entropy")(f(p, data[0]), data[1]).mean()
    pair = growth.Pair("a", "b")
    s = growth.statistics(f, params, data, pair)
    delta = growth.optimal_delta(s)
    assert not delta.weight.any()
    new = growth.choose_sign(f, params, data, pair, growth.optimal_neurons(s, 2, delta=delta))
    grown = lambda t: growth.prune(growth.grow(params, pair, new, scale=t), pair, [0])
    assert grown(1.0)["b"]["weight"].shape == (3, 2, 3, 3)
    close(f(grown(0.0), data[0]), f(params, data[0]), 1e-14)
    assert abs(slope(lambda t: loss(grown(t)), 1e-2, root=True) / -new.gain - 1) < 1e-4
    found = growth.line_search(f, params, data, pair, new, delta)
    assert found.loss < 0.99 * found.start
