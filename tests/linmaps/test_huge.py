"""Laws of maps at finite numbers of any size: a hard promise is kept, a distance is told, a derivative is finite."""

import zlib

import pytest
import torch
from torch.func import grad, vmap

import linmaps
from linmaps import trees
from linmaps.numerics.orthogonal.rotations import rotation
from tests.linmaps import zoo
from tests.linmaps.kind import Entry

HARD = [e for e in zoo.ENTRIES if e.spec.guaranteed and e.spec.n_params]
SCALES = (1e8, 1e15, 1e20, 1e30, 3e37)  # of the last the norm of many is no float
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def normal(t: torch.Tensor, seed: int) -> torch.Tensor:
    wide = torch.complex128 if t.is_complex() else torch.float64
    return torch.randn(t.shape, generator=zoo.generator(seed), dtype=wide).to(t.dtype)


def huge(spec, dtype, seed):
    """Params all of whose numbers are huge, and params with one such entry in each leaf."""
    start = spec.init(zoo.generator(seed), dtype=dtype)
    for scale in SCALES if dtype == torch.float32 else SCALES[seed % 2 :: 2]:
        yield trees.map(lambda t, s=scale: s * normal(t, seed), start)
        yield trees.map(lambda t, s=scale: one_of(t, s, seed), start)


def one_of(t, scale, seed):
    t = t.clone()
    if t.numel():
        t.view(-1)[(7 * seed + t.numel() // 2) % t.numel()] = scale
    return t


def representable(spec, params, dtype):
    """Whether the numbers of W fit into the dtype: they may not where W is a product, or an exponential, of free numbers."""
    W = spec.effective_W(trees.map(lambda t: t.to(torch.promote_types(t.dtype, torch.float64)), params))
    return bool(W.isfinite().all()) and float(W.abs().max()) < torch.finfo(dtype).max / 100


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("entry", HARD, ids=zoo.label)
def test_a_hard_promise_is_kept_at_huge_params(entry: Entry, dtype: torch.dtype) -> None:
    spec = entry.spec
    if dtype == torch.bfloat16 and getattr(spec, "complex", False):
        pytest.skip("its leaves are complex, which half precision has none of")
    size = max(spec.in_features, spec.out_features)
    for params in huge(spec, dtype, 1 + zlib.crc32(zoo.label(entry).encode()) % 3):
        if not representable(spec, params, dtype):
            continue
        W = spec.effective_W(params)
        assert torch.isfinite(W).all()
        exact = W.to(torch.promote_types(W.dtype, torch.float64))
        rounding = 16 * torch.finfo(dtype).eps * size * max(1.0, float(exact.abs().max()))
        assert zoo.residual(spec, exact) <= rounding
        assert spec.violation(exact) <= rounding


@pytest.mark.parametrize("method", linmaps.families.singular_values.orthogonal.METHODS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("n", [2, 3, 8, 17])
def test_huge_params_leave_the_determinant_where_it_is_and_derivatives_finite(n, dtype, method):
    spec = linmaps.Orthogonal(n, method=method, det=-1)
    members = [p for seed in range(2) for p in huge(spec, dtype, seed)]
    for params, W in zip(members, vmap(spec.effective_W)(trees.stack(members))):
        assert float(torch.linalg.det(W.double())) == pytest.approx(-1, abs=1e-4)
        slope = grad(lambda p: (spec.effective_W(p) * torch.linspace(0, 1, n, dtype=dtype)).sum())(params)
        assert all(t.isfinite().all() for t in trees.leaves(slope))


@pytest.mark.parametrize("method", ["cayley", "exp"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_rotation_of_any_size_and_rank_has_determinant_one(dtype, method):
    for n in (3, 4, 5, 17):
        for seed in range(3):
            a, b, spread = (
                torch.randn(n, n, generator=zoo.generator(9 * seed + k), dtype=torch.float64) for k in range(3)
            )
            low = torch.outer(a[0], b[0]) - torch.outer(b[0], a[0])
            graded = (a * 10 ** (-5 * spread.abs())).triu(1)
            for S in (a - a.mT, low, graded - graded.mT):
                for power in range(0, 20, 3):
                    R = rotation((S * 100.0**power).to(dtype), method).double()
                    assert float(torch.linalg.det(R)) > 0
                    eye = torch.eye(n, dtype=torch.float64)
                    assert float((R.mT @ R - eye).norm()) <= 8 * n * torch.finfo(dtype).eps


def test_a_reflection_does_not_depend_on_the_size_of_its_vector():
    for dtype, scales in ((torch.float32, (1e12, 1e20, 1e35)), (torch.float64, (1e80, 1e160, 1e300))):
        v = torch.randn(3, 5, generator=zoo.generator(0), dtype=dtype)
        one = linmaps.numerics.orthogonal.householder.frame(v, 5)
        for scale in scales:
            for rows in (scale * v, torch.cat([v[:1], scale * v[1:]])):
                Q = linmaps.numerics.orthogonal.householder.frame(rows, 5)
                torch.testing.assert_close(Q, one, rtol=0, atol=20 * torch.finfo(dtype).eps)


SHARED = (
    "families.singular_values",
    "families.symmetries",
    "families.patterns",
)  # whose params are as free as W is large
CLOSED = [e for e in HARD if any(room in type(e.spec).__module__ for room in SHARED) and zoo.closed_form(e.spec)]


@pytest.mark.parametrize("entry", CLOSED, ids=zoo.label)
def test_the_distance_of_a_huge_matrix_is_told(entry: Entry) -> None:
    spec = entry.spec
    for scale in (1e8, 1e15, 1e25):
        W = scale * torch.randn(spec.in_features, spec.out_features, generator=zoo.generator(3))
        W = W.to(torch.complex64) if spec.complex_W else W
        params, distance = spec.from_matrix(W)
        assert all(t.isfinite().all() for t in trees.leaves(params))
        assert distance.isfinite()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_matrix_of_any_size_has_a_nearest_one_of_determinant_one(n, dtype):
    spec = linmaps.UnitDeterminant(n)
    for scale in (1e-3, 1.0, 1e6, 1e9, 1e10, 1e12):
        W = (scale * torch.randn(n, n, generator=zoo.generator(n), dtype=torch.float64)).to(dtype)
        params, distance = spec.from_matrix(W)
        exact = spec.from_matrix(W.double())[1]
        assert all(t.isfinite().all() for t in trees.leaves(params))
        assert spec.effective_W(params).isfinite().all()
        assert float(distance) == pytest.approx(float(exact), rel=2e-2 if dtype == torch.bfloat16 else 1e-4)
        assert float(spec.violation(W.double())) == pytest.approx(float(exact), rel=1e-6)
