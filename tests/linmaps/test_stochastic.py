"""Stochastic maps: distributions stay distributions; no redundant logit."""

import math

import numpy as np
import torch

import linmaps
from tests.linmaps.zoo import random_params


def test_against_a_softmax_written_out():
    spec = linmaps.RightStochastic(2, 3)
    L = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=torch.float64)
    want = [[math.exp(v) / (1 + math.exp(a) + math.exp(b)) for v in (0.0, a, b)] for a, b in L.tolist()]
    assert np.allclose(spec.effective_W({"logits": L}).numpy(), want, atol=1e-15)


def test_a_distribution_stays_one():
    spec = linmaps.RightStochastic(5, 4)
    x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0], dtype=torch.float64)
    y = spec.apply(random_params(spec, 0), x)
    assert (y > 0).all()
    assert abs(y.sum() - 1) < 1e-15


def test_as_many_params_as_dimensions():
    assert linmaps.RightStochastic(5, 4).n_params == 5 * 3
    assert linmaps.RightStochastic(5, 1).n_params == 0
    assert torch.equal(linmaps.RightStochastic(2, 1).effective_W({"logits": torch.zeros(2, 0)}), torch.ones(2, 1))


def test_all_outputs_are_alike_at_init():
    spec = linmaps.RightStochastic(20000, 4)
    mean = spec.effective_W(random_params(spec, 0)).mean(0)
    assert (mean - 0.25).abs().max() < 0.01


def test_violation_sees_sums_and_signs():
    spec = linmaps.RightStochastic(2)
    assert spec.violation(torch.tensor([[0.5, 0.5], [1.0, 0.0]])) == 0
    assert abs(spec.violation(torch.tensor([[3.0, 1.0], [1.0, 0.0]])) - 3) < 1e-6
    assert abs(spec.violation(torch.tensor([[1.5, -0.5], [1.0, 0.0]])) - 0.5) < 1e-6
