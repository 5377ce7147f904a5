"""Odd calls of every public name: refused in our own words, or sane; never raw, never NaN, never the end of the process."""

import functools
import importlib
import inspect

import pytest

from tests import odd
from tests.test_transforms import PACKAGES

EVERY = 40  # the whole table: python -m tests.odd
OPEN = {
    "linmaps": 6,
    "linmaps.trees": 7,
    "linmaps.factorized": 3,
    "fisher": 10,
    "fisher.recipes": 1,
    "growth": 16,
}  # of this sample


def exempt() -> dict[str, str]:
    return {n: r for part in odd.PARTS for n, r in importlib.import_module(f"tests.{part}.odd").EXEMPT.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_row(package):
    names = {call.name.split("/")[0] for call in odd.calls()} | set(exempt())
    module = importlib.import_module(package)
    public = [n for n in module.__all__ if not inspect.ismodule(getattr(module, n))]
    missing = [n for n in public if not any(f"{n_}.".startswith(f"{package}.{n}.") for n_ in names)]
    assert not missing, f"{package}: no odd calls of {missing}"


def test_valid_calls_run():
    for call in odd.calls():
        call.fn(**call.args)


@functools.cache
def sample():
    return odd.outcomes(EVERY)


def faults(outcomes=None):
    found = [r for r in sample() if odd.bad(*r)]
    return [r for r in found if outcomes is None or r[1] in outcomes or any(w in r[2] for w in outcomes)]


def told(rows):
    return "\n".join(f"{o.id}: {outcome}: {words}" for o, outcome, words in rows)


@pytest.mark.slow
def test_no_odd_call_ends_the_process_or_takes_its_time_or_memory():
    rows = faults(("crash", "slow", "huge"))
    assert not rows, told(rows)


@pytest.mark.slow
def test_no_odd_call_gives_numbers_that_are_none():
    rows = faults(("NaN or infinity",))
    assert not rows, told(rows)


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_odd_calls_are_refused_or_sane(package):
    """But for those that are still open, whose number may only fall."""
    rows = [r for r in faults() if r[0].call.package == package]
    assert len(rows) <= OPEN[package], f"{len(rows)} faults, {OPEN[package]} are known\n{told(rows)}"
