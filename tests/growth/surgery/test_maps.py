"""Dense layers whose outputs are maps to a convolution: one unit is a row for each position; decoders grow and shrink."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisher
import growth
from linmaps import trees
from tests.growth.oracle import close
from tests.growth.rows_surgery import normal

GEN = torch.Generator
H, W, R = 3, 2, 4
BIAS = pytest.mark.parametrize("bias", [True, False])
STORED = pytest.mark.parametrize("layout", ["out_in", ("in_out", "out_in"), ("out_in", "in_out"), "in_out"])


def decoder(layout=("out_in", "in_out"), bias=True, p=5, size=(H, W), norm=False):
    """z -> dense -> maps -> tanh -> (transposed) convolution -> relu -> sum over positions."""
    first, second = layout if isinstance(layout, tuple) else (layout, layout)
    m = size[0] * size[1]
    dense, conv = normal(1, p * m, R), normal(3, 3, p, 2, 2)
    params = {"fc": {"weight": dense if first == "out_in" else dense.mT.contiguous()}, "conv": {"weight": conv}}
    params["conv"]["weight"] = conv if second == "out_in" else conv.transpose(0, 1).contiguous()
    if bias:
        params["fc"]["bias"], params["conv"]["bias"] = normal(2, p * m), normal(4, 3)
    if norm:
        params["bn"] = {
            n: normal(6 + i, p).abs() + 0.5 for i, n in enumerate(("weight", "bias", "running_mean", "running_var"))
        }

    def f(q, x):
        w, b = q["fc"]["weight"], q["fc"].get("bias")
        z = F.linear(x, w if first == "out_in" else w.mT, b).unflatten(1, (-1, *size))
        if norm:
            own = q["bn"]
            z = F.batch_norm(z, own["running_mean"], own["running_var"], own["weight"], own["bias"])
        apply = F.conv2d if second == "out_in" else F.conv_transpose2d
        pad = {"padding": 1} if second == "out_in" else {}
        return torch.relu(apply(torch.tanh(z), q["conv"]["weight"], q["conv"].get("bias"), **pad)).flatten(1)

    pair = growth.Pair("fc", "conv", layout=layout, norm="bn" if norm else None)
    return f, params, pair, normal(5, 6, R)


def rows(params, pair):
    """The dense weight, unit by unit, `[p, m, R]`."""
    w = params["fc"]["weight"]
    return (w if pair.layouts[0] == "out_in" else w.mT).unflatten(0, (-1, H * W))


@STORED
@BIAS
@pytest.mark.parametrize("method", ["split", "pair", "zero_out"])
def test_widening_keeps_the_function(layout, bias, method):
    f, params, pair, x = decoder(layout, bias)
    wide = growth.widen(params, pair, 4, method, GEN().manual_seed(0), f=f, x=x)
    close(f(wide, x), f(params, x), 1e-12)
    got = rows(wide, pair)
    assert got.shape == (9, H * W, R)
    close(got[:5], rows(params, pair), 0.0)
    assert (got[5:] != 0).all()
    drawn = growth.widen(params, pair, 2, noise=0.1, draws=normal(9, 2, H * W * (R + bias) + 12))
    kept = growth.widen(params, pair, 2)
    moved = (rows(drawn, pair) - rows(kept, pair))[5:].flatten(1)
    close(
        moved,
        0.1 * rows(params, pair).square().mean().sqrt() * normal(9, 2, H * W * (R + bias) + 12)[:, : H * W * R],
        1e-12,
    )


@STORED
@BIAS
def test_pruned_cut_and_restored(layout, bias):
    f, params, pair, x = decoder(layout, bias)
    wide = growth.widen(params, pair, 2, "zero_out", GEN().manual_seed(0))
    trees.map(lambda a, b: close(a, b, 0.0), growth.prune(wide, pair, [5, 6], f=f, x=x), params)
    small, removed = growth.cut(params, pair, [1, 3])
    close(rows(small, pair), rows(params, pair)[[0, 2, 4]], 0.0)
    trees.map(lambda a, b: close(a, b, 0.0), growth.restore(small, pair, removed), params)
    trees.map(lambda a, b: close(a, b, 0.0), small, growth.prune(params, pair, [1, 3], f=f, x=x))
    scores = growth.unit_scores(params, pair)
    into = rows(params, pair).square().sum((1, 2)) + (
        params["fc"]["bias"].reshape(5, -1).square().sum(1) if bias else 0
    )
    out = params["conv"]["weight"].square().sum((0 if pair.layouts[1] == "out_in" else 1, 2, 3))
    close(scores, (into * out).sqrt(), 1e-12)
    m = trees.map(torch.cos, params)
    grown = growth.grow_like(m, params, wide)
    close(rows(grown, pair)[:5], rows(m, pair), 0.0)
    assert not rows(grown, pair)[5:].any()
    trees.map(lambda a, b: close(a, b, 0.0), growth.prune_like(grown, wide, pair, [5, 6]), m)


def test_norms_of_maps_and_single_positions():
    for options in ({"norm": True}, {"size": (1, 1)}):
        f, params, pair, x = decoder(**options)
        wide = growth.widen(params, pair, 3, f=f, x=x)
        growth.prune(wide, pair, [0, 5, 6], f=f, x=x)
        with pytest.raises(ValueError, match="closed forms"):
            growth.statistics(f, params, (x, f(params, x)), pair, "squared_error")


def test_rescaling_is_that_of_the_leaves():
    _, params, pair, _ = decoder()
    got = growth.rescale(params, pair, 3, kind="constraint_new")
    W1, W2 = got["fc"]["weight"], got["conv"]["weight"]
    close(R * W1.var(), torch.ones(()).double(), 1e-10)
    close(8 * 4 * W2.var(), torch.ones(()).double(), 1e-10)


def test_closed_forms_are_refused_and_the_cure_is_true():
    f, params, pair, x = decoder()
    for call in (
        lambda: growth.statistics(f, params, (x, f(params, x)), pair, "squared_error"),
        lambda: growth.step(f, params, (x, f(params, x)), pair, 2, "squared_error"),
        lambda: growth.initialize(params, pair, 2, generator=GEN()),
        lambda: growth.grow(params, pair, units()),
        lambda: growth.normalize(units(), None, params, pair),
    ):
        with pytest.raises(
            ValueError, match=r"fc\.weight whose outputs are maps of 6 positions.*ConvTranspose2d\(4, 5"
        ):
            call()
    bias = params["fc"]["bias"].reshape(5, -1)[:, :1].expand(5, H * W).flatten()  # one for each map
    params = {**params, "fc": {**params["fc"], "bias": bias}}
    same = {"fc": {"weight": params["fc"]["weight"].mT.unflatten(1, (5, H, W)), "bias": bias.reshape(5, -1)[:, 0]}}
    same["conv"] = params["conv"]

    def g(q, x):
        z = F.conv_transpose2d(x[..., None, None], q["fc"]["weight"], q["fc"]["bias"])
        return torch.relu(F.conv_transpose2d(torch.tanh(z), q["conv"]["weight"], q["conv"]["bias"])).flatten(1)

    close(g(same, x), f(params, x), 1e-12)
    stats = growth.statistics(
        g, same, (x, normal(8, *g(same, x).shape)), growth.Pair("fc", "conv", layout="in_out"), "squared_error"
    )
    assert growth.optimal_neurons(stats, 2).gain > 0


def units():
    one = torch.ones(()).double()
    return growth.Neurons(normal(1, 2, R), None, normal(2, 12, 2), normal(3, 2), normal(4, 2), one, 0 * one)


def test_maps_made_otherwise_are_refused_in_words():
    f, params, pair, x = decoder()

    def last(q, x):
        z = F.linear(x, q["fc"]["weight"], q["fc"]["bias"]).unflatten(1, (H, W, -1)).movedim(-1, 1)
        return F.conv_transpose2d(torch.tanh(z), q["conv"]["weight"], q["conv"]["bias"]).flatten(1)

    def fixed(q, x):
        z = F.linear(x, q["fc"]["weight"], q["fc"]["bias"]).reshape(-1, 5, H, W)
        return F.conv_transpose2d(torch.tanh(z), q["conv"]["weight"], q["conv"]["bias"]).flatten(1)

    for other in (last, fixed):
        with pytest.raises(ValueError, match=r"unflatten\(1, \(-1, h, w\)\)"):
            growth.widen(params, pair, 3, f=other, x=x)
    with pytest.raises(ValueError, match="do not match"):
        growth.prune({**params, "fc": {"weight": normal(1, 31, R)}}, pair, [0])
    assert f


def test_modules():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 20), nn.Unflatten(1, (-1, 2, 2)), nn.ReLU(), nn.ConvTranspose2d(5, 2, 2)
    ).double()
    f, params = fisher.functional(model)
    x = normal(1, 6, 4)
    pair = growth.Pair("0", "3", layout=("out_in", "in_out"))
    larger = growth.into_module(model, growth.widen(params, pair, 3, f=f, x=x))
    assert (larger[0].out_features, larger[3].in_channels) == (32, 8)
    close(larger(x), model(x), 1e-12)
