"""Skew maps: closed-form spectra, exact decay in both kinds of time, errors."""

import pytest
import torch

import linmaps
from tests.linmaps.zoo import descend, generator, random_params

D = torch.float64


def test_skew_bit_by_bit_and_imaginary():
    spec = linmaps.SkewSymmetric(7)
    params = random_params(spec, 0)
    W = spec.effective_W(params)
    assert torch.equal(W, -W.T)
    values = spec.eig(params)
    assert torch.equal(values.real, torch.zeros(7, dtype=D))
    assert (values.imag.diff() >= 0).all()
    _, V = spec.eig(params, vectors=True)
    assert torch.allclose(V.mH @ V, torch.eye(7, dtype=V.dtype), atol=1e-13)


def test_continuous_time_decays_at_the_rate_gamma():
    spec = linmaps.DampedSkewSymmetric(5)
    params = random_params(spec, 0) | {"gamma": torch.tensor(0.8, dtype=D)}
    gamma = 0.1 + 0.4 * torch.tensor(0.8, dtype=D).sigmoid()
    x = torch.randn(5, generator=generator(1), dtype=D)
    for t in (0.5, 3.0):
        later = x @ torch.linalg.matrix_exp(t * spec.effective_W(params))
        assert torch.allclose(later.norm(), x.norm() * torch.exp(-gamma * t), rtol=1e-12)
    assert torch.allclose(spec.eig(params).real, -gamma.expand(5), rtol=0, atol=1e-14)


def test_discrete_time_shrinks_by_gamma_at_each_step():
    spec = linmaps.DampedSkewSymmetric(5, time="discrete", sigma_max=0.9)
    params = random_params(spec, 0)
    x = torch.randn(5, generator=generator(1), dtype=D)
    assert torch.allclose(spec.apply(params, x).norm(), 0.5 * x.norm(), rtol=1e-13)
    assert torch.allclose(spec.eig(params).abs(), torch.full((5,), 0.5, dtype=D), rtol=1e-13)
    assert torch.allclose(spec.logabsdet(params), 5 * torch.tensor(0.5, dtype=D).log())


@pytest.mark.parametrize("time", ["continuous", "discrete"])
def test_gamma_stays_in_its_bounds(time):
    spec = linmaps.DampedSkewSymmetric(4, time=time)
    aim = 3 * torch.eye(4, dtype=D) * (-1 if time == "continuous" else 1)
    params = descend(spec, lambda W: (W - aim).square().sum(), 0, 1000, 0.1)
    values = spec.eig(params)
    rate = values.abs() if time == "discrete" else -values.real
    assert (rate <= 0.5 + 1e-12).all()
    assert (rate >= 0.45).all(), "pushed to the bound"


def test_metadata_of_time():
    assert linmaps.DampedSkewSymmetric(2).time == "continuous"
    assert linmaps.DampedSkewSymmetric(2, time="discrete").time == "discrete"


def test_errors():
    with pytest.raises(ValueError, match=r"time: got 'both', expected 'continuous' or 'discrete'"):
        linmaps.DampedSkewSymmetric(3, time="both")
    with pytest.raises(
        ValueError, match=r"SkewSymmetric.out_features: got 4, expected in_features=3, since this map is sq"
    ):
        linmaps.SkewSymmetric(3, 4)
