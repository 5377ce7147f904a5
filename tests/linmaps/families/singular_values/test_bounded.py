"""Bounded norms: each norm hits its bounds exactly, also after training, at zero and at huge entries."""

import math

import numpy as np
import pytest
import torch

import linmaps
from tests.linmaps.zoo import descend, generator, random_params

NORMS = [1, 2, "inf", "fro"]
D = torch.float64


def norm(W, p):
    return np.linalg.norm(W.numpy(), np.inf if p == "inf" else p)


@pytest.mark.parametrize("p", NORMS)
def test_norm_is_exactly_what_the_leaf_says(p):
    spec = linmaps.BoundedNorm(5, 3, p=p)
    params = random_params(spec, 0) | {"t": torch.tensor(0.3, dtype=D)}
    want = 0.1 + 0.9 * torch.tensor(0.3, dtype=D).sigmoid().item()
    for scale in (1e-200, 1.0, 1e200):
        scaled = params | {"W": scale * params["W"]}
        assert norm(spec.effective_W(scaled), p) == pytest.approx(want, rel=1e-13)
    zeros = params | {"W": torch.zeros(5, 3, dtype=D)}
    assert norm(spec.effective_W(zeros), p) == pytest.approx(want, rel=1e-13)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("factor", [0.0, 10.0])
def test_norm_after_a_thousand_adam_steps(p, factor):
    spec = linmaps.BoundedNorm(4, 6, p=p)
    target = factor * torch.randn(4, 6, generator=generator(0), dtype=D)
    params = descend(spec, lambda W: (W - target).square().sum(), 0, 1000, 0.1)
    size = norm(spec.effective_W(params), p)
    assert 0.1 - 1e-12 <= size <= 1 + 1e-12
    assert size == pytest.approx(1.0 if factor else 0.1, abs=0.01), "pushed to the bound"


@pytest.mark.parametrize("p", NORMS)
def test_soft_penalty_is_a_squared_hinge(p):
    spec = linmaps.BoundedNorm(3, p=p, soft=True)
    W = torch.randn(3, 3, generator=generator(0), dtype=D)
    size = norm(W, p)
    assert spec.reg_error({"W": W}).item() == pytest.approx(max(size - 1, 0) ** 2)
    assert spec.reg_error({"W": 0.5 * W / size}) == 0
    assert spec.reg_error({"W": 0.01 * W / size}).item() == pytest.approx(0.09**2)
    assert not spec.guaranteed


def test_start_is_that_of_a_dense_layer_where_the_bounds_allow_it():
    spec = linmaps.BoundedNorm(30, 20, sigma_max=10.0)
    assert torch.allclose(spec.effective_W(random_params(spec, 0)), random_params(spec, 0)["W"], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"p": 3}, ValueError, r"p: got 3, expected one of \(1, 2, 'inf', 'fro'\)"),
        ({"soft": 1}, TypeError, r"soft: got 1, expected a bool"),
        ({"sigma_max": 0.05}, ValueError, r"sigma_min: got 0.1, expected at most sigma_max=0.05"),
    ],
)
def test_errors(options, error, text):
    with pytest.raises(error, match=text):
        linmaps.BoundedNorm(3, **options)


def test_infinity_is_taken_as_a_number_too():
    """As torch.linalg.matrix_norm takes it."""
    spec = linmaps.BoundedNorm(3, 4, p=math.inf)
    assert spec == linmaps.BoundedNorm(3, 4, p="inf")
    W = torch.randn(3, 4, generator=generator(0))
    assert spec.violation(W) == torch.linalg.matrix_norm(W, math.inf) - 1


@pytest.mark.parametrize("p", [1, 2, "inf", math.inf, "fro"])
def test_the_params_of_zeros_are_trained_like_others(p):
    spec, target = linmaps.BoundedNorm(3, p=p), torch.randn(3, 3, generator=generator(1))
    params, _ = spec.from_matrix(torch.zeros(3, 3))
    slope = torch.func.grad(lambda q: (spec.effective_W(q) - target).square().sum())(params)
    assert slope["W"].abs().max() > 1e-3


@pytest.mark.parametrize("p", [1, 2, "inf", "fro"])
@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30])
def test_descent_leaves_zero(p, size):
    """A = 0 counts as the identity, with its derivative; so does what is too small to have one."""
    spec = linmaps.BoundedNorm(3, p=p, sigma_min=1.0, sigma_max=1.0)
    loss = lambda params: (spec.effective_W(params) - target).square().sum()
    target = spec.effective_W(spec.init(torch.Generator().manual_seed(1)))
    params = {"W": torch.full((3, 3), size)}
    start = loss(params)
    for _ in range(200):
        slope = torch.func.grad(loss)(params)["W"]
        assert torch.isfinite(slope).all()
        params = {"W": params["W"] - 0.05 * slope / slope.abs().amax().clamp(min=1e-3)}
    assert loss(params) < 0.2 * start
