"""What a file may name: classes and functions that were entered where they are defined, under the place they are defined at."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")

ENTERED: dict[str, Any] = {}  # "package.room.file:Name" -> the class or function


def enter(thing: T) -> T:
    """Enter a class or a function; the last one of a name counts, as where a notebook's cell runs again.

    >>> enter(T) is T
    True
    """
    ENTERED[place(thing)] = thing
    return thing


def place(thing: Any) -> str:
    """Where a class or a function is defined.

    >>> import fractions
    >>> place(fractions.Fraction)
    'fractions:Fraction'
    """
    return f"{thing.__module__}:{getattr(thing, '__qualname__', thing.__name__)}"


def entered(thing: Any) -> str | None:
    """The name of what was entered; None for all else, and for what another one of its name has replaced."""
    if not hasattr(thing, "__module__") or not hasattr(thing, "__name__"):
        return None
    name = place(thing)
    return name if ENTERED.get(name) is thing else None


def find(name: str) -> Any:
    """What was entered under this name, or the one of its package that has moved to another file; None where there is none."""
    if name in ENTERED:
        return ENTERED[name]
    package, _, own = name.partition(".")[0], *name.partition(":")[1:]
    moved = [t for n, t in ENTERED.items() if n.partition(".")[0] == package and n.partition(":")[2] == own]
    return moved[0] if len(moved) == 1 else None
