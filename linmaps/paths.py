"""Paths: where a subtree is, as a tuple of keys or a dotted string, in nested and in flat dicts with dotted keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Path = tuple[Any, ...]
Children = Callable[[Any], dict[Any, Any]]


def path_str(path: Path | str) -> str:
    """A path as the dotted string that users write.

    >>> path_str(("layers", 0, "weight"))
    'layers.0.weight'
    """
    return path if isinstance(path, str) else ".".join(str(k) for k in path)


def walk(tree: Any, path: Path | str, children: Children) -> list[tuple[Any, Any]]:
    """[(None, tree), (key, child), ..., (key, subtree)] along the path; a key of a flat dict may span several parts.

    children(node): its children by key.  Raises a ValueError that names what there is instead.
    """
    parts = path.split(".") if isinstance(path, str) else list(path)
    steps: list[tuple[Any, Any]] = [(None, tree)]
    while parts:
        found = children(steps[-1][1])
        by_name = {str(k): k for k in found}
        for n in range(len(parts), 0, -1):
            key = parts[0] if n == 1 and parts[0] in found else by_name.get(path_str(tuple(parts[:n])))
            if key is not None:
                steps.append((key, found[key]))
                parts = parts[n:]
                break
        else:
            done = path_str(tuple(k for k, _ in steps[1:]))
            raise ValueError(
                f"{path_str(path)}: no such path; under {done or 'the root'!r} got {path_str(tuple(parts))!r}, "
                f"expected one of {sorted(by_name)[:12]}"
            )
    return steps
