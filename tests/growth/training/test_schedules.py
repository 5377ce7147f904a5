"""Schedules end exactly at their target; counts by gain are those of the definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

import growth

WIDTHS = st.tuples(st.integers(1, 300), st.integers(0, 300)).map(lambda t: (t[0], t[0] + t[1]))


@given(WIDTHS, st.integers(1, 40))
def test_plans_of_given_length_end_at_the_target(widths, steps):
    initial, target = widths
    even, constant = (plan(initial, target, steps) for plan in (growth.fixed_proportional, growth.geometric))
    for plan in (even, constant):
        assert len(plan) == steps
        assert initial + sum(plan) == target
        assert min(plan) >= 0
    assert max(even) - min(even) <= 1
    width = initial
    for i, units in enumerate(constant, 1):
        width += units
        assert abs(width - initial * (target / initial) ** (i / steps)) <= 0.5 + 1e-9


@given(WIDTHS, st.integers(1, 40))
def test_steps_of_at_most_k_units(widths, k):
    initial, target = widths
    plan, width = growth.in_steps_of(initial, target, k), initial
    for units in plan:
        assert units == growth.to_target(width, target, k) > 0
        width += units
    assert width == target
    assert len(plan) == -(-(target - initial) // k)


def test_fixed_proportional_from_width_zero():
    assert growth.fixed_proportional(0, 5, 2) == [2, 3]


@given(st.integers(0, 10**6), st.integers(0, 8), st.floats(0, 1), st.floats(0, 1), st.integers(0, 8))
def test_by_gain_counts_gains_above_the_threshold(seed, k, least, relative, most):
    gains = torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    want = sum(g > max(least, relative * max(gains.tolist())) for g in gains.tolist()) if k else 0
    assert growth.by_gain(gains, least=least, relative=relative, most=most) == min(want, most)
    assert growth.by_gain(gains, least=least, relative=relative) == want


def test_by_gain_over_an_ensemble():
    gains = torch.tensor([[3.0, 1.0], [0.0, -1.0]])
    assert vmap(growth.by_gain)(gains).tolist() == [2, 0]


def test_shuffles_are_streams_of_permutations():
    first, last = growth.shuffles(10, [2, 1], 5, generator=torch.Generator().manual_seed(0))
    assert sorted(first[:2].flatten().tolist()) == sorted(first[2:].flatten().tolist()) == list(range(10))
    assert sorted(last.flatten().tolist()) == list(range(10))
    again = growth.shuffles(10, [2, 1], 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first, again[0])
    assert not torch.equal(first[:2], first[2:])
    assert growth.shuffles(10, [0], 5, generator=torch.Generator())[0].shape == (0, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: growth.fixed_proportional(5, 4, 1), "target: got 4, expected an int from 5"),
        (lambda: growth.fixed_proportional(2, 4, 0), "steps: got 0"),
        (lambda: growth.geometric(0, 4, 2), "initial: got 0"),
        (lambda: growth.in_steps_of(0, 4, 0), "k: got 0"),
        (lambda: growth.to_target(0, 4, -1), "most: got -1"),
        (lambda: growth.by_gain(torch.ones(2, 2)), "gains: got shape"),
        (lambda: growth.by_gain(torch.ones(2), relative=2.0), "relative: got 2"),
        (lambda: growth.shuffles(4, [1], 5, generator=torch.Generator()), "batch: got 5"),
    ],
)
def test_errors_say_what_was_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()
