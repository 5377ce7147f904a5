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
    """Each argument that a row mentions is one of the function, in its place; names in `plain` stand for values.

    A call with an argument before its options is a whole one: nothing that is required may lack.
    """
    for name, arguments in calls:
        signature = inspect.signature(found(name, module, roots))
        parameters = [p for p in signature.parameters.values() if p.name != "self"]
        given = [a.strip() for a in arguments.split(",") if a.strip()]
        options = {a.removesuffix("="): None for a in given if a.endswith("=")}
        values = [a for a in given if not a.endswith("=")]
        for option in options:
            assert option in signature.parameters, f"{name} has no argument {option}"
        for value, parameter in zip(values, parameters):
            assert value == parameter.name or value in plain, f"{name} has {parameter.name} where the row has {value}"
        if values:
            signature.replace(parameters=parameters).bind(*values, **options)
