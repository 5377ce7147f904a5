"""Triangular, diagonal and Toeplitz maps: against dense solves, by Fourier transforms, far from any init."""

import pytest
import torch
from torch.func import vmap

import linmaps
from linmaps.families.patterns import toeplitz
from tests.linmaps.zoo import KINDS, generator, random_params

D = torch.float64


def x_of(spec, rows=3, seed=9, dtype=D):
    return torch.randn(rows, spec.in_features, generator=generator(seed), dtype=dtype)


@pytest.mark.parametrize(("n", "m"), [(256, 256), (300, 219), (1, 2**16), (2**16, 1), (1000, 70)])
@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_toeplitz_by_fourier_transforms_is_the_product(n, m, dtype):
    assert n * m >= toeplitz.LARGE
    spec = linmaps.Toeplitz(n, m, bias=True)
    params, x = spec.init(generator(0), dtype=dtype), x_of(linmaps.Linear(n), dtype=dtype)
    want = x @ spec.effective_W(params) + params["bias"]
    tolerance = 50 * torch.finfo(dtype).eps * x.norm() * params["diagonals"].norm()
    assert (spec.apply(params, x) - want).abs().max() <= tolerance
    assert spec.apply(params, x[:0]).shape == (0, m)
    stacked = {key: torch.stack([t, 2 * t]) for key, t in params.items()}
    assert torch.allclose(vmap(spec.apply, (0, None))(stacked, x)[1], 2 * want, atol=2 * float(tolerance))
    half = {key: t.bfloat16() for key, t in params.items()}
    assert spec.apply(half, x.bfloat16()).dtype == torch.bfloat16


def test_toeplitz_where_its_matrix_would_not_fit():
    spec = linmaps.Toeplitz(90_000, 110_000)
    y = spec.apply(random_params(spec, 0), x_of(spec))
    assert y.shape == (3, 110_000)
    assert y.square().mean().item() == pytest.approx(1 / 3, rel=0.2)


def test_diagonal_where_its_matrix_would_not_fit():
    spec = linmaps.Diagonal(200_000)
    params, x = random_params(spec, 0), x_of(spec)
    assert torch.allclose(spec.solve(params, spec.apply(params, x)), x)
    assert spec.logabsdet(params).isfinite()
    assert spec.eig(params).shape == (200_000,)
    assert torch.equal(spec.eig(params), params["diagonal"].sort().values)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("diagonal", ["free", "positive", "unit"])
def test_triangular_against_dense_solves(lower, diagonal):
    """Of a size at which independent entries of one scale would have a condition beyond 1e16."""
    spec = linmaps.Triangular(200, lower=lower, diagonal=diagonal)
    params, y = random_params(spec, 0), x_of(spec)
    W = spec.effective_W(params)
    assert torch.equal(W, W.tril() if lower else W.triu())
    assert torch.linalg.cond(W) < 1e4
    assert torch.allclose(spec.solve(params, y), torch.linalg.solve(W.mT, y.mT).mT, atol=1e-9)
    assert torch.allclose(spec.inverse(params), torch.linalg.inv(W), atol=1e-9)
    assert torch.allclose(spec.logabsdet(params), torch.linalg.slogdet(W).logabsdet, atol=1e-9)
    assert torch.equal(spec.eig(params).real, W.diagonal())


@pytest.mark.parametrize("diagonal", ["free", "positive", "unit"])
@pytest.mark.parametrize("n", [1, 2, 64, 256])
def test_the_size_of_a_start_with_each_diagonal(n, diagonal):
    spec = linmaps.Triangular(n, diagonal=diagonal)
    Ws = [spec.effective_W(random_params(spec, seed)) for seed in range(max(12, 600 // n))]
    size = sum(float(W.square().sum(0).mean()) for W in Ws) / len(Ws)
    assert size**0.5 == pytest.approx(KINDS["triangular"].std(spec), rel=0.15)
    assert max(float(torch.linalg.cond(W)) for W in Ws[:12]) < 60
    if diagonal == "positive":
        assert size**0.5 == pytest.approx(1, rel=0.15)
        assert Ws[-1].diagonal().mean() > 0.8 or n < 64


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("value", [-1e38, -1e4, -200.0, -20.0, 0.0, 20.0, 1e4, 1e30])
def test_a_positive_diagonal_is_positive_at_any_params(value, dtype):
    spec = linmaps.Triangular(3, diagonal="positive")
    params = {"off": torch.ones(3, dtype=dtype), "diagonal": torch.full((3,), value, dtype=dtype)}
    d = spec.effective_W(params).diagonal()
    assert (d > 0).all()
    assert d.isfinite().all()
    assert spec.logabsdet(params).isfinite()
    slope = torch.func.grad(spec.logabsdet)(params)["diagonal"]
    assert slope.isfinite().all()


def test_triangular_by_hand():
    params = {"off": torch.tensor([1.0, 2.0, 3.0]), "diagonal": torch.tensor([7.0, 8.0, 9.0])}
    upper = torch.tensor([[7.0, 1, 2], [0, 8, 3], [0, 0, 9]])
    assert torch.equal(linmaps.Triangular(3, lower=False).effective_W(params), upper)
    assert torch.equal(linmaps.Triangular(3).effective_W(params), upper.mT)
    singular = params | {"diagonal": torch.tensor([7.0, 0.0, 9.0])}
    assert linmaps.Triangular(3).logabsdet(singular) == -torch.inf


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: linmaps.Triangular(3, diagonal="ones"), ValueError, r"diagonal: got 'ones', expected one of"),
        (lambda: linmaps.Triangular(3, lower=1), TypeError, r"lower: got 1, expected a bool"),
        (lambda: linmaps.Diagonal(3, 4), ValueError, r"out_features: got 4, expected in_features=3"),
        (lambda: linmaps.Toeplitz(0, 4), ValueError, r"in_features: got 0, expected a positive int"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()
