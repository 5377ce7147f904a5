"""Columns and rows of known lengths: at params that vanish, or nearly, or are huge; beside torch's weight norm."""

import pytest
import torch
from torch.func import grad, vmap

import linmaps
from linmaps.families.entries import vectors
from tests.linmaps.zoo import generator, random_params

D = torch.float64


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=generator(seed), dtype=D).to(dtype)


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [(torch.float32, [1e-45, 1e-38, 1e-30, 1e-20, 1e20, 1e38]), (D, [1e-320, 1e-300, 1e-200, 1e300])],
)
def test_lengths_whatever_the_size_of_params(axis, dtype, sizes):
    spec = linmaps.UnitNorm(5, 4, axis=axis, radius=3.0)
    for size in sizes:
        W = spec.effective_W(
            {"W": (randn(5, 4) * size).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)}
        )
        lengths = torch.linalg.vector_norm(W.double(), dim=0 if axis == "out" else 1)
        assert (lengths - 3).abs().max() <= 16 * torch.finfo(dtype).eps
        slope = grad(lambda A: (spec.effective_W({"W": A}) * randn(5, 4, seed=1).to(dtype)).sum())
        assert slope((randn(5, 4) * size).to(dtype)).isfinite().all()
        assert linmaps.UnitNorm(5, 4, axis=axis).violation(W) == pytest.approx(2 * len(lengths) ** 0.5, rel=1e-5)


def slopes(spec, params, weights):
    """W and its gradient on autograd's own tape."""
    leaves = {k: t.detach().requires_grad_() for k, t in params.items()}
    W = spec.effective_W(leaves)
    return W.detach(), dict(zip(leaves, torch.autograd.grad(W, [*leaves.values()], weights)))


MAKERS = {
    "unit norm": lambda axis: linmaps.UnitNorm(5, 4, axis, 3.0),
    "weight norm": lambda axis: linmaps.WeightNorm(5, 4, axis=axis),
}


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("name", MAKERS)
def test_on_the_tape_as_in_transforms_at_any_size(name, axis, dtype):
    """Torch's one call for weight norm is taken where it is right, and makes no difference but for rounding."""
    spec, weights = MAKERS[name](axis), randn(5, 4, seed=1, dtype=dtype)
    start = {k: randn(*shape, seed=2, dtype=dtype) for k, shape in spec.shapes().items()}
    large = 30 if dtype == torch.float32 else 200
    for key in start:
        for power in (-large, -20, -3, 0, 3, 12, 20, large):
            params = {**start, key: start[key] * 10.0**power}
            W, slope = slopes(spec, params, weights)
            assert W.isfinite().all()
            formula = lambda p: (spec.effective_W(p) * weights).sum()
            rounding = {"rtol": 1e-4 if dtype == torch.float32 else 1e-12, "atol": 0.0}
            close = lambda a, b, r=rounding: torch.testing.assert_close(
                a, b, **{**r, "atol": r["rtol"] * b.abs().max()}
            )
            close(W, vmap(spec.effective_W)({k: t[None] for k, t in params.items()})[0])
            for k, t in grad(formula)(params).items():
                close(slope[k], t)


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("name", MAKERS)
def test_on_the_tape_where_a_vector_is_none_or_not_a_number(name, axis):
    spec, weights = MAKERS[name](axis), randn(5, 4, seed=1)
    leaf = next(iter(spec.shapes()))
    params = {k: randn(*shape, seed=2) for k, shape in spec.shapes().items()}
    params[leaf][1] = 0.0
    params[leaf][:, 1] = 0.0
    W, slope = slopes(spec, params, weights)
    assert torch.allclose(W, vmap(spec.effective_W)({k: t[None] for k, t in params.items()})[0])
    assert all(t.isfinite().all() for t in slope.values())
    params[leaf][0, 0] = torch.nan
    assert slopes(spec, params, weights)[0].isnan().any()


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("name", MAKERS)
def test_on_the_tape_whatever_the_strides(name, axis):
    spec = MAKERS[name](axis)
    params = {k: randn(*shape, seed=2) for k, shape in spec.shapes().items()}
    weights = randn(4, 5, seed=1).mT
    strided = {k: torch.stack([t, t], -1)[..., 0] if t.ndim == 1 else t.mT.contiguous().mT for k, t in params.items()}
    for got, want in zip(slopes(spec, strided, weights), slopes(spec, params, weights.contiguous())):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_on_the_tape_to_the_second_order(name, axis):
    spec = MAKERS[name](axis)
    leaves = [randn(*shape, seed=2).requires_grad_() for shape in spec.shapes().values()]
    f = lambda *leaves: spec.effective_W(dict(zip(spec.shapes(), leaves)))
    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("axis", ["out", "in"])
