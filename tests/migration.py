"""Migration tables in docstrings: their rows, and whether what they name on our side is there."""

import inspect
import re
from types import ModuleType


def rows(module: ModuleType) -> list[tuple[str, str]]:
    """(theirs, ours) of each row of the table in a module's docstring."""
    lines = module.__doc__.splitlines()
    rules = [i for i, line in enumerate(lines) if line.strip().startswith("====")]
    if len(rules) != 3:
        return []
    start = lines[rules[0]].rindex("  ") + 2
    return [(line[:start].strip(), line[start:]) for line in lines[rules[1] + 1 : rules[2]]]


def without_row(names: list[str], table: list[tuple[str, str]]) -> list[str]:
    """Those names of theirs that no row mentions."""
    left = " ".join(theirs for theirs, _ in table)
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
