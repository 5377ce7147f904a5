"""What slices of the modes of a tensor mean, one for each, and where a new mode comes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from linmaps.checks import require, size


def places_of(index: Sequence[Any], sizes: Mapping[str, int], title: str) -> list[range]:
    """The places that each slice takes of its mode, of the sizes by name, as Python's sequences take them.

    TypeError for what is no slice of ints, an int included, since it would leave no mode; ValueError for another number of
    slices, a step of 0, or a slice that takes nothing.

    >>> places_of((slice(1, None), slice(None, None, -2)), {"a": 3, "b": 5}, "slice")
    [range(1, 3), range(4, -1, -2)]
    """
    if len(index) != len(sizes):
        modes = ", ".join(f"{name} of {n}" for name, n in sizes.items())
        raise ValueError(f"{title}: got {len(index)} slices, expected {len(sizes)}, for {modes}; slice(None) takes all")
    return [_places(given, n, f"{title}: of {name}") for given, (name, n) in zip(index, sizes.items())]


def _places(given: Any, n: int, name: str) -> range:
    cure = "slice(i, i + 1) takes place i and keeps the mode" if _int(given) else "slice(None) takes all"
    require(isinstance(given, slice), TypeError, f"{name} got {type(given).__name__}, expected a slice; {cure}")
    for bound in (given.start, given.stop, given.step):
        fine, cure = bound is None or _int(bound), "convert with int(...)"
        require(fine, TypeError, f"{name} got a slice with a {type(bound).__name__}, expected ints; {cure}")
    require(
        given.step is None or int(given.step) != 0,
        ValueError,
        f"{name} got step 0, expected another; 1 is next to next",
    )
    places = range(n)[given]
    require(len(places) > 0, ValueError, f"{name} {given} takes nothing, expected one place at least of its {n}")
    return places


def _int(value: Any) -> bool:
    try:
        operator.index(value)
    except (TypeError, RuntimeError):  # what is mapped by vmap has no value
        return False
    return not isinstance(value, bool)


def place_of(mode: Any, n: int, title: str) -> int:
    """Where a new mode comes among n modes, 0 to n; negative numbers count from the end, -1 being the last.

    >>> place_of(-1, 2, "transduct"), place_of(0, 2, "transduct")
    (2, 0)
    """
    size(mode, f"{title}: mode", -n - 1, n, cure=f"it is the place of the new mode among {n + 1}")
    return int(mode) % (n + 1)
