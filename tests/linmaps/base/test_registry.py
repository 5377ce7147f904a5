"""The registry: read-only, ordered, strict about names, and a table of promises."""

import re
from typing import ClassVar

import pytest

import linmaps
from linmaps.base.registry import register
from linmaps.composed.composite import Composite


def test_names_and_classes():
    assert list(linmaps.maps) == sorted(linmaps.maps)
    assert len(linmaps.maps) == len(set(linmaps.maps.values()))
    for name, cls in linmaps.maps.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert cls.name == name
        assert issubclass(cls, linmaps.Map)
        assert cls.promise


def test_every_public_map_is_registered():
    public = {v for v in vars(linmaps).values() if isinstance(v, type) and issubclass(v, linmaps.Map)}
    composites = {cls for cls in public if issubclass(cls, Composite)}
    assert public - composites - {linmaps.Map} == set(linmaps.maps.values())


def test_table_has_a_row_for_each_map():
    table = repr(linmaps.maps).splitlines()
    assert len(table) == len(linmaps.maps) + 1
    for line, (name, cls) in zip(table[1:], linmaps.maps.items()):
        assert line.startswith(name)
        assert line.endswith(cls.promise)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        KeyError, match=r"no map is called 'ortogonal'; did you mean 'orthogonal'[?] expected one of \['block_d"
    ):
        linmaps.maps["ortogonal"]
    assert "ortogonal" not in linmaps.maps
    assert linmaps.maps.get("ortogonal") is None


def test_read_only():
    with pytest.raises(TypeError, match="does not support item assignment"):
        linmaps.maps["linear"] = linmaps.Symmetric
    with pytest.raises(TypeError, match="does not support item deletion"):
        del linmaps.maps["linear"]


@pytest.mark.parametrize(("taken", "text"), [("linear", "is the name of Linear"), ("Odd Name", "snake_case")])
def test_names_that_cannot_be_registered(taken, text):
    class Other(linmaps.Linear):
        name: ClassVar[str] = taken

    with pytest.raises(ValueError, match=text):
        register(Other)
    assert linmaps.maps["linear"] is linmaps.Linear
