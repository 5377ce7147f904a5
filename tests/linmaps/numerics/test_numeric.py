"""Dtypes to work in, draws, norms."""

import torch

from linmaps.checks.precision import HALF
from linmaps.numerics.draws import normal, uniform
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.numeric import frobenius
from tests.linmaps.zoo import generator


def test_half_precision_is_factorized_in_single():
    assert {working_dtype(d) for d in HALF} == {torch.float32}
    assert working_dtype(torch.float64) == torch.float64


def test_draws_follow_the_generator_and_the_bound():
    draws = uniform(generator(0), (1000,), 0.3, torch.float64)
    assert draws.min() < -0.29
    assert 0.29 < draws.max() <= 0.3
    assert abs(draws.mean()) < 0.03
    assert torch.equal(draws, uniform(generator(0), (1000,), 0.3, torch.float64))
    assert normal(generator(0), (2, 3), torch.float32).dtype == torch.float32


def test_norm_of_several_residuals():
    assert frobenius(torch.tensor([3.0]), torch.tensor(4.0)) == 5
    assert torch.equal(torch.func.grad(frobenius)(torch.zeros(2)), torch.zeros(2))