def test_long_vectors_have_their_length_to_rounding(axis):
    for n in (vectors.LONG, vectors.LONG + 1, 1 << 14):
        shape = (n, 2) if axis == "out" else (2, n)
        W = linmaps.UnitNorm(*shape, axis).effective_W({"W": 1 + randn(*shape, dtype=torch.float32).abs()})
        assert (torch.linalg.vector_norm(W.double(), dim=shape.index(n)) - 1).abs().max() < 2e-6


def test_one_zero_vector_has_a_direction_and_leaves_it():
    spec, target = linmaps.UnitNorm(3, 4), randn(3, 4, seed=1)
    A = randn(3, 4)
    A[:, 1] = 0
    loss = lambda A: (spec.effective_W({"W": A}) - target).square().sum()
    assert torch.equal(spec.effective_W({"W": A})[:, 1], torch.tensor([0.0, 1, 0], dtype=D))
    slope = grad(loss)(A)
    assert slope.isfinite().all()
    assert slope[:, 1].abs().max() > 0.1
    for _ in range(300):
        A = A - 0.1 * grad(loss)(A)
    nearest = target / target.norm(dim=0)
    assert torch.allclose(spec.effective_W({"W": A}), nearest, atol=1e-3)


def test_second_derivatives_at_zero_are_finite():
    f = lambda A: linmaps.UnitNorm(2, 2).effective_W({"W": A}).sin().sum()
    H = torch.func.hessian(f)(torch.zeros(2, 2, dtype=D))
    assert H.isfinite().all()
    assert torch.allclose(H, torch.func.jacfwd(torch.func.jacfwd(f))(torch.zeros(2, 2, dtype=D)))


def test_an_output_is_bounded_by_the_radius():
    spec, x = linmaps.UnitNorm(6, 9, radius=0.5), randn(20, 6, seed=3)
    y = spec.apply(random_params(spec, 0), x)
    assert (y.abs().amax(1) <= 0.5 * x.norm(dim=1) + 1e-12).all()


def test_weight_norm_is_that_of_torch():
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3, dtype=D))
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    with torch.no_grad():
        g.mul_(-1.5)
    spec = linmaps.WeightNorm(4, 3, bias=True)
    params = {"V": v.detach().mT, "g": g.detach()[:, 0], "bias": layer.bias.detach()}
    x = randn(5, 4)
    assert torch.allclose(spec.apply(params, x), layer(x).detach(), atol=1e-12)


def test_weight_norm_starts_at_its_directions():
    for axis in ("out", "in"):
        spec = linmaps.WeightNorm(4, 3, axis=axis)
        params = random_params(spec, 0)
        assert torch.allclose(spec.effective_W(params), params["V"], atol=1e-15)
        assert (params["V"].abs() <= 0.5).all()


@pytest.mark.parametrize("axis", ["out", "in"])
def test_weight_norm_takes_zero_vectors(axis):
    spec, W = linmaps.WeightNorm(3, 3, axis=axis), randn(3, 3)
    W[1] = W[:, 1] = 0
    params, distance = spec.from_matrix(W)
    assert distance < 1e-15
    assert params["g"][1] == 0
    slope = grad(lambda p: (spec.effective_W(p) - 1).square().sum())(params)
    assert slope["g"].abs().min() > 1e-3


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: linmaps.UnitNorm(3, axis="rows"), ValueError, r"axis: got 'rows', expected one of \('out', 'in'\)"),
        (lambda: linmaps.UnitNorm(3, radius=0.0), ValueError, r"radius: got 0.0, expected a finite number > 0"),
        (lambda: linmaps.WeightNorm(3, axis=0), ValueError, r"axis: got 0, expected one of"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()
