"""Perron-Frobenius maps: the root, its vector, reach, errors."""

import pytest
import torch

import linmaps
from tests.linmaps.zoo import descend, generator, random_params


def test_exact_root_and_vector():
    spec = linmaps.PerronFrobenius(5, exact=True)
    params = random_params(spec, 0) | {"d": torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)}
    values, vectors = spec.eig(params, vectors=True)
    top = values.abs().argmax()
    root = 0.8 + 0.2 * params["r"].sigmoid()
    assert abs(values[top].real - root) < 1e-13
    assert values[top].imag.abs() < 1e-13
    d = torch.cat([torch.zeros(1, dtype=torch.float64), 20 * torch.tanh(params["d"] / 20)]).exp()
    v = vectors[:, top].real
    assert torch.allclose(v / v[0], d, rtol=1e-11)
    W = spec.effective_W(params)
    assert W.sum(1).max() > 1.0, "row sums are free"


def test_dominant_eigenvalue_lies_between_the_row_sums():
    spec = linmaps.PerronFrobenius(6, sigma_min=0.5, sigma_max=0.9)
    for seed in range(10):
        params = {k: 10 * t for k, t in random_params(spec, seed).items()}
        rho = spec.eig(params).abs().max()
        assert 0.5 - 1e-12 <= rho <= 0.9 + 1e-12


@pytest.mark.parametrize("exact", [False, True])
def test_root_after_a_thousand_adam_steps(exact):
    spec = linmaps.PerronFrobenius(6, exact=exact)
    target = 3 * torch.randn(6, 6, generator=generator(0), dtype=torch.float64)
    params = descend(spec, lambda W: (W - target).square().sum(), 0, 1000, 0.1)
    rho = spec.eig(params).abs().max()
    assert 0.8 - 1e-10 <= rho <= 1 + 1e-10
    assert (spec.effective_W(params) >= 0).all()


def test_equal_bounds_have_no_leaf_for_the_root():
    assert linmaps.PerronFrobenius(4, sigma_min=1.0).shapes() == {"logits": (4, 3)}
    assert linmaps.PerronFrobenius(4, sigma_min=1.0, exact=True).shapes() == {"logits": (4, 3), "d": (3,)}


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((3, 4), {"exact": True}, r"exact: got True, expected False, since a rectangular map has no eigenvalues"),
        ((3,), {"sigma_min": 2.0}, r"sigma_min: got 2.0, expected at most sigma_max=1.0; exchange the bounds"),
        ((3,), {"sigma_min": -1.0}, r"sigma_min: got -1.0, expected a finite number >= 0"),
    ],
)
def test_errors(arguments, options, text):
    with pytest.raises(ValueError, match=text):
        linmaps.PerronFrobenius(*arguments, **options)
