"""FixedRank, Invertible, UnitDeterminant, Unitary: the edges of their sets, nearest matrices, float32, errors."""

import math

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

import linmaps
from linmaps import FixedRank, Invertible, Unitary, UnitDeterminant, strategies, trees
from linmaps.numerics.nearest import onto_product_one
from tests.linmaps import zoo
from tests.linmaps.kinds.determinants import KINDS, rotations, unit_determinant_residual

DTYPES = (torch.float32, torch.float64)


def outlying(spec, dtype):
    """Params far from any init."""
    like = spec.init(zoo.generator(0), dtype=dtype)
    for seed in range(3):
        for change in strategies.ADVERSARIES.values():
            normal = lambda t, seed=seed: torch.randn(t.shape, generator=zoo.generator(seed), dtype=t.dtype)
            yield trees.map(lambda t, change=change, normal=normal: change(normal(t)), like)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_every_member_is_reached_to_rounding(name, dtype):
    """Singular values of sigma_min and tied ones among them."""
    rng = np.random.default_rng(0)
    for entry in (e for e in zoo.ENTRIES if e.spec.name == name and getattr(e.spec, "sigma_max", None) is None):
        for _ in range(5):
            W = torch.tensor(KINDS[name].member(entry.spec, rng)).to(
                dtype.to_complex() if entry.spec.complex_W else dtype
            )
            params, distance = entry.spec.from_matrix(W)
            assert distance <= 16 * len(W) * torch.finfo(dtype).eps * W.abs().max()
            assert all(t.dtype == dtype for t in trees.leaves(params))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "spec",
    [Invertible(4, sigma_min=0.5), FixedRank(5, 4, 3, sigma_min=0.5), FixedRank(3, 3, 3, sigma_min=0.5)],
    ids=str,
)
def test_members_at_the_edge_are_reached_and_train(spec, dtype):
    k, rng = spec._k, np.random.default_rng(1)
    W = torch.tensor(rotations(spec, rng, np.full(k, 0.5))).to(dtype)
    params, distance = spec.from_matrix(W)
    assert distance <= 32 * torch.finfo(dtype).eps
    slope = grad(lambda p: zoo.squared(spec.effective_W(p) - 2 * W))(params)["p"]
    assert (slope.abs() > torch.finfo(dtype).eps).all()
    assert torch.linalg.svdvals(spec.effective_W(params))[:k].min() >= 0.5 * (1 - 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 5, 24])
def test_determinants_at_outlying_params(n, dtype):
    for params in outlying(spec := Invertible(n), dtype):
        sign, _ = np.linalg.slogdet(spec.effective_W(params).double().numpy())
        assert sign == 1
    for params in outlying(spec := UnitDeterminant(n), dtype):
        W = spec.effective_W(params).double()
        rounding = 8 * n * torch.finfo(dtype).eps * torch.linalg.cond(W)
        assert abs(torch.linalg.det(W) - 1) <= rounding
        assert torch.linalg.cond(W) <= 1e5
        assert spec.logabsdet(params) == 0


