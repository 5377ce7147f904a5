"""Injective maps: the smallest singular value has a bound, errors."""

import pytest

import linmaps
from tests.linmaps.zoo import descend


def test_injective_after_a_thousand_adam_steps():
    spec = linmaps.TrivialNullSpace(5, 7)
    params = descend(spec, lambda W: W.square().sum(), 0, 1000, 0.1)
    s = spec.singular_values(params)
    assert s.min() >= 0.1 - 1e-12
    assert s.max() < 0.2, "pushed to the bound"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: linmaps.TrivialNullSpace(4, 3),
            r"out_features: got 3, expected at least in_features=4; use Transpose",
        ),
        (lambda: linmaps.TrivialNullSpace(3, epsilon=0), r"epsilon: got 0, expected a finite number > 0"),
    ],
)
def test_errors(make, text):
    with pytest.raises(ValueError, match=text):
        make()
