"""Work of a matrix's methods that needs all representations, or a pass over data: rooms above hand it over.

A function that does the work enters itself when its file is imported, as all are with `fisher`: F + G, F @ G, update_diag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Fn = TypeVar("Fn", bound=Callable[..., Any])
_WORK: dict[str, Callable[..., Any]] = {}


def hands_over(work: str) -> Callable[[Fn], Fn]:
    """Decorator: this function does the work of that name."""

    def enter(fn: Fn) -> Fn:
        _WORK[work] = fn
        return fn

    return enter


def handed(work: str) -> Callable[..., Any]:
    """The function that does it.

    >>> import fisher
    >>> handed("add").__module__
    'fisher.pmat.algebra.addition'
    """
    if work not in _WORK:
        raise ImportError(f"{work}: is done by a part of fisher that has not been imported; import fisher")
    return _WORK[work]
