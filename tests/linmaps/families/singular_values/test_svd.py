"""Soft decompositions: the penalty is the squared distance from orthogonality and leads there; learned bounds stay ordered."""

import pytest
import torch
from torch.func import grad

import linmaps
from tests.linmaps.zoo import generator, minimize, random_params

D = torch.float64


def test_penalty_by_hand_and_its_smoothness_at_zero():
    spec = linmaps.SVD(3, 2, sigma_min=1.0)
    U = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=D)
    V = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=D)
    assert spec.reg_error({"U": U, "V": V}) == 9 + (1 + 1 + 1)  # (4 - 1)^2; V V' - I = [[1, 1], [1, 0]]
    start = random_params(spec, 0)
    slopes = grad(spec.reg_error)(start)
    assert max(t.abs().max() for t in slopes.values()) < 1e-12, "no noise where the penalty is zero"


@pytest.mark.parametrize("weight", [1.0, 10.0, 100.0])
def test_a_heavier_penalty_does_not_hurt_training(weight):
    """Towards a target of spectral radius above the bounds; the singular values end near them."""
    target = 1.5 * torch.randn(8, 8, generator=generator(0), dtype=D) / 8**0.5
    spec = linmaps.SVD(8)
    loss = lambda p: (spec.effective_W(p) - target).square().sum() + weight * spec.reg_error(p)
    params = minimize(loss, random_params(spec, 1), 0.01, 1500)
    s = spec.singular_values(params)
    assert s.max() < 1 + 1.5 / weight
    assert (spec.effective_W(params) - target).square().sum() < 12


def test_learned_bounds_stay_positive_and_ordered():
    spec = linmaps.SVDLearnBounds(5, sigma_min=0.1, sigma_max=1)  # an int is as good
    loss = lambda p: (spec.bounds(p)[0] - 30).square() + (spec.bounds(p)[1] + 5).square()
    params = minimize(loss, random_params(spec, 0), 0.1, 1000)
    low, high = spec.bounds(params)
    assert 0 < low < high
    for value in (-50.0, 50.0):
        extreme = {k: torch.full_like(t, value) for k, t in params.items()}
        low, high = spec.bounds(extreme)
        assert 0 < low <= high
        assert torch.isfinite(spec.effective_W(extreme)).all()


def test_singular_values_are_within_learned_bounds():
    spec = linmaps.SVDLearnBounds(4, 6, sigma_min=0.2, sigma_max=3.0)
    params = random_params(spec, 0)
    low, high = spec.bounds(params)
    s = spec.singular_values(params)
    assert (s >= low).all()
    assert (s <= high).all()


def test_symmetric_svd_is_symmetric_at_any_params():
    spec = linmaps.SymmetricSVD(6)
    params = {
        "Q": torch.randn(6, 6, generator=generator(0), dtype=D),
        "p": torch.randn(6, generator=generator(1), dtype=D),
    }
    W = spec.effective_W(params)
    assert torch.equal(W, W.T)
    fixed = minimize(spec.reg_error, params, 0.01, 3000)
    lam = spec.eig(fixed)
    assert spec.reg_error(fixed) < 1e-12
    assert lam.min() >= 0.1 - 1e-6
    assert lam.max() <= 1 + 1e-6


def test_learned_bounds_need_a_positive_start():
    with pytest.raises(ValueError, match=r"sigma_min: got 0.0, expected a number between 0 and sigma_max=1.0"):
        linmaps.SVDLearnBounds(3, sigma_min=0.0)
