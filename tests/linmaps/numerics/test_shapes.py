"""Balanced shapes: the right product and number of modes, and the least sum of all."""

import itertools
import math

import pytest

from linmaps.factorized import tensorized_shape


@pytest.mark.parametrize("n", [1, 2, 7, 12, 30, 64, 100, 210])
@pytest.mark.parametrize("n_modes", [1, 2, 3, 4])
def test_least_sum_by_search(n, n_modes):
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    every = [s for s in itertools.combinations_with_replacement(divisors, n_modes) if math.prod(s) == n]
    got = tensorized_shape(n, n_modes)
    assert list(got) == sorted(got)
    assert sum(got) == min(map(sum, every))
    assert got in every


@pytest.mark.parametrize(
    ("n", "want"),
    [
        (256, (4, 8, 8)),
        (4096, (16, 16, 16)),
        (768, (8, 8, 12)),
        (3072, (12, 16, 16)),
        (50257, (1, 29, 1733)),
        (17, (1, 1, 17)),
    ],
)
def test_sizes_of_common_layers(n, want):
    assert tensorized_shape(n, 3) == want


def test_many_modes():
    assert tensorized_shape(2**20, 20) == (2,) * 20
    assert tensorized_shape(2**20, 24) == (1,) * 4 + (2,) * 20


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0, 2), ValueError, "n is 0, expected a positive int"),
        ((4, 0), ValueError, "n_modes is 0, expected a positive int"),
        ((4.0, 2), TypeError, r"n is 4.0, expected a positive int; convert with int"),
        ((4, True), TypeError, "n_modes is True, expected a positive int"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error, match=text):
        tensorized_shape(*arguments)
