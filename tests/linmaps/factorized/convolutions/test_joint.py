"""Several kernels in one tensor, parts of kernels and one axis more: what they are, entry by entry, and what they do."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap
from torch.nn import functional as F

from linmaps import FactorizedConv, Module, factorize_conv, trees
from linmaps.factorized.convolutions.conv import FACTORIZATIONS
from tests.linmaps.factorized.convolutions.entries import by_index

D, C = torch.float64, torch.complex128
TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
every_kind = pytest.mark.parametrize("kind", FACTORIZATIONS)
every_order = pytest.mark.parametrize("n", [1, 2, 3])


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=gen(seed), dtype=dtype)


def made(n, kind, L=3, dtype=D, sizes=(3, 4, (3, 2, 2)), **options):
    c, o, k = sizes
    spec = FactorizedConv(c, o, k[:n], factorization=kind, n_layers=L, **({"rank": 0.7} | options))
    return spec, spec.init(gen(), dtype=dtype)


def close(got, want, tolerance=1e-12):
    assert got.shape == want.shape
    assert (got - want).norm() <= tolerance * max(1e-12, want.norm())


@every_order
@every_kind
@pytest.mark.parametrize("dtype", [D, C])
def test_joint_kernels_by_index(kind, n, dtype):
    spec, params = made(n, kind, dtype=dtype)
    want = torch.as_tensor(by_index(spec, params))
    close(spec.kernel(params), want)
    assert {k: tuple(t.shape) for k, t in params.items()} == spec.shapes()
    assert torch.allclose(want.abs().square().flatten(1).mean(1), torch.tensor(1 / (3 * want[0, 0].numel()), dtype=D))
    for layer in range(-3, 3):
        close(spec.kernel(params, layer), want[layer])
    close(spec.kernel(params, [2, 0]), want[[2, 0]])


@every_order
@every_kind
@pytest.mark.parametrize("way", ["factorized", "reconstructed", "auto"])
def test_a_layer_is_torchs_convolution_with_its_kernel(kind, n, way):
    spec, params = made(n, kind, implementation=way)
    x, options = randn(2, 3, *(5, 4, 4)[:n]), {"stride": 2, "padding": 1}
    want = [TORCH[n](x, K, b, **options) for K, b in zip(spec.kernel(params), params["bias"])]
    for layer in range(3):
        close(spec.apply_conv(params, x, layer, **options), want[layer])
        one, leaves = spec.select(params, layer)
        assert one.n_layers == 1
        close(one.apply_conv(leaves, x, **options), want[layer])
    close(spec.apply_conv(params, x, layer=[1, 1, 0], **options), torch.stack([want[1], want[1], want[0]]))
    close(vmap(lambda l: spec.apply_conv(params, x, l, **options))(torch.arange(3)), torch.stack(want))
    two, leaves = spec.select(params, [2, 0])
    assert two.n_layers == 2
    close(two.apply_conv(leaves, x, 1, **options), want[0])
    assert len(list(spec.layers(params))) == 3
    assert spec.apply_conv(params, x[:0], [1, 0], **options).shape == (2, 0, *want[0].shape[1:])
    empty = grad(lambda p: spec.apply_conv(p, x[:0], 1, **options).sum())(params)
    assert all((t == 0).all() for t in empty.values())


@every_kind
def test_gradients_reach_the_layer_alone_and_what_it_shares(kind):
    spec, params = made(2, kind)
    x = randn(2, 3, 5, 4)
    slopes = grad(lambda p: spec.apply_conv(p, x, 1).square().sum())(params)
    K = spec.kernel(params, 1).requires_grad_()
    want = torch.autograd.grad(F.conv2d(x, K, params["bias"][1]).square().sum(), K)[0]
    through = grad(lambda p: (spec.kernel(p, 1) * want).sum())(params)
    for name in params:
        if name != "bias":
            close(slopes[name], through[name], 1e-10)
    first = {"dense": "kernel", "cp": "U0", "tucker": "U0", "tt": "A0"}[kind]
    rows = slopes[first].movedim(1, 0) if kind == "tt" else slopes[first]
    assert [bool(row.abs().sum() > 0) for row in rows] == [False, True, False]


@every_kind
def test_weights_of_several_layers_are_fitted_as_one(kind):
    weights = [randn(4, 3, 3, 2, seed=k) for k in range(3)]
    spec, params = factorize_conv(weights, [None, randn(4), None], factorization=kind, rank="same")
    assert spec.n_layers == 3
    assert torch.equal(params["bias"], torch.stack([torch.zeros(4, dtype=D), randn(4), torch.zeros(4, dtype=D)]))
    assert params["bias"].dtype == D
    if kind != "cp":  # at full ranks every tensor is exact
        close(spec.kernel(params), torch.stack(weights), 1e-10)
    found, distance = spec.from_kernel(torch.stack(weights))
    assert abs(distance - (spec.kernel(found) - torch.stack(weights)).norm()) < 1e-9
    one, leaves = factorize_conv(weights[:1], [randn(4)], factorization=kind, rank="same")
    assert one.n_layers == 1
    assert all(
        torch.equal(leaves[k], t) for k, t in factorize_conv(weights[0], randn(4), factorization=kind)[1].items()
    )
    unbiased, _ = factorize_conv(weights, factorization=kind, rank=2)
    assert not unbiased.bias


def test_kernels_that_are_alike_take_few_parameters():
    """Layers that are multiples of each other are one tensor of the same ranks, and L numbers more."""
    one = FactorizedConv(6, 8, (3, 3), factorization="tt", rank=2, bias=False)
    K = one.kernel(one.init(gen(), dtype=D))
    spec, params = factorize_conv([K, -2 * K, 0.5 * K], factorization="tt", rank=(1, 1, 2, 2, 2, 1))
    close(spec.kernel(params), torch.stack([K, -2 * K, 0.5 * K]), 1e-10)
    assert spec.n_params == one.n_params + 3


@st.composite
def cuts(draw):
    n, L = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    options = {"rank": draw(st.sampled_from([1, 2, 5, 0.5, "same"])), "bias": draw(st.booleans())}
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=n + 2, max_size=n + 2)))
    kind, dtype = draw(st.sampled_from(FACTORIZATIONS)), draw(st.sampled_from([D, C]))
    spec, params = made(n, kind, L, dtype, (sizes[0], sizes[1], sizes[2:]), **options)
    index = []
    for s in sizes:
        bound, step = st.none() | st.integers(-s - 2, s + 2), st.none() | st.integers(-3, 3).filter(bool)
        index.append(draw(st.builds(slice, bound, bound, step).filter(lambda i, s=s: len(range(s)[i]) > 0)))
    return spec, params, tuple(index)


@given(cuts())
def test_a_slice_is_that_of_the_kernel(case):
    spec, params, index = case
    part, leaves = spec.slice(params, *index)
    lead, (c, o, *k) = (slice(None),) * (spec.n_layers > 1), index
    close(part.kernel(leaves), torch.as_tensor(spec.kernel(params).numpy()[(*lead, o, c, *k)].copy()))
    if spec.bias:
        assert np.array_equal(leaves["bias"].numpy(), params["bias"].numpy()[(*lead, o)])
    assert {name: tuple(t.shape) for name, t in leaves.items()} == part.shapes()
    assert (part.ranks, part.n_layers) == (spec.ranks, spec.n_layers)


@given(cuts(), st.integers(1, 5), st.data())
def test_an_axis_more_has_the_kernel_in_its_middle(case, size, data):
    spec, params, _ = case
    n, lead = len(spec.kernel_size), spec.n_layers > 1
    if n == 3:
        with pytest.raises(ValueError, match="3 axes already, expected 1 or 2; torch has no convolution of 4"):
            spec.transduct(params, size)
        return
    at = data.draw(st.integers(0, n))
    longer, leaves = spec.transduct(params, size, data.draw(st.sampled_from([at, at - n - 1])))
    assert longer.kernel_size == (*spec.kernel_size[:at], size, *spec.kernel_size[at:])
    K = spec.kernel(params)
    frames = [K if j == (size - 1) // 2 else torch.zeros_like(K) for j in range(size)]
    close(longer.kernel(leaves), torch.stack(frames, lead + 2 + at))
    assert {name: tuple(t.shape) for name, t in leaves.items()} == longer.shapes()
    assert longer.implementation == spec.implementation


@every_kind
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("way", ["factorized", "reconstructed"])
def test_a_video_is_seen_frame_by_frame(kind, size, way):
    spec, params = made(2, kind, L=1, implementation=way)
    longer, leaves = spec.transduct(params, size)
    video = randn(2, 3, 7, 5, 4)
    frames = torch.stack([spec.apply_conv(params, video[:, :, t], padding="same") for t in range(7)], 2)
    close(longer.apply_conv(leaves, video, padding="same"), frames)
    middle = frames[:, :, (size - 1) // 2 :][:, :, : 7 - size + 1]  # those that have enough neighbours
    close(longer.apply_conv(leaves, video, padding=(0, 1, 1)), longer_by_torch(longer, leaves, video))
    got = longer.apply_conv(leaves, F.pad(video, (0, 1, 1, 1)), padding=0)  # what "same" adds around 3 x 2
    close(got, middle)
    along_last = spec.transduct(params, size, -1)
    moved = along_last[0].apply_conv(along_last[1], video.movedim(2, -1), padding="same")
    close(moved.movedim(-1, 2), frames)


def longer_by_torch(spec, params, x):
    return F.conv3d(x, spec.kernel(params), params["bias"], padding=(0, 1, 1))


@every_kind
def test_they_map_share_nothing_and_differentiate(kind):
    spec, params = made(2, kind)
    stacked = trees.stack([params, spec.init(gen(1), dtype=D)])
    index = (slice(None, None, -1), slice(1, 3), slice(None), slice(1))
    for f in (lambda p: spec.slice(p, *index), lambda p: spec.transduct(p, 3)):
        other, leaves = f(params)
        got = vmap(lambda p, f=f: f(p)[1])(stacked)
        assert all(torch.equal(got[k][0], t) for k, t in leaves.items())
        slopes = grad(lambda p, f=f, other=other: other.kernel(f(p)[1]).square().sum())(params)
        assert sum(t.abs().sum() for t in slopes.values()) > 0
        kept = {k: t.clone() for k, t in params.items()}
        for t in leaves.values():
            t.zero_()
        assert all(torch.equal(params[k], t) for k, t in kept.items())


def test_a_module_of_several_layers():
    spec, _ = made(2, "tucker")
    module, x = Module(spec, generator=gen(), padding=1), randn(2, 3, 5, 4, dtype=torch.float32)
    assert module(x, layer=1).shape == (2, 4, 5, 5)
    assert module.weight.shape == (3, 4, 3, 3, 2)


CONV, PARAMS = made(1, "tt")
X = randn(2, 3, 5)


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, "layer is None, expected one of 3; pass layer=", lambda: CONV.apply_conv(PARAMS, X)),
        (IndexError, "layer is 3, expected one of 3", lambda: CONV.apply_conv(PARAMS, X, 3)),
        (TypeError, "layer", lambda: CONV.kernel(PARAMS, 1.5)),
        (TypeError, "n_layers: got 2.0, expected a positive int", lambda: FactorizedConv(2, 3, (3,), n_layers=2.0)),
        (TypeError, "compat: got 1, expected a bool", lambda: FactorizedConv(2, 3, (3,), compat=1)),
        (
            ValueError,
            r"kernel has shape \(4, 3, 3\), expected \(3, 4, 3, 3\)",
            lambda: CONV.from_kernel(randn(4, 3, 3)),
        ),
        (
            ValueError,
            r"bias has shape \(4,\), expected shape \(3, 4\)",
            lambda: CONV.from_kernel(randn(3, 4, 3, 3), bias=randn(4)),
        ),
        (ValueError, "got 0 weights", lambda: factorize_conv([])),
        (ValueError, "got 2 weights and one bias", lambda: factorize_conv([randn(4, 3, 3)] * 2, randn(4))),
        (ValueError, "got 2 weights and 1, expected", lambda: factorize_conv([randn(4, 3, 3)] * 2, [randn(4)])),
        (
            ValueError,
            r"weight 1 is \(4, 3, 2\) .*expected \(4, 3, 3\)",
            lambda: factorize_conv([randn(4, 3, 3), randn(4, 3, 2)]),
        ),
        (ValueError, r"bias 1 has shape \(3,\)", lambda: factorize_conv([randn(4, 3, 3)] * 2, [None, randn(3)])),
        (TypeError, r"bias 0 is str", lambda: factorize_conv([randn(4, 3, 3)] * 2, ["a", None])),
        (TypeError, r"of kernel_size\[0\] got int", lambda: CONV.slice(PARAMS, slice(1), slice(1), 0)),
        (ValueError, "of out_channels .* takes nothing", lambda: CONV.slice(PARAMS, slice(1), slice(4, 9), slice(1))),
        (ValueError, "got 2 slices, expected 3, for in_channels of 3", lambda: CONV.slice(PARAMS, slice(1), slice(1))),
        (ValueError, "mode: got 2, expected an int from -2 to 1", lambda: CONV.transduct(PARAMS, 3, 2)),
        (ValueError, "size: got 0", lambda: CONV.transduct(PARAMS, 0)),
        (ValueError, r"plan: x_shape is \(2, 4, 5\), expected \[B, 3, \*space\]", lambda: CONV.plan((2, 4, 5))),
        (ValueError, r"plan: x has space \(2,\), expected at least \(3,\)", lambda: CONV.plan((2, 3, 2))),
    ],
)
def test_errors(error, text, call):
    with pytest.raises(error, match=text):
        call()
