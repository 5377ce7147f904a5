"""Factorized convolutions: equal to torch's with the kernel put together, under every transform, scaled at init, fitted."""

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from linmaps.factorized.convolutions.conv import FACTORIZATIONS, FactorizedConv
from linmaps.factorized.convolutions.costs import forming, ways_of
from linmaps.factorized.convolutions.fit_conv import factorize_conv
from tests.linmaps.factorized.convolutions.entries import by_index

D = torch.float64
TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
WAYS = ("factorized", "reconstructed", "auto")
every_kind = pytest.mark.parametrize("kind", FACTORIZATIONS)
every_order = pytest.mark.parametrize("n", [1, 2, 3])


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(n, kind, seed=0, dtype=D, sizes=(3, 4, (3, 2, 2)), **options):
    c, o, k = sizes
    spec = FactorizedConv(c, o, k[:n], factorization=kind, **({"rank": 0.7} | options))
    return spec, spec.init(torch.Generator().manual_seed(seed), dtype=dtype)


def close(got, want, tolerance=1e-12):
    assert got.shape == want.shape
    assert (got - want).norm() <= tolerance * want.norm()


def reference(spec, params, x, **options):
    return TORCH[len(spec.kernel_size)](x, spec.kernel(params), params.get("bias"), **options)


@every_order
@every_kind
@pytest.mark.parametrize("dtype", [D, torch.complex128])
def test_kernel_by_index(kind, n, dtype):
    spec, params = made(n, kind, dtype=dtype)
    close(spec.kernel(params), torch.as_tensor(by_index(spec, params)))


def test_the_convolution_by_its_sum():
    """y[b, o, t] = bias[o] + sum over c, j of K[o, c, j] x[b, c, s t + d j - zeros before], entry by entry."""
    spec, params = made(1, "tt", sizes=(3, 4, (4,)))
    x, K, bias = randn(2, 3, 9), spec.kernel(params), params["bias"]
    for options, before, after, s, d in [
        ({"padding": "same"}, 1, 2, 1, 1),
        ({"padding": "same", "dilation": 3}, 4, 5, 1, 3),
        ({"padding": 2, "stride": 3, "dilation": 2}, 2, 2, 3, 2),
    ]:
        wide = F.pad(x, (before, after))
        positions = range(0, wide.shape[-1] - 3 * d, s)
        sums = [torch.einsum("ocj,bcj->bo", K, wide[..., t : t + 3 * d + 1 : d]) for t in positions]
        for way in WAYS:
            spec, _ = made(1, "tt", sizes=(3, 4, (4,)), implementation=way)
            close(spec.apply_conv(params, x, **options), torch.stack(sums, dim=-1) + bias[:, None])


@st.composite
def cases(draw):
    n = draw(st.integers(1, 3))
    per_axis = lambda low, high: st.integers(low, high) | st.tuples(*[st.integers(low, high)] * n)
    k = draw(st.tuples(*[st.integers(1, 4)] * n))
    kind = draw(st.sampled_from(FACTORIZATIONS))
    rank = draw(st.sampled_from(["same", 0.2, 0.6, 1, 2]))
    spec = FactorizedConv(
        draw(st.integers(1, 5)), draw(st.integers(1, 5)), k, factorization=kind, rank=rank, bias=draw(st.booleans())
    )
    dilation = draw(per_axis(1, 2))
    padding = draw(per_axis(0, 3) | st.sampled_from(["same", "valid"]))
    stride = 1 if padding == "same" else draw(per_axis(1, 3))
    space = tuple(
        2 * (s - 1) + 1 + extra for s, extra in zip(k, draw(st.tuples(*[st.integers(0, 3)] * n)))
    )  # at least the dilated kernel
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    return spec, (*batch, spec.in_channels, *space), {"stride": stride, "padding": padding, "dilation": dilation}


