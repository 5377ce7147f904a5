"""Guides for those who come from elsewhere: every name of theirs has a row, and what it names on our side is there."""

import inspect
import re
from types import ModuleType


def without_row(names: list[str], rows: tuple[tuple[str, str], ...]) -> list[str]:
    """Those names of theirs that no row mentions."""
    left = " ".join(theirs for theirs, _ in rows)
    return [name for name in names if not re.search(rf"(?<![A-Za-z]){re.escape(name)}\b", left)]


def found(path: str, module: ModuleType, roots: dict[str, object]) -> object:
    """module.path, or path from one of the roots; a field of a record counts."""
    first, *rest = path.split(".")
    thing = roots[first] if first in roots else getattr(module, first)
    for name in rest:
        fields = getattr(thing, "__dataclass_fields__", {})
        thing = fields[name] if name in fields else getattr(thing, name)
    return thing


def check_calls(calls: list[tuple[str, str]], module: ModuleType, roots: dict[str, object], plain: set[str]) -> None:
    """Each argument that a row mentions is one of the function; names in `plain` stand for values."""
    for name, arguments in calls:
        options = inspect.signature(found(name, module, roots)).parameters
        for argument in filter(None, (a.strip() for a in arguments.split(","))):
            given = argument.removesuffix("=")
            assert given in options or given in plain, f"{name} has no argument {argument}"
