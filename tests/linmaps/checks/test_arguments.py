"""Laws of the checks of arguments: what is taken is taken silently, what is not is named with what was expected."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linmaps import checks

NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.fractions(-3, 3),
)


@given(NUMBERS, st.integers(-3, 3), st.integers(0, 4), st.booleans(), st.booleans(), st.booleans())
def test_a_number_is_taken_iff_it_is_finite_and_between_the_ends(value, low, width, above, below, tensor):
    high = low + width
    fine = (
        math.isfinite(value) and (value > low if above else value >= low) and (value < high if below else value <= high)
    )
    given = torch.tensor(float(value), dtype=torch.float64) if tensor else value
    check = lambda: checks.number(given, "regul", low=low, high=high, above=above, below=below, cure="take another")
    if fine:
        assert check() is None
    else:
        with pytest.raises(ValueError, match=r"^regul: got .*, expected a finite number .*; take another$"):
            check()


@pytest.mark.parametrize("value", [True, "1", None, [1.0], 1j, torch.tensor(True), torch.tensor(1j)])
def test_what_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"^regul: got "):
        checks.number(value, "regul")


def test_every_member_of_an_ensemble_is_looked_at():
    run = torch.func.vmap(lambda t: (checks.number(t, "regul", low=0), t)[1])
    run(torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"regul: got -1\.0, expected a finite number >= 0"):
        run(torch.tensor([0.0, -1.0]))


@given(st.one_of(st.integers(-5, 5), st.booleans(), st.floats(-2, 2), st.just(Fraction(2))), st.integers(-2, 2))
def test_a_size_is_an_int_from_low_to_high(value, low):
    if type(value) is not int:
        with pytest.raises(TypeError, match=r"^k: got "):
            checks.size(value, "k", low, 3)
    elif not low <= value <= 3:
        with pytest.raises(ValueError, match=f"^k: got {value}, expected an int from {low} to 3$"):
            checks.size(value, "k", low, 3)
    else:
        checks.size(value, "k", low, 3)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("mine", [*DTYPES, torch.int64])
@pytest.mark.parametrize("theirs", DTYPES[:4])
def test_trees_are_alike_in_the_dtypes_that_count(mine, theirs, strict):
    tree, like = {"a": [torch.ones(1, dtype=mine)]}, torch.ones(2, dtype=theirs)
    integer = not (mine.is_floating_point or mine.is_complex)
    fine = mine == theirs if strict else integer or mine.to_real() == theirs
    if fine:
        checks.alike(tree, "v", like, "params", strict=strict)
    else:
        with pytest.raises(TypeError, match=r"^v: a\.0: got torch\.\w+, expected torch\.\w+ as params; convert one"):
            checks.alike(tree, "v", like, "params", strict=strict)


def test_devices_are_named():
    with pytest.raises(TypeError, match=r"v: got meta, expected cpu as params; move one with \.to"):
        checks.alike(torch.ones(1, device="meta"), "v", torch.ones(1), "params")


def test_values_are_those_under_every_transform():
    seen = []
    torch.func.vmap(torch.func.grad(lambda t: (seen.append(checks.values(t)), t.sum())[1]))(torch.eye(2))
    assert torch.equal(seen[0], torch.eye(2))
    assert checks.values(torch.ones(1, device="meta")) is None
