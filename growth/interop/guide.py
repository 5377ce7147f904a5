"""The guide for those who come from gromo, printed by a function."""

from __future__ import annotations

from growth.interop import guide_gromo
from linmaps.interop.guide import Guide, named

GUIDES = {"gromo": Guide.of("gromo", "growth", guide_gromo.NOTES, guide_gromo.ROWS)}


def coming_from(library: str) -> Guide:
    """The guide of a library: a table of its names beside those of growth.

    library: "gromo".  ValueError for another.

    >>> import growth
    >>> growth.interop.coming_from("gromo").about("line_search").rows
    (('line_search', 'line_search(f, params, data, pair, new, delta)'),)
    """
    return named(GUIDES, library)
