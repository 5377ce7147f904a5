"""Rescaling: variances afterwards, what it does to the function, norms, and the variant that preserves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap
from torch.nn import functional as F

import growth
from growth.strategies import network
from linmaps import trees
from tests.growth.oracle import close

PAIR = growth.Pair("hidden", "output")
KINDS = ["default", "constraint_old", "constraint_new"]


def params(seed=0, r=5, p=6, q=4, bias=True, norm=()):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    tree = {"hidden": {"weight": 0.7 * normal(p, r)}, "output": {"weight": 2.0 * normal(q, p)}}
    if bias:
        tree["hidden"]["bias"], tree["output"]["bias"] = normal(p), normal(q)
    if norm:
        tree["norm"] = {n: normal(p).abs() + 0.5 for n in norm}
    return tree


def forward(p, x, activation=torch.relu):
    hidden = F.linear(x, p["hidden"]["weight"], p["hidden"].get("bias"))
    if "norm" in p:
        n = p["norm"]
        hidden = F.batch_norm(hidden, n["running_mean"], n["running_var"], n.get("weight"), n.get("bias"), eps=0.0)
    return F.linear(activation(hidden), p["output"]["weight"], p["output"].get("bias"))


X = torch.randn(20, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
STATE = ("running_mean", "running_var")
AFFINE = ("weight", "bias", *STATE)


def test_variances():
    p = params()
    for kind, inputs in (("constraint_old", 6), ("constraint_new", 10)):
        new = growth.rescale(p, PAIR, 4, kind=kind)
        close(5 * new["hidden"]["weight"].var(), torch.ones(()).double(), 1e-12)
        close(inputs * new["output"]["weight"].var(), torch.ones(()).double(), 1e-12)
    new = growth.rescale(p, PAIR, 4)
    assert torch.equal(new["hidden"]["weight"], p["hidden"]["weight"])
    close(new["output"]["weight"], 0.6**0.5 * p["output"]["weight"], 1e-15)
    close(new["output"]["bias"], 0.6**0.5 * p["output"]["bias"], 1e-15)


def test_variance_of_activations():
    """Many units, inputs of variance 1: pre-activations have variance 1, outputs p/(p+k) of what they would have."""
    p = params(r=200, p=300, q=100, bias=False)
    x = torch.randn(500, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for kind, want in (("constraint_old", 1.0), ("constraint_new", 0.6)):
        new = growth.rescale(p, PAIR, 200, kind=kind)
        z = x @ new["hidden"]["weight"].T
        assert abs(z.var() - 1) < 0.05
        assert abs((z @ new["output"]["weight"].T).var() - want) < 0.05


@given(st.integers(0, 10**6), st.integers(0, 5), st.sampled_from(KINDS), st.booleans())
def test_function_of_homogeneous_activations(seed, k, kind, bias):
    p = params(seed, bias=bias)
    new = growth.rescale(p, PAIR, k, kind=kind)
    alpha, beta = (new[n]["weight"][0, 0] / p[n]["weight"][0, 0] for n in ("hidden", "output"))
    want = alpha * beta * forward(p, X) + (beta * (1 - alpha) * p["output"]["bias"] if bias else 0.0)
    close(forward(new, X), want, 1e-12)


@given(
    st.integers(0, 10**6), st.integers(0, 5), st.sampled_from(KINDS), st.sampled_from([(), AFFINE, AFFINE[:1] + STATE])
)
def test_preserving_variant(seed, k, kind, norm):
    p = params(seed, norm=norm)
    pair = growth.Pair("hidden", "output", norm="norm" if norm else None)
    new = growth.rescale(p, pair, k, kind=kind, preserve=True)
    activation = lambda z: F.leaky_relu(z, 0.2)
    close(forward(new, X, activation), forward(p, X, activation), 1e-11)
    beta = growth.rescale(p, pair, k, kind=kind)["output"]["weight"]
    close(new["output"]["weight"], beta, 1e-12)
    assert torch.equal(new["output"]["bias"], p["output"]["bias"])


def test_norm_statistics():
    p, pair = params(norm=AFFINE), growth.Pair("hidden", "output", norm="norm")
    new = growth.rescale(p, pair, 4, kind="constraint_old")
    alpha = new["hidden"]["weight"][0, 0] / p["hidden"]["weight"][0, 0]
    close(new["norm"]["running_mean"], alpha * p["norm"]["running_mean"], 1e-12)
    close(new["norm"]["running_var"], alpha**2 * p["norm"]["running_var"], 1e-12)
    for name in ("weight", "bias"):
        assert torch.equal(new["norm"][name], p["norm"][name])
    # so the normalized units are the same, and only β is seen
    beta = new["output"]["weight"][0, 0] / p["output"]["weight"][0, 0]
    close(forward(new, X), beta * forward(p, X), 1e-12)


def test_nothing_to_measure():
    empty = params(p=0)
    assert growth.rescale(empty, PAIR, 3) is empty
    constant = trees.map(torch.ones_like, params())
    for p in (constant, params(r=1, p=1, q=1)):
        new = growth.rescale(p, PAIR, 3, kind="constraint_old")
        trees.check_like(new, p, "rescaled")
        for a, b in zip(trees.leaves(new), trees.leaves(p)):
            assert torch.equal(a, b)


def test_convolutions():
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    for after, inputs in ((normal(4, 3, 3, 3), 27), (normal(4, 12), 12)):
        p = {"hidden.weight": normal(3, 2, 3, 3), "output.weight": after}
        new = growth.rescale(p, PAIR, 3, kind="constraint_old")
        close(18 * new["hidden.weight"].var(), torch.ones(()).double(), 1e-12)
        close(inputs * new["output.weight"].var(), torch.ones(()).double(), 1e-12)
        new = growth.rescale(p, PAIR, 3)
        close(new["output.weight"], 0.5**0.5 * after, 1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_ensemble_equals_loop_and_dtypes_stay(kind):
    members = [params(0), params(1), trees.map(torch.ones_like, params())]
    fn = lambda p: growth.rescale(p, PAIR, 3, kind=kind)
    for got, p in zip(trees.unstack(vmap(fn)(trees.stack(members))), members):
        for a, b in zip(trees.leaves(got), trees.leaves(fn(p))):
            close(a, b, 1e-12)
    for dtype in (torch.float32, torch.bfloat16):
        half = trees.map(lambda t: t.to(dtype), params())  # noqa: B023
        assert {t.dtype for t in trees.leaves(growth.rescale(half, PAIR, 2, kind=kind))} == {dtype}


def test_then_growing_keeps_the_scale():
    """Variance transfer in a row: rescale, then units of the scale that remains."""
    net = network(3, p=40, r=20, activation="relu")
    p = growth.rescale(net.params, net.pair, 40, kind="constraint_new")
    generator = torch.Generator().manual_seed(0)
    new = growth.initialize(p, net.pair, 40, fan_in="copy_normal", fan_out="copy_normal", generator=generator)
    grown = growth.grow(p, net.pair, growth.paired(new))
    close(net.f(grown, net.x), net.f(p, net.x), 1e-11)
    assert abs(80 * grown["output"]["weight"].var() - 1) < 0.3


@pytest.mark.parametrize(
    ("k", "options", "error", "message"),
    [
        (1, {"kind": "vt"}, ValueError, "kind: got 'vt'"),
        (-1, {}, ValueError, "k: got -1"),
        (True, {}, TypeError, "k: got bool"),
    ],
)
def test_bad_arguments(k, options, error, message):
    with pytest.raises(error, match=message):
        growth.rescale(params(), PAIR, k, **options)
    with pytest.raises(ValueError, match="no weight"):
        growth.rescale(params(norm=STATE), growth.Pair("hidden", "output", norm="norm"), 1, preserve=True)
