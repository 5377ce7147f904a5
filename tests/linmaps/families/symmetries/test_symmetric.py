"""Symmetric maps against a matrix written entry by entry."""

import numpy as np
import pytest
import torch

import linmaps
from linmaps.numerics.packing import unpack_upper
from tests.linmaps.zoo import random_params


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("diagonal", [0, 1])
def test_unpacking_is_row_by_row(n, diagonal):
    size = n * (n + 1) // 2 - diagonal * n
    want, count = np.zeros((n, n)), 0
    for i in range(n):
        for j in range(i + diagonal, n):
            count += 1
            want[i, j] = count
    assert count == size
    got = unpack_upper(torch.arange(1.0, size + 1), n, diagonal=diagonal)
    assert np.array_equal(got.numpy(), want)


def test_symmetric_bit_by_bit_and_injective():
    spec = linmaps.Symmetric(7)
    params = random_params(spec, 0)
    W = spec.effective_W(params)
    assert torch.equal(W, W.T)
    i, j = np.triu_indices(7)
    assert np.array_equal(W.numpy()[i, j], params["upper"].numpy())


def test_spectrum_of_negative_eigenvalues():
    spec = linmaps.Symmetric(2)
    params = {"upper": torch.tensor([-3.0, 0.0, 2.0])}
    assert spec.eig(params).tolist() == [-3.0, 2.0]
    assert spec.singular_values(params).tolist() == [3.0, 2.0]


def test_violation_is_the_norm_of_the_skew_part():
    W = torch.tensor([[1.0, 5.0], [2.0, 1.0]])
    assert linmaps.Symmetric(2).violation(W).item() == pytest.approx(np.sqrt(18))
