"""The guide resolves: each name on our side, each option it mentions."""

import inspect
import re

import pytest

import linmaps

ROWS = linmaps.interop.coming_from("slim").rows


def test_every_class_of_theirs_has_a_row():
    ours = {theirs.split("(")[0] for theirs, _ in ROWS}
    assert len(ours) >= 35
    assert len([t for t in ours if t.endswith("Linear") or t in ("LassoLinearRELU", "SVDLinearLearnBounds")]) == 29


@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[r[0] for r in ROWS])
def test_row_resolves(theirs, ours):
    calls = re.findall(r"(\w+)\(([^)]*)\)", ours) or [(re.match(r"\w+", ours).group(), "")]
    for name, arguments in calls:
        thing = getattr(linmaps, name)
        options = inspect.signature(thing).parameters if callable(thing) else {}
        for option in re.findall(r"(\w+)=", arguments):
            assert option in options, f"{name} has no option {option}"
        if arguments and "=" not in arguments:
            assert list(options)[: arguments.count(",") + 1] == [a.strip() for a in arguments.split(",")]
    for word in re.findall(r"(?:its|with) (bounds|argmax|project)\b", ours):
        assert hasattr(getattr(linmaps, calls[0][0]), word)
