"""Convolutions of bounded norm: against matrices of the convolutions by hand, at many sizes, and symbols on fine grids."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import fisher
import linmaps
from linmaps.factorized.convolutions import symbols

D = torch.float64
CONV = {1: nnf.conv1d, 2: nnf.conv2d, 3: nnf.conv3d}
SHAPES = [(2, 3, 3), (3, 1, 4), (1, 1, 1), (2, 2, 3, 3), (3, 2, 1, 5), (1, 2, 2, 3), (2, 2, 2, 1, 3), (1, 1, 3, 3, 3)]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=gen(seed), dtype=D).to(dtype)


def tone(shape, turns):
    """The kernel whose symbol is largest at a frequency of so many turns, with its norm there: prod(k)."""
    at = np.meshgrid(*(np.arange(k) for k in shape[2:]), indexing="ij")
    wave = np.cos(2 * np.pi * turns * sum(at))
    return torch.tensor(np.broadcast_to(wave, shape).copy())


KERNELS = {
    "normal": lambda shape: randn(*shape),
    "ones": lambda shape: torch.ones(shape, dtype=D),
    "alternating": lambda shape: tone(shape, 0.5),
    "off the grid": lambda shape: tone(shape, 0.5 / symbols.grid(shape[2:], 1)[-1] + 0.25),
    "identity": lambda shape: nnf.pad(torch.eye(*shape[:2], dtype=D).reshape(*shape[:2], *[1] * (len(shape) - 2)),
                                      [side for k in reversed(shape[2:]) for side in (0, k - 1)]),
    "zeros": lambda shape: torch.zeros(shape, dtype=D),
    "huge": lambda shape: 1e30 * randn(*shape),
    "tiny": lambda shape: 1e-30 * randn(*shape),
    "one huge": lambda shape: torch.where(torch.arange(math.prod(shape)).reshape(shape) == 0, 1e20, randn(*shape)),
}  # fmt: skip


def spec_of(shape, bound=1.0):
    return linmaps.LipschitzConv(shape[1], shape[0], shape[2:], bound=bound)


def matrix(conv, c, space):
    """The matrix of a linear function of x [1, c, *space]."""
    n = c * math.prod(space)
    return conv(torch.eye(n, dtype=D).reshape(n, c, *space)).reshape(n, -1).mT


def norm(M):
    return float(np.linalg.norm(M.numpy(), 2)) if M.numel() else 0.0


def sup(K, points):
    """The symbol's largest singular value on a grid, by numpy: below the norm on Z^n, and near it."""
    n = K.ndim - 2
    symbol = np.fft.fftn(K.double().numpy(), s=[points] * n, axes=range(2, 2 + n))
    return float(np.linalg.norm(np.moveaxis(symbol, (0, 1), (-2, -1)), 2, axis=(-2, -1)).max())


def circular(K, stride, dilation):
    def conv(x):
        pads = [side for k in reversed(K.shape[2:]) for side in (dilation * (k - 1), 0)]
        return CONV[K.ndim - 2](nnf.pad(x, pads, mode="circular"), K, stride=stride, dilation=dilation)

    return conv


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_convolution_exceeds_the_bound(shape, kind):
    """Whatever size of x, stride, padding by zeros or around a circle, dilation, and transposed."""
    n, bound = len(shape) - 2, 0.7
    K = spec_of(shape, bound).effective_kernel({"kernel": KERNELS[kind](shape).float()})
    assert K.isfinite().all()
    assert K.dtype == torch.float32
    K = K.double()
    for size, stride, pad, dilation in itertools.product(
        {1: [1, 2, 6, 9], 2: [2, 5], 3: [3]}[n], [1, 2], [0, 2], [1, 2]
    ):
        space = tuple(size + a for a in range(n))
        spans = [dilation * (k - 1) + 1 for k in shape[2:]]
        if all(s + 2 * pad >= span for s, span in zip(space, spans)):
            M = matrix(lambda x: CONV[n](x, K, stride=stride, padding=pad, dilation=dilation), shape[1], space)  # noqa: B023
            assert norm(M) <= bound * (1 + 1e-13)
        if all(s > dilation * (k - 1) for s, k in zip(space, shape[2:])):
            assert norm(matrix(circular(K, stride, dilation), shape[1], space)) <= bound * (1 + 1e-13)


@given(data=st.data())
def test_no_symbol_exceeds_the_bound(data):
    """Of kernels drawn, wherever on a finer grid the largest value is: large x come as near as one likes."""
    n = data.draw(st.integers(1, 2))
    shape = (*data.draw(st.tuples(*[st.integers(1, 4)] * 2)), *data.draw(st.tuples(*[st.integers(1, 5)] * n)))
    kind, dtype = data.draw(st.sampled_from(list(KERNELS))), data.draw(st.sampled_from([D, torch.float32]))
    kernel = KERNELS[kind](shape) * (1 + randn(*shape, seed=data.draw(st.integers(0, 99))) / 4)
    K = spec_of(shape).effective_kernel({"kernel": kernel.to(dtype)})
    assert sup(K, {1: 640, 2: 80}[n]) <= 1 + 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_it_after_rounding(dtype):
    for seed in range(8):
        K = spec_of((4, 3, 3, 3)).effective_kernel({"kernel": (3 * randn(4, 3, 3, 3, seed=seed)).to(dtype)})
        assert K.dtype == dtype
        assert sup(K, 64) <= 1