@given(cases(), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own, from the oracle
def test_equal_to_torch(case, seed):
    spec, shape, options = case
    params, x = spec.init(torch.Generator().manual_seed(seed), dtype=D), randn(*shape, seed=seed)
    for way in WAYS:
        other = FactorizedConv(
            spec.in_channels,
            spec.out_channels,
            spec.kernel_size,
            factorization=spec.factorization,
            rank=spec.rank,
            bias=spec.bias,
            implementation=way,
        )
        close(other.apply_conv(params, x, **options), reference(spec, params, x, **options))


@every_order
@every_kind
@pytest.mark.parametrize("way", WAYS[:2])
def test_equal_to_torch_for_every_kind_order_and_way(kind, n, way):
    spec, params = made(n, kind, implementation=way)
    x = randn(2, 3, *(6, 5, 7)[:n])
    for options in (
        {},
        {"stride": (2, 1, 3)[:n], "padding": (1, 0, 2)[:n], "dilation": (1, 2, 1)[:n]},
        {"padding": "valid", "stride": 2},
    ):
        close(spec.apply_conv(params, x, **options), reference(spec, params, x, **options))
        close(spec.apply_conv(params, x[0], **options), reference(spec, params, x[0], **options))


@every_order
@every_kind
@pytest.mark.parametrize("way", WAYS[:2])
def test_vmap_equals_the_loop(kind, n, way):
    spec, _ = made(n, kind, implementation=way)
    each = [made(n, kind, seed)[1] for seed in range(3)]
    stacked = {name: torch.stack([p[name] for p in each]) for name in each[0]}
    xs = randn(3, 2, 3, *(5, 4, 3)[:n])
    f = lambda p, x: spec.apply_conv(p, x, stride=2, padding=1)
    close(vmap(f)(stacked, xs), torch.stack([f(p, x) for p, x in zip(each, xs)]))
    close(vmap(f, (0, None))(stacked, xs[0]), torch.stack([f(p, xs[0]) for p in each]))
    close(vmap(f, (None, 0))(each[0], xs), torch.stack([f(each[0], x) for x in xs]))
    close(vmap(f, (None, 0))(each[0], xs[0]), f(each[0], xs[0]))
    same = lambda p, x: spec.apply_conv(p, x, padding="same")
    close(vmap(same)(stacked, xs), torch.stack([same(p, x) for p, x in zip(each, xs)]))
    close(vmap(spec.kernel)(stacked), torch.stack([spec.kernel(p) for p in each]))


@every_order
@every_kind
@pytest.mark.parametrize("way", WAYS[:2])
def test_derivatives(kind, n, way):
    """Both modes agree, and with those of torch's convolution with the kernel; per example too."""
    spec, params = made(n, kind, implementation=way, sizes=(2, 3, (2, 2, 2)))
    x = randn(2, 2, *(4, 3, 2)[:n])
    f = lambda p, x: spec.apply_conv(p, x, stride=2, padding="valid")
    want = jacrev(lambda p, x: reference(spec, p, x, stride=2), (0, 1))(params, x)
    for jac in (jacrev, jacfwd):
        got = jac(f, (0, 1))(params, x)
        close(got[1], want[1])
        for name in params:
            close(got[0][name], want[0][name])
    loss = lambda p, x: spec.apply_conv(p, x, padding="same").square().sum()
    each = vmap(grad(loss), (None, 0))(params, x)
    total = grad(loss)(params, x)
    for name in params:
        close(each[name].sum(0), total[name])
        close(each[name][1], grad(loss)(params, x[1])[name])


@every_kind
def test_second_derivatives(kind):
    spec, params = made(1, kind, implementation="factorized", sizes=(2, 2, (2,)))
    x, name = randn(2, 2, 4), next(iter(params))
    loss = lambda t, apply: apply(spec, {**params, name: t}, x).pow(3).sum()
    got = hessian(lambda t: loss(t, lambda s, p, x: s.apply_conv(p, x)))(params[name])
    close(got, hessian(lambda t: loss(t, reference))(params[name]), 1e-11)


@every_order
@every_kind
def test_an_empty_batch(kind, n):
    spec, params = made(n, kind)
    x = randn(0, 3, *(6, 5, 7)[:n])
    f = lambda p, x: spec.apply_conv(p, x, stride=2, padding=1)
    assert f(params, x).shape == reference(spec, params, x, stride=2, padding=1).shape
    for jac in (jacrev, jacfwd):
        found = jac(f, (0, 1))(params, x)
        for name, t in params.items():
            assert found[0][name].shape == (*f(params, x).shape, *t.shape)
        assert found[1].shape == (*f(params, x).shape, *x.shape)
    assert all((g == 0).all() for g in grad(lambda p: f(p, x).sum())(params).values())
    stacked = {name: torch.stack([t, t]) for name, t in params.items()}
    assert vmap(f, (0, None))(stacked, x).shape == (2, *f(params, x).shape)
    leaves = {name: t.clone().requires_grad_() for name, t in params.items()}
    f(leaves, x).sum().backward()
    assert all((t.grad == 0).all() for t in leaves.values())


@every_order
@every_kind
@pytest.mark.parametrize("dtype", [D, torch.complex128])
def test_scale_at_init(kind, n, dtype):
    spec, params = made(n, kind, dtype=dtype, sizes=(5, 200, (3, 2, 2)))
    fan = 5 * math.prod(spec.kernel_size)
    assert {name: tuple(t.shape) for name, t in params.items()} == spec.shapes()
    assert {t.dtype for t in params.values()} == {dtype}
    assert spec.kernel(params).abs().square().mean().item() == pytest.approx(1 / (3 * fan), rel=1e-12)
    parts = torch.view_as_real(params["bias"]) * math.sqrt(2) if dtype.is_complex else params["bias"]
    assert parts.abs().max() <= fan**-0.5
    assert params["bias"].abs().square().mean().item() == pytest.approx(1 / (3 * fan), rel=0.25)
    assert abs(params["bias"].mean().item()) < 0.2 * fan**-0.5
    again = spec.init(torch.Generator().manual_seed(0), dtype=dtype)
    assert all(torch.equal(again[name], t) for name, t in params.items())


@every_order
@pytest.mark.parametrize("kind", FACTORIZATIONS[:3])
@given(st.floats(0.15, 0.99), st.integers(4, 20), st.integers(4, 20))
def test_a_fraction_is_a_ceiling(kind, n, rank, c, o):
    spec = FactorizedConv(c, o, (5, 3, 4)[:n], factorization=kind, rank=rank)
    least = FactorizedConv(c, o, (5, 3, 4)[:n], factorization=kind, rank=1)
    assert spec.ratio <= rank or spec.ratio == least.ratio
    assert spec.n_params - o == pytest.approx(spec.ratio * c * o * math.prod((5, 3, 4)[:n]), rel=1e-12)
    params = spec.init(torch.Generator().manual_seed(0))
    assert spec.n_params == sum(t.numel() for t in params.values())


@every_order
@pytest.mark.parametrize("kind", ["tt", "tucker", "dense"])
@pytest.mark.parametrize("dtype", [D, torch.complex128])
def test_fit_is_exact_at_full_rank(kind, n, dtype):
    weight, bias = randn(4, 3, *(3, 2, 2)[:n], dtype=dtype), randn(4, seed=1, dtype=dtype)
    spec, params = factorize_conv(weight, bias, factorization=kind, rank="same")
    close(spec.kernel(params), weight)
    assert torch.equal(params["bias"], bias)
    found, distance = spec.from_kernel(weight, bias=bias)
    assert distance <= 1e-12 * weight.norm()
    assert distance.dtype == D
    x = randn(2, 3, *(5, 4, 3)[:n], dtype=dtype)
    close(spec.apply_conv(params, x), TORCH[n](x, weight, bias))
    assert all(torch.equal(found[name], t) for name, t in params.items())


def tails(weight, kind, ranks):
    """Least errors of the unfoldings of the tensor with modes (in, *k, out)."""
    T = weight.movedim(0, -1)
    if kind == "tt":
        unfolded = [(T.reshape(math.prod(T.shape[:k]), -1), ranks[k]) for k in range(1, T.ndim)]
    else:
        unfolded = [(T.movedim(k, 0).reshape(s, -1), ranks[k]) for k, s in enumerate(T.shape)]
    return torch.stack([torch.linalg.svdvals(M)[r:].norm() for M, r in unfolded])


@every_order
@pytest.mark.parametrize("kind", ["tt", "tucker"])
@pytest.mark.parametrize("rank", [0.3, 0.6, 2])
def test_error_of_the_fit_within_its_bounds(kind, n, rank):
    weight = randn(6, 5, *(3, 4, 2)[:n])
    spec, params = factorize_conv(weight, factorization=kind, rank=rank)
    error, bounds = (spec.kernel(params) - weight).norm(), tails(weight, kind, spec.ranks)
    assert bounds.max() <= error * (1 + 1e-12)
    assert error <= bounds.norm() * (1 + 1e-12)
    assert error > 1e-3 * weight.norm()
    assert abs(spec.from_kernel(weight)[1] - error) <= 1e-12 * error


def test_a_sum_of_terms_is_found_by_cp():
    spec = FactorizedConv(5, 6, (3, 4), factorization="cp", rank=2, bias=False)
    weight = spec.kernel(spec.init(torch.Generator().manual_seed(3), dtype=D))
    found, params = factorize_conv(weight, factorization="cp", rank=2, n_sweeps=300)
    assert found == spec
    assert (spec.kernel(params) - weight).norm() < 1e-6 * weight.norm()


@pytest.mark.parametrize("kind", ["cp", "tucker"])
def test_sweeps_are_passed_on_and_never_hurt(kind):
    weight = randn(8, 7, 3, 3)
    spec = FactorizedConv(7, 8, (3, 3), factorization=kind, rank=(4, 2, 2, 4) if kind == "tucker" else 5, bias=False)
    errors = [spec.from_kernel(weight, n_sweeps=sweeps)[1] for sweeps in (1, 3, 30)]
    assert all(b <= a * (1 + 1e-9) for a, b in zip(errors, errors[1:]))
    assert errors[2] < errors[0]


@every_kind
def test_the_fit_shares_nothing_and_maps(kind):
    weights, biases = randn(3, 4, 3, 2), randn(3, 4, seed=1)
    kept = weights.clone()
    spec, params = factorize_conv(weights[0], biases[0], factorization=kind, rank=2)
    for t in params.values():
        t.add_(1.0)
    assert torch.equal(weights, kept)
    assert torch.equal(biases, randn(3, 4, seed=1))
    got = vmap(lambda w, b: spec.kernel(spec.from_kernel(w, bias=b)[0]))(weights, biases)
    close(got, torch.stack([spec.kernel(spec.from_kernel(w)[0]) for w in weights]), 1e-9)
    assert (spec.from_kernel(weights[0])[0]["bias"] == 0).all()


@every_order
@every_kind
@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_complex(kind, n, way):
    spec, params = made(n, kind, dtype=torch.complex128, implementation=way)
    x = randn(2, 3, *(5, 4, 3)[:n], dtype=torch.complex128)
    for options in ({"stride": 2, "padding": 1}, {"padding": "same"}):
        close(spec.apply_conv(params, x, **options), reference(spec, params, x, **options))
    loss = lambda p, apply: apply(p, x).abs().square().sum()
    got = grad(lambda p: loss(p, spec.apply_conv))(params)
    want = grad(lambda p: loss(p, lambda p, x: reference(spec, p, x)))(params)
    for name in params:
        close(got[name], want[name])


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes(kind, dtype):
    spec, params = made(2, kind, dtype=dtype)
    x = randn(2, 3, 6, 5).to(dtype)
    y = spec.apply_conv(params, x, padding=1)
    assert {t.dtype for t in (y, spec.kernel(params), *params.values())} == {dtype}
    raised = {name: t.double() for name, t in params.items()}
    want = reference(spec, raised, x.double(), padding=1)
    assert (y - want).norm() <= 2 * torch.finfo(dtype).eps * want.norm()  # of rounding once, not at each step
    spec, params = factorize_conv(spec.kernel(params), factorization=kind, rank=2)
    assert {t.dtype for t in params.values()} == {dtype}


@every_order
@every_kind
def test_the_count_is_what_torch_counts_and_auto_takes_the_least_time(kind, n):
    taken, small, large = set(), (3, 4, (3, 2, 2)), (64, 64, (3, 3, 2))
    for sizes, rank, B in [(small, "same", 1), (large, 0.02, 20), (large, 900 if kind == "cp" else "same", 60)]:
        spec, params = made(n, kind, sizes=sizes, rank=rank)
        x = randn(B, sizes[0], *(6, 5, 7)[:n])
        options = {"stride": (2, 1, 1)[:n], "padding": (1, 0, 1)[:n]}
        space = tuple(spec.apply_conv(params, x, **options).shape[2:])
        how = (kind, spec.ranks, (spec.in_channels, *spec.kernel_size, spec.out_channels))
        counts = ways_of(*how, B, tuple(x.shape[2:]), space)
        results = {}
        for way in WAYS[:2]:
            one, _ = made(n, kind, sizes=sizes, rank=rank, implementation=way)
            with FlopCounterMode(display=False) as counter:
                results[way] = one.apply_conv(params, x, **options)
            found = counter.get_flop_counts()["Global"]
            done = sum(v for op, v in found.items() if "convolution" in str(op))
            assert done == 2 * (counts[way].cost.flops - forming(*how)[way].flops)
        plan = spec.plan(tuple(x.shape), **options)
        assert plan.ways == counts
        assert plan.chosen == min(results, key=lambda way: counts[way].time)
        taken.add(plan.chosen)
        assert torch.equal(spec.apply_conv(params, x, **options), results[plan.chosen])
    assert taken == ({"factorized"} if kind == "dense" else {"factorized", "reconstructed"})


def test_groups_go_by_the_kernel():
    spec, params = made(2, "tucker", sizes=(3, 8, (3, 3)))
    x = randn(2, 6, 7, 7)
    y = F.conv2d(x, spec.kernel(params), params["bias"], groups=2)
    halves = [F.conv2d(x[:, 3 * g : 3 * g + 3], spec.kernel(params)[4 * g : 4 * g + 4]) for g in range(2)]
    close(y, torch.cat(halves, dim=1) + params["bias"][:, None, None])


@every_kind
def test_pure_and_plain(kind):
    spec, params = made(2, kind)
    x, kept = randn(2, 3, 5, 5), {name: t.clone() for name, t in params.items()}
    y = spec.apply_conv(dict(reversed(params.items())), x)
    assert torch.equal(y, spec.apply_conv(params, x))
    assert all(torch.equal(params[name], t) for name, t in kept.items())
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(FactorizedConv(3, 4, [3, 2], factorization=kind, rank=0.7))
    if kind in ("tt", "tucker"):
        listed = [[1, 2, 2, 1], [1, 2, 2]][kind == "tucker"]
        assert hash(FactorizedConv(3, 4, (3,), factorization=kind, rank=listed)) == hash(
            FactorizedConv(3, 4, (3,), factorization=kind, rank=tuple(listed))
        )
    if kind != "dense":
        again = FactorizedConv(3, 4, (3, 2), factorization=kind, rank=spec.ranks)
        assert again.shapes() == spec.shapes()
        assert FactorizedConv(3, 4, (3, 2), factorization=kind, rank=1) != FactorizedConv(
            3, 4, (3, 2), factorization=kind, rank=1.0
        )


def call(**options):
    spec, params = made(2, "tt")
    return spec.apply_conv(params, randn(2, 3, 5, 5), **options)


@pytest.mark.parametrize(
    ("error", "text", "wrong"),
    [
        (TypeError, r"in_channels: got 2.0, expected a positive int", lambda: FactorizedConv(2.0, 3, (3,))),
        (ValueError, r"out_channels: got 0, expected a positive int", lambda: FactorizedConv(2, 0, (3,))),
        (
            TypeError,
            r"kernel_size: got 3, expected a tuple of ints, one for each axis",
            lambda: FactorizedConv(2, 3, 3),
        ),
        (ValueError, r"kernel_size: got \(\), expected 1 to 3", lambda: FactorizedConv(2, 3, ())),
        (ValueError, r"kernel_size: got \(3, 0\), expected 1 to 3", lambda: FactorizedConv(2, 3, (3, 0))),
        (ValueError, r"kernel_size: got \(1, 1, 1, 1\)", lambda: FactorizedConv(2, 3, (1, 1, 1, 1))),
        (
            ValueError,
            r"factorization: got 'cpp', expected one of cp,",
            lambda: FactorizedConv(2, 3, (3,), factorization="cpp"),
        ),
        (ValueError, r"implementation: got 'fast'", lambda: FactorizedConv(2, 3, (3,), implementation="fast")),
        (TypeError, r"bias: got 1, expected a bool", lambda: FactorizedConv(2, 3, (3,), bias=1)),
        (ValueError, r"rank is 0.0, expected a fraction", lambda: FactorizedConv(2, 3, (3,), rank=0.0)),
        (TypeError, r"rank is NoneType", lambda: FactorizedConv(2, 3, (3,), factorization="dense", rank=None)),
        (
            ValueError,
            r"rank has 2 entries, expected 3",
            lambda: FactorizedConv(2, 3, (3,), factorization="tucker", rank=(1, 1)),
        ),
        (TypeError, r"generator is int, expected a torch.Generator; pass", lambda: FactorizedConv(2, 3, (3,)).init(0)),
        (
            TypeError,
            r"dtype is torch.int64, expected a floating or complex",
            lambda: FactorizedConv(2, 3, (3,)).init(torch.Generator(), dtype=torch.int64),
        ),
        (ValueError, r"apply_conv: stride is 0, expected an int >= 1 or 2 of them", lambda: call(stride=0)),
        (ValueError, r"stride is \(1, 2, 3\), expected an int >= 1 or 2", lambda: call(stride=(1, 2, 3))),
        (TypeError, r"dilation is 1.5, expected an int or a tuple of 2", lambda: call(dilation=1.5)),
        (TypeError, r"stride is 'same', expected an int or a tuple", lambda: call(stride="same")),
        (ValueError, r"padding is -1, expected an int >= 0", lambda: call(padding=-1)),
        (
            ValueError,
            r"padding is 'full', expected an int or a tuple of 2 ints; or 'same', or 'valid'",
            lambda: call(padding="full"),
        ),
        (ValueError, r"stride is 2, expected 1 with padding='same'", lambda: call(padding="same", stride=2)),
        (ValueError, r"x has space \(5, 5\), expected at least \(9, 5\); give more padding", lambda: call(dilation=4)),
        (
            ValueError,
            r"x has shape \(2, 4, 5, 5\), expected \[B, 3, \*space\] or \[3, \*space\] with 2 sizes",
            lambda: made(2, "cp")[0].apply_conv(made(2, "cp")[1], randn(2, 4, 5, 5)),
        ),
        (
            ValueError,
            r"x has space \(0, 5\), expected at least \(1, 1\)",
            lambda: made(2, "tt")[0].apply_conv(made(2, "tt")[1], randn(2, 3, 0, 5), padding=3),
        ),
        (ValueError, r"x has shape \(3, 5\)", lambda: made(2, "cp")[0].apply_conv(made(2, "cp")[1], randn(3, 5))),
        (TypeError, r"x is list", lambda: made(2, "cp")[0].apply_conv(made(2, "cp")[1], [1.0])),
        (
            TypeError,
            r"x is torch.float32, expected torch.complex128 as params; convert with x.to",
            lambda: made(1, "cp")[0].apply_conv(made(1, "cp", dtype=torch.complex128)[1], torch.ones(3, 5)),
        ),
        (
            ValueError,
            r"leaves have a leading axis.* for an ensemble use torch.func.vmap\(spec.apply_conv\)",
            lambda: made(1, "cp")[0].kernel({name: t[None] for name, t in made(1, "cp")[1].items()}),
        ),
        (ValueError, r"params of another spec: missing leaves", lambda: made(1, "cp")[0].kernel(made(1, "tt")[1])),
        (ValueError, r"leaf U1 has shape", lambda: made(1, "cp")[0].kernel(made(1, "cp")[1] | {"U1": randn(9)})),
        (TypeError, r"params is list", lambda: made(1, "cp")[0].kernel([])),
        (
            ValueError,
            r"weight is of shape \(3, 3\), expected a tensor \[out, in, \*k\]",
            lambda: factorize_conv(randn(3, 3)),
        ),
        (TypeError, r"weight 0 is float", lambda: factorize_conv([1.0])),
        (TypeError, r"weight is dict", lambda: factorize_conv({})),
        (
            TypeError,
            r"kernel is torch.int64, expected a floating or complex",
            lambda: factorize_conv(torch.ones(3, 3, 3, dtype=torch.int64)),
        ),
        (
            ValueError,
            r"kernel has shape \(2, 4, 3, 3\), expected \(4, 3, 3\); use torch.func.vmap\(spec.from_kernel\)",
            lambda: made(1, "tt")[0].from_kernel(randn(2, 4, 3, 3)),
        ),
        (ValueError, r"bias has shape \(3,\), expected shape \(4,\)", lambda: factorize_conv(randn(4, 3, 3), randn(3))),
        (
            ValueError,
            r"bias has shape \(4,\), expected None",
            lambda: made(1, "tt", bias=False)[0].from_kernel(randn(4, 3, 3), bias=randn(4)),
        ),
        (
            ValueError,
            r"n_sweeps is 3, expected None for 'tt'",
            lambda: factorize_conv(randn(4, 3, 3), factorization="tt", n_sweeps=3),
        ),
    ],
)
def test_errors(error, text, wrong):
    with pytest.raises(error, match=text):
        wrong()
