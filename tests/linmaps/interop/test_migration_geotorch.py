"""The guide resolves: each name on our side, each argument and option it mentions; each of geotorch's functions has a row."""

import inspect
import re

import pytest

import linmaps
from tests.linmaps import geometry_peer

ROWS = linmaps.interop.coming_from("geotorch").rows


def found(path):
    thing = linmaps
    for name in path.split("."):
        thing = getattr(thing, name)
    return thing


@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[r[0] for r in ROWS])
def test_row_resolves(theirs, ours):
    calls = re.findall(r"([\w.]+)\(([^)]*)\)", ours)
    assert calls, "a row names something of ours"
    for name, arguments in calls:
        options = inspect.signature(found(name)).parameters
        for argument in filter(None, (a.strip() for a in arguments.split(","))):
            assert argument.removesuffix("=") in options, f"{name} has no argument {argument}"


@pytest.mark.skipif(geometry_peer.geotorch() is None, reason=geometry_peer.ABSENT)
def test_every_public_function_of_theirs_has_a_row():
    left = " ".join(theirs for theirs, _ in ROWS)
    constraints = geometry_peer.geotorch().constraints
    functions = [n for n, f in vars(constraints).items() if inspect.isfunction(f) and not n.startswith("_")]
    assert len(functions) > 12
    assert not [name for name in functions if not re.search(rf"\b{name}\b", left)]


def test_torchs_parametrizations_have_rows():
    left = " ".join(theirs for theirs, _ in ROWS)
    assert not [n for n in ("orthogonal", "weight_norm", "spectral_norm") if f"parametrizations.{n}" not in left]
