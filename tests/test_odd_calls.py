"""Odd calls of every public name: refused in our own words, or sane; never raw, never NaN, never the end of the process."""

import importlib

import pytest

from tests import odd
from tests.test_transforms import PACKAGES


def exempt() -> dict[str, str]:
    return {n: r for part in odd.PARTS for n, r in importlib.import_module(f"tests.{part}.odd").EXEMPT.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_row(package):
    names = {call.name.split("/")[0] for call in odd.calls()} | set(exempt())
    module = importlib.import_module(package)
    missing = [n for n in module.__all__ if not any(f"{n_}.".startswith(f"{package}.{n}.") for n_ in names)]
    assert not missing, f"{package}: no odd calls of {missing}"


def test_valid_calls_run():
    for call in odd.calls():
        call.fn(**call.args)
