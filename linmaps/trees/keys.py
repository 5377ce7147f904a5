"""Paths: where a subtree is, as a tuple of keys or a dotted string, in nested and in flat dicts with dotted keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Path = tuple[Any, ...]
Children = Callable[[Any], dict[Any, Any]]


def path_str(path: Path | str) -> str:
    """A path as the dotted string that users write.

    >>> path_str(("layers", 0, "weight"))
    'layers.0.weight'
    """
    return path if isinstance(path, str) else ".".join(map(str, path))


def names(paths: Sequence[Path]) -> list[str]:
    """A name for each path, no two alike: dotted, and the tuple of keys itself where the dotted strings of two are equal.

    >>> names([("a.b",), ("a", "b"), ("c",)])
    ["('a.b',)", "('a', 'b')", 'c']
    """
    dotted = [path_str(p) for p in paths]
    if len(set(dotted)) == len(dotted):
        return dotted
    count = Counter(dotted)
    return [name if count[name] == 1 else repr(tuple(p)) for name, p in zip(dotted, paths)]


def walk(tree: Any, path: Path | str, children: Children) -> list[tuple[Any, Any]]:
    """[(None, tree), (key, child), ..., (key, subtree)] along the path; a key of a flat dict may span several parts.

    children(node): its children by key.  A tuple of keys that are all there is taken as it is.  Raises a ValueError that
    names what there is instead, or all subtrees that the path may mean.
    """
    parts = path.split(".") if isinstance(path, str) else list(path)
    exact = None if isinstance(path, str) else _exact(tree, parts, children)
    ways = _ways(tree, parts, children) if exact is None else [exact]
    if len(ways) == 1:
        return [(None, tree), *ways[0]]
    if ways:
        raise ValueError(
            f"{path_str(path)}: may mean {len(ways)} subtrees, expected one; give a tuple of keys, one of "
            f"{[tuple(k for k, _ in way) for way in ways]}"
        )
    done: list[Any] = []
    found = _by_name(children(tree))
    while (n := next((n for n in range(len(parts), 0, -1) if path_str(tuple(parts[:n])) in found), 0)) > 0:
        key, node = found[path_str(tuple(parts[:n]))][0]
        done, parts, found = [*done, key], parts[n:], _by_name(children(node))
    raise ValueError(
        f"{path_str(path)}: no such path; under {path_str(tuple(done)) or 'the root'!r} got {path_str(tuple(parts))!r}, "
        f"expected one of {sorted(found)[:12]}"
    )


def _by_name(found: dict[Any, Any]) -> dict[str, list[tuple[Any, Any]]]:
    named: dict[str, list[tuple[Any, Any]]] = {}
    for key, child in found.items():
        named.setdefault(str(key), []).append((key, child))
    return named


def _exact(node: Any, parts: list[Any], children: Children) -> list[tuple[Any, Any]] | None:
    steps = []
    for key in parts:
        found = children(node)
        if key not in found:
            return None
        node = found[key]
        steps.append((key, node))
    return steps


def _ways(node: Any, parts: list[Any], children: Children) -> list[list[tuple[Any, Any]]]:
    """All ways along keys whose names make up the parts."""
    if not parts:
        return [[]]
    found = _by_name(children(node))
    return [
        [step, *rest]
        for n in range(len(parts), 0, -1)
        for step in found.get(path_str(tuple(parts[:n])), [])
        for rest in _ways(step[1], parts[n:], children)
    ]
