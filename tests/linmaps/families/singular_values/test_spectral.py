"""Spectral maps: singular values exactly where the parameters put them."""

import numpy as np
import pytest
import torch

from linmaps import Spectral
from tests.linmaps.zoo import generator, random_params


@pytest.mark.parametrize("sizes", [(5, 3), (3, 5), (4, 4)])
def test_singular_values_are_the_sigmoid_of_p(sizes):
    spec = Spectral(*sizes, sigma_min=0.2, sigma_max=3.0)
    params = random_params(spec, 0)
    want = np.sort(0.2 + 2.8 / (1 + np.exp(-params["p"].numpy())))[::-1]
    assert np.abs(np.linalg.svd(spec.effective_W(params).numpy(), compute_uv=False) - want).max() < 1e-14


@pytest.mark.parametrize("value", [-1000.0, -50.0, 0.0, 50.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_are_met_but_not_passed(value, dtype):
    spec = Spectral(4, 3, sigma_min=0.3, sigma_max=0.7)
    params = {k: torch.full_like(t, value) for k, t in random_params(spec, 0, dtype).items()}
    s = np.linalg.svd(spec.effective_W(params).double().numpy(), compute_uv=False)
    eps = torch.finfo(dtype).eps
    assert s.min() >= 0.3 - 8 * eps
    assert s.max() <= 0.7 + 8 * eps


def test_eigenvalues_of_square_maps_lie_in_the_ring():
    spec = Spectral(6, sigma_min=0.4, sigma_max=0.9)
    for seed in range(20):
        modulus = spec.eig(random_params(spec, seed)).abs()
        assert modulus.min() >= 0.4
        assert modulus.max() <= 0.9


def test_singular_values_are_diverse_at_init():
    spec = Spectral(200)
    s = random_params(spec, 0)["p"].sigmoid()
    assert s.min() >= 0.05
    assert s.max() <= 0.95
    assert s.std().item() == pytest.approx(0.9 / np.sqrt(12), rel=0.1)


def test_equal_bounds_leave_no_dead_leaf():
    spec = Spectral(4, 2, sigma_min=2.0, sigma_max=2.0)
    assert set(spec.shapes()) == {"U", "V"}
    W = spec.effective_W(random_params(spec, 0))
    assert torch.allclose(W.T @ W, 4 * torch.eye(2, dtype=W.dtype), atol=1e-12)


def test_few_reflectors_keep_the_rank():
    spec = Spectral(16, n_U_reflectors=2, n_V_reflectors=3)
    params = random_params(spec, 0)
    assert params["U"].shape == (2, 16)
    assert params["V"].shape == (3, 16)
    assert torch.linalg.matrix_rank(spec.effective_W(params)) == 16


def test_violation_is_the_distance_to_the_set():
    rng = np.random.default_rng(0)
    spec = Spectral(3, sigma_min=0.5, sigma_max=1.0, det=1)
    U, V = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2))
    V[:, 0] *= np.linalg.det(U) * np.linalg.det(V)
    for s, want in (([0.9, 0.7, 0.6], 0), ([4.0, 0.7, 0.1], np.hypot(3, 0.4)), ([0.9, 0.7, -0.6], 1.1)):
        assert abs(spec.violation(torch.tensor(U * s @ V.T)) - want) < 1e-12
    negative = torch.tensor(U * [0.9, 0.7, -0.6] @ V.T)
    for det in (-1, None):
        assert abs(Spectral(3, sigma_min=0.5, det=det).violation(negative)) < 1e-12


def test_apply_is_the_same_for_few_and_for_many_rows():
    spec = Spectral(32, 20)
    params, x = random_params(spec, 0), torch.randn(500, 32, generator=generator(0), dtype=torch.float64)
    few = torch.cat([spec.apply(params, row) for row in x.split(1)])
    assert torch.allclose(few, spec.apply(params, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sigma_min": 2.0}, ValueError, r"Spectral.sigma_min: got 2.0, expected at most sigma_max=1.0"),
        ({"sigma_min": -0.1}, ValueError, r"sigma_min: got -0.1, expected a finite number >= 0"),
        ({"sigma_max": float("inf")}, ValueError, r"sigma_max: got inf, expected a finite number"),
        ({"sigma_min": 0.0, "sigma_max": 0.0}, ValueError, r"sigma_max: got 0.0, expected a positive number"),
        ({"sigma_max": "1"}, TypeError, r"sigma_max: got '1', expected a number"),
        ({"n_U_reflectors": 6}, ValueError, r"n_U_reflectors: got 6, expected an int from 1 to 5"),
        ({"n_V_reflectors": 4}, ValueError, r"n_V_reflectors: got 4, expected an int from 1 to 3"),
        ({"det": -1}, ValueError, r"det: got -1, expected None"),
    ],
)
def test_options_that_contradict(options, error, text):
    with pytest.raises(error, match=text):
        Spectral(5, 3, **options)
