"""Work of a matrix's methods that needs all representations, or a pass over data: rooms above hand it over.

A function that does the work enters itself when its file is imported, as all are with `fisher`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Fn = TypeVar("Fn", bound=Callable[..., Any])
WORK: dict[str, Callable[..., Any]] = {}


def hands_over(work: str) -> Callable[[Fn], Fn]:
    """Decorator: this function does the work of that name.

    >>> @hands_over("nothing")
    ... def nothing(F):
    ...     return F
    >>> handed("nothing")(3)
    3
    """

    def enter(fn: Fn) -> Fn:
        WORK[work] = fn
        return fn

    return enter


def handed(work: str) -> Callable[..., Any]:
    """The function that does it."""
    return WORK[work]
