"""Gram maps: lower bounds, rank, the init's scale with eps, errors."""

import pytest
import torch

import linmaps
from tests.linmaps.zoo import generator, random_params

D = torch.float64


def test_psd_is_symmetric_bit_by_bit_and_bounded_below():
    spec = linmaps.PSD(40, eps=0.25)
    params = random_params(spec, 0)
    W = spec.effective_W(params)
    assert torch.equal(W, W.T)
    assert spec.eig(params).min() >= 0.25 - 1e-12


def test_rank():
    spec = linmaps.PSD(6, rank=2, eps=0.5)
    values = spec.eig(random_params(spec, 0))
    assert torch.allclose(values[:4], torch.full((4,), 0.5, dtype=D))
    assert values[4] > 0.5


def test_apply_of_few_rows_goes_through_the_rank():
    spec = linmaps.PSD(64, rank=1)
    params, x = random_params(spec, 0), torch.randn(2, 64, generator=generator(1), dtype=D)
    with torch.profiler.profile() as profile:
        spec.apply(params, x)
    assert {"aten::triu"} & {e.key for e in profile.key_averages()} == set(), "W was formed"


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
def test_scale_at_init_with_eps(eps):
    spec = linmaps.PSD(40, eps=eps)
    got = torch.stack([spec.effective_W(random_params(spec, s)).square().sum(0).mean() for s in range(30)]).mean()
    assert got.item() == pytest.approx(1 / 3, rel=0.05)


def test_nearest_psd():
    W = torch.diag(torch.tensor([3.0, -2.0, 1.0], dtype=D))
    params, distance = linmaps.PSD(3, eps=0.5).from_matrix(W)
    assert torch.allclose(
        linmaps.PSD(3, eps=0.5).effective_W(params), torch.diag(torch.tensor([3.0, 0.5, 1.0], dtype=D)), atol=1e-12
    )
    assert distance.item() == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: linmaps.PSD(3, rank=4), r"PSD.rank: got 4, expected an int from 1 to 3, or None"),
        (lambda: linmaps.PSD(3, eps=-1), r"PSD.eps: got -1, expected a finite number >= 0"),
    ],
)
def test_errors(make, text):
    with pytest.raises(ValueError, match=text):
        make()