def test_the_grid_alone_would_not_do():
    """Between its points the symbol is larger, and would break the promise: what the factor is for."""
    kernels = [randn(2, 2, 3, 3, seed=seed) for seed in range(10)]
    points = symbols.grid((3, 3), 2)[0]
    assert max(sup(K, 6 * points) / sup(K, points) for K in kernels) > 1.005
    assert all(sup(K, 6 * points) <= symbols.norm_above(K) for K in kernels)


LEAST = {(4, 3, 3): 0.99, (16, 16, 5): 0.99, (4, 4, 3, 3): 0.96, (16, 8, 5, 5): 0.95, (2, 3, 3, 3, 3): 0.85}


@pytest.mark.parametrize("shape", LEAST)
def test_the_bound_is_near_the_norm(shape):
    """The figures of the docstring; and the norm is reached: by x of some hundred entries nearly."""
    K = randn(*shape)
    assert sup(K, {1: 256, 2: 48, 3: 20}[len(shape) - 2]) >= LEAST[shape] * symbols.norm_above(K)


def test_equal_singular_values_are_the_worst_case_and_near_all_the_same():
    K = nnf.pad(torch.eye(64, dtype=D)[..., None, None], (1, 1, 1, 1))
    assert 0.94 <= 1 / symbols.norm_above(K) <= 1
    K = nnf.pad(torch.eye(80, dtype=D)[..., None], (1, 1))
    assert 0.94 <= 1 / symbols.norm_above(K) <= 1


def test_large_images_come_near_the_norm_by_power_iteration():
    spec = linmaps.LipschitzConv(2, 3, 3)
    K = spec.effective_kernel({"kernel": randn(3, 2, 3, 3)})
    x = randn(1, 2, 60, 60, seed=1)
    for _ in range(80):
        y = nnf.conv2d(x, K, padding=1)
        x = nnf.conv_transpose2d(y, K, padding=1)
        x = x / x.norm()
    assert 0.93 <= nnf.conv2d(x, K, padding=1).norm() <= 1


def test_kernels_within_are_left_as_they_are_and_others_lie_on_the_bound():
    spec = linmaps.LipschitzConv(3, 2, (3,), bound=2.0)
    small = 0.1 * randn(2, 3, 3)
    assert torch.equal(spec.effective_kernel({"kernel": small}), small)
    large = 10 * randn(2, 3, 3)
    K = spec.effective_kernel({"kernel": large})
    assert symbols.norm_above(K) == pytest.approx(2, rel=1e-12)
    assert torch.allclose(K / K.norm(), large / large.norm())
    assert spec.violation(K) < 1e-12
    assert spec.violation(large) == pytest.approx(float(symbols.norm_above(large)) - 2)
    assert spec.violation(small) == 0


def test_from_kernel():
    spec = linmaps.LipschitzConv(3, 2, (3, 3), bias=True)
    for kernel in (0.01 * randn(2, 3, 3, 3), 10 * randn(2, 3, 3, 3), torch.zeros(2, 3, 3, 3, dtype=D)):
        params, distance = spec.from_kernel(kernel, bias=torch.ones(2, dtype=D))
        assert torch.equal(params["bias"], torch.ones(2, dtype=D))
        K = spec.effective_kernel(params)
        assert distance == pytest.approx(float((K - kernel).norm()), abs=1e-12)
        assert spec.violation(K) < 1e-12
        slope = grad(lambda p: (spec.effective_kernel(p) - randn(2, 3, 3, 3, seed=5)).square().sum())(params)["kernel"]
        assert slope.isfinite().all()
        assert slope.abs().max() > 1e-3