def test_fixed_rank_counts():
    spec = FixedRank(7, 5)
    assert spec.rank == 2
    s = np.linalg.svd(spec.effective_W(zoo.random_params(spec, 0)).numpy(), compute_uv=False)
    assert (s[:2] >= 0.1).all()
    assert (s[2:] < 1e-14).all()
    square = FixedRank(4, 4, 2)
    assert square.logabsdet(zoo.random_params(square, 0)) == -math.inf


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)])
def test_fixed_rank_takes_the_nearest(shape):
    W = torch.randn(shape, generator=zoo.generator(2), dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    s = s.clamp(min=1.5) * (torch.arange(4) < 2)
    params, distance = (spec := FixedRank(*shape, 2, sigma_min=1.5)).from_matrix(W)
    assert torch.allclose(spec.effective_W(params), (U * s) @ Vh)
    assert distance == pytest.approx(float(spec.violation(W)))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_matrix_of_determinant_one_is_a_stationary_point_and_few_are_nearer(n):
    spec, rng = UnitDeterminant(n), np.random.default_rng(n)
    for seed in range(6):
        W = 10.0 ** rng.integers(-2, 2) * torch.tensor(rng.standard_normal((n, n)))
        params, distance = spec.from_matrix(W)
        assert spec.violation(W) == pytest.approx(float(distance), abs=1e-12)
        slopes = trees.leaves(grad(lambda p: zoo.squared(spec.effective_W(p) - W))(params))  # noqa: B023
        assert all((t.abs() <= 1e-9 * (1 + float(W.norm())) ** 2).all() for t in slopes if t.numel())
        others = (spec.effective_W(zoo.random_params(spec, s)) for s in range(30))
        assert all(distance <= (other - W).norm() + 1e-9 for other in others), seed
        step = trees.map(lambda t: t + 0.1 * torch.randn(t.shape, generator=zoo.generator(seed)).double(), params)  # noqa: B023
        assert distance <= (spec.effective_W(step) - W).norm() + 1e-9


def test_numbers_onto_a_product_of_one():
    """Against a search over a curve of such pairs, where there are two."""
    a = torch.logspace(-6, 6, 200001, dtype=torch.float64)
    for s in ((3.0, 3.0), (10.0, 1.0), (1e-3, 1e-9), (0.0, 0.0), (2.0, -1.5), (5.0, -5.0), (1.0, 1.0), (4.0, 0.25)):
        t = torch.tensor(s, dtype=torch.float64)
        found = onto_product_one(t)
        assert found.prod() == pytest.approx(1.0, abs=1e-12)
        best = ((a - s[0]).square() + (1 / a - s[1]).square()).min().sqrt()
        assert (found - t).norm() <= best + 1e-6
    many = torch.randn(20, 4, generator=zoo.generator(0), dtype=torch.float64).abs().sort(1, descending=True).values
    assert torch.allclose(vmap(onto_product_one)(many), torch.stack([onto_product_one(s) for s in many]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_every_unitary_matrix_is_reached(n, dtype):
    """Eigenvalues -1, 1, repeated ones, permutations, real ones and Haar ones."""
    rng, spec = np.random.default_rng(n), Unitary(n)
    P = np.linalg.qr(rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n)))[0]
    eye = np.eye(n)
    corners = [P, eye, -eye, 1j * eye, eye[rng.permutation(n)], np.diag(rng.choice([1, -1], n)), eye[::-1].copy()]
    corners += [
        (P * rng.choice([1, -1], n)) @ P.conj().T,
        (P * np.exp(1j * rng.choice([np.pi, 1e-9, 2], n))) @ P.conj().T,
    ]
    for Q in corners:
        W = torch.tensor(Q, dtype=torch.complex128).to(dtype.to_complex())
        params, distance = spec.from_matrix(W)
        assert distance <= 8 * n * torch.finfo(dtype).eps
        assert {t.dtype for t in params.values()} == {dtype}


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16])
def test_unitary_dtypes(dtype):
    """Real leaves; half precision gives complex64, as torch computes with no complex half."""
    spec = Unitary(4, bias=True)
    exact = zoo.random_params(spec, 0)
    params = trees.map(lambda t: t.to(dtype), exact)
    want, eps = torch.promote_types(dtype, torch.complex64), torch.finfo(dtype).eps
    x = torch.randn(3, 4, generator=zoo.generator(1), dtype=torch.float64)
    W, y = spec.effective_W(params), spec.apply(params, x.to(dtype))
    assert {t.dtype for t in params.values()} == {dtype}
    assert {W.dtype, y.dtype, spec.solve(params, y.to(want)).dtype, spec.inverse(params).dtype} == {want}
    assert (W - spec.effective_W(exact)).abs().max() <= 32 * eps
    assert (y - spec.apply(exact, x)).abs().max() <= 64 * eps
    assert spec.violation(W).dtype == want.to_real()
    assert spec.singular_values(params).dtype == dtype
    assert spec.from_matrix(W)[0]["bias"].dtype == want.to_real()
    with pytest.raises(TypeError, match=r"expected a real floating torch\.dtype"):
        spec.init(zoo.generator(0), dtype=torch.complex64)


def test_unitary_init_is_haar():
    """Moments of entries, and of the eigenvalues' angles: |tr W^k|^2 has mean min(k, n), tr W^k mean 0."""
    spec = Unitary(3)
    stacked = trees.stack([zoo.random_params(spec, seed) for seed in range(1500)])
    W = vmap(spec.effective_W)(stacked)
    assert (W.mean(0)).abs().max() < 0.06
    assert (W.abs().square().mean(0) - 1 / 3).abs().max() < 0.03
    assert (W.abs().pow(4).mean(0) - 2 / 12).abs().max() < 0.03
    power = W
    for k in (1, 2, 3):
        trace = power.diagonal(dim1=1, dim2=2).sum(1)
        assert trace.mean().abs() < 0.15
        assert trace.abs().square().mean() == pytest.approx(k, rel=0.15)
        power = power @ W


def test_unitary_of_complex_inputs_and_layers():
    spec = Unitary(3)
    params = zoo.random_params(spec, 0)
    x = torch.randn(500, 3, generator=zoo.generator(1), dtype=torch.complex128)
    for rows in (x[:1], x):
        assert torch.allclose(spec.solve(params, spec.apply(params, rows)), rows)
    with pytest.raises(ValueError, match=r"complex matrices, expected a map of real ones for weight of torch.float32"):
        linmaps.parametrize(torch.nn.Linear(3, 3), "weight", spec)
    layer = linmaps.parametrize(torch.nn.Linear(3, 3, dtype=torch.complex64), "weight", spec)
    assert spec.violation(layer.weight) < 1e-5


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: FixedRank(4, 3, 5), ValueError, r"FixedRank.rank: got 5, expected an int from 1 to 3"),
        (lambda: FixedRank(4, 3, 2, sigma_min=0.0), ValueError, r"sigma_min: got 0.0, expected a finite number > 0"),
        (lambda: Invertible(4, sigma_min=0), ValueError, r"sigma_min: got 0, expected a finite number > 0"),
        (
            lambda: Invertible(4, sigma_min=2.0, sigma_max=1.0),
            ValueError,
            r"sigma_min: got 2.0, expected at most sigma_max",
        ),
        (
            lambda: Invertible(4, 3),
            ValueError,
            r"out_features: got 3, expected in_features=4, since this map is square",
        ),
        (lambda: Invertible(4, sigma_max="1"), TypeError, r"sigma_max: got '1', expected a number"),
    ],
)
def test_options_that_contradict(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_the_oracle_of_determinant_one_measures_a_distance():
    W = np.diag([2.0, 0.5]) * 1.001
    assert unit_determinant_residual(UnitDeterminant(2), W) == pytest.approx(0.002 / math.hypot(2, 0.5), rel=0.01)
