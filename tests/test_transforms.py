"""The transform table: every public name, every law.  A public name without a row fails."""

import importlib
import inspect

import pytest

from tests.laws import LAWS, Case, Exempt

PACKAGES = [
    "linmaps",
    "linmaps.trees",
    "linmaps.factorized",
    "fisher",
    "fisher.recipes",
    "fisher.distributed",
    "growth",
]


def table() -> dict[str, Case | Exempt]:
    rows: dict[str, Case | Exempt] = {}
    for package in ("linmaps", "linmaps.factorized", "fisher", "growth"):
        rows |= importlib.import_module(f"tests.{package}.cases").CASES
    return rows


TABLE = table()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_row(package):
    module = importlib.import_module(package)
    names = [n for n in module.__all__ if not inspect.ismodule(getattr(module, n))]
    missing = [n for n in names if not any(row.split("/")[0] == f"{package}.{n}" for row in TABLE)]
    assert not missing, f"{package}: no row in the transform table for {missing}"


def test_rows_name_public_things():
    for row in TABLE:
        package, _, name = row.split("/")[0].rpartition(".")
        assert name in importlib.import_module(package).__all__, f"{row}: not public"


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", [n for n, c in TABLE.items() if isinstance(c, Case)])
def test_law(name, law):
    case = TABLE[name]
    if law in case.skip:
        assert case.skip[law], f"{name}: a law left out needs its reason"
        return
    LAWS[law](case)