def test_training_towards_a_kernel_outside_ends_on_the_bound():
    spec, target = linmaps.LipschitzConv(2, 2, (3,), bound=0.5), randn(2, 2, 3)
    kernel = spec.init(gen(), dtype=D)["kernel"].requires_grad_()
    optimizer = torch.optim.Adam([kernel], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (spec.effective_kernel({"kernel": kernel}) - target).square().sum().backward()
        optimizer.step()
    assert sup(spec.effective_kernel({"kernel": kernel}).detach(), 1024) <= 0.5
    assert symbols.norm_above(spec.effective_kernel({"kernel": kernel.detach()})) == pytest.approx(0.5)


@pytest.mark.parametrize("kernel", [(3,), (3, 2), 3, (2, 1, 3)])
def test_apply_conv_is_torchs_convolution(kernel):
    spec = linmaps.LipschitzConv(2, 3, kernel, bias=True)
    n, params = len(spec.kernel), spec.init(gen(), dtype=D)
    x = randn(4, 2, *range(5, 5 + n))
    K = spec.effective_kernel(params)
    for options in ({}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"padding": "same"}):
        want = CONV[n](x, K, params["bias"], **options)
        assert torch.allclose(spec.apply_conv(params, x, **options), want, atol=1e-12)
        assert torch.allclose(spec.apply_conv(params, x[0], **options), want[0], atol=1e-12)
    assert spec.apply_conv(params, x[:0]).shape == (0, 3, *CONV[n](x, K).shape[2:])
    stacked = {key: torch.stack([t, 5 * t]) for key, t in params.items()}
    both = vmap(spec.apply_conv, (0, None))(stacked, x)
    for i, y in enumerate(both):
        assert torch.allclose(y, spec.apply_conv({key: t[i] for key, t in stacked.items()}, x), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_meta(dtype):
    spec = linmaps.LipschitzConv(2, 3, 3, bias=True)
    params = spec.init(gen(), dtype=dtype)
    y = spec.apply_conv(params, randn(1, 2, 5, 5, dtype=dtype))
    assert {y.dtype, spec.effective_kernel(params).dtype, spec.violation(params["kernel"]).dtype} == {dtype}
    on_meta = spec.init(gen(), device="meta")
    assert spec.apply_conv(on_meta, torch.empty(1, 2, 5, 5, device="meta")).device.type == "meta"


def test_nan_comes_out_again_and_infinities_raise_nothing():
    spec = linmaps.LipschitzConv(2, 2, (3,))
    for value in (torch.nan, torch.inf):
        kernel = torch.full((2, 2, 3), value)
        assert spec.effective_kernel({"kernel": kernel}).isnan().any()
        assert spec.violation(kernel) != 0


def test_it_is_one_use_of_its_kernel():
    spec = linmaps.LipschitzConv(2, 3, (3,), bias=True)
    params = {"conv": spec.init(gen(), dtype=D), "out": randn(3, 2)}
    f = lambda p, x: spec.apply_conv(p["conv"], x, padding=1).tanh().mean(-1) @ p["out"]
    x = randn(6, 2, 5)
    layers = fisher.LayerCollection.from_function(f, params, x)
    F, want = fisher.fim(f, params, x), fisher.fim(f, params, x, fisher.PMatDense)
    assert "lipschitz_conv" in str(layers)
    assert F.trace() == pytest.approx(float(want.trace()), rel=0.3)


def test_a_module_of_it():
    layer = linmaps.Module(linmaps.LipschitzConv(2, 3, 3, bias=True), gen(), padding=1)
    x = torch.ones(1, 2, 6, 6)
    assert layer(x).shape == (1, 3, 6, 6)
    assert torch.equal(layer.weight, layer.spec.effective_kernel(layer.params()))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: linmaps.LipschitzConv(2, 3, 2.5), TypeError, r"kernel: got 2.5, expected an int k for \(k, k\)"),
        (lambda: linmaps.LipschitzConv(2, 3, ()), ValueError, r"kernel: got \(\), expected 1 to 3 positive ints"),
        (lambda: linmaps.LipschitzConv(2, 0, 3), ValueError, r"out_channels: got 0, expected a positive int"),
        (
            lambda: linmaps.LipschitzConv(2, 3, 3, bound=0.0),
            ValueError,
            r"bound: got 0.0, expected a finite number > 0",
        ),
        (
            lambda: linmaps.LipschitzConv(2, 3, 3).apply_conv({"kernel": torch.ones(3, 2, 3, 3)}, torch.ones(1, 2, 5)),
            ValueError,
            r"x has shape \(1, 2, 5\), expected \[B, 2, \*space\] .* with 2 sizes of space",
        ),
        (
            lambda: linmaps.LipschitzConv(2, 3, 3).effective_kernel({"kernel": torch.ones(5, 3, 2, 3, 3)}),
            ValueError,
            r"leaves have a leading axis",
        ),
        (
            lambda: linmaps.LipschitzConv(2, 3, 1).violation(torch.ones(3, 2, 1, 1, dtype=torch.complex64)),
            TypeError,
            r"violation: kernel is torch.complex64, expected a real floating tensor \(3, 2, 1, 1\)",
        ),
        (
            lambda: linmaps.LipschitzConv(1, 1, 1).effective_kernel({"kernel": 1j * torch.ones(1, 1, 1, 1)}),
            TypeError,
            r"leaves are complex, expected real ones",
        ),
        (
            lambda: linmaps.LipschitzConv(1, 1, 1).from_kernel(torch.ones(1, 1)),
            ValueError,
            r"kernel has shape \(1, 1\)",
        ),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()
