"""The structure of a tree as JSON: containers, records by the name that they are registered under, constants, names of tensors.

A value that JSON has (text, numbers, true, false, null, a list) is itself; any other is an object whose first key says what
it is: {"tensor": name}, {"tuple": [...]}, {"dict": {...}}, {"record": name, "fields": {...}}.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from linmaps.trees.files.containers import CONTAINERS, FACTORIES, KIND_OF, MAPPING_OF, UNORDERED
from linmaps.trees.files.functions import name_of
from linmaps.trees.files.numbers import check_storable
from linmaps.trees.keys import Path, path_str
from linmaps.trees.registry import entered


class Writer:
    """Describes one tree: `of(tree)` is JSON, `tensors` the tensors by their names in the file.

    given: dotted paths of what the file leaves out.
    """

    def __init__(self, given: Iterable[str] = ()) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.given, self.left_out = frozenset(given), set[str]()
        self._names: dict[int, str] = {}  # one tensor at two places is one in the file
        self._within: dict[int, str] = {}  # what holds the node

    def whole(self, tree: Any) -> Any:
        """The tree as JSON; ValueError where it is deeper than Python can go.

        >>> Writer().whole([1])
        [1]
        """
        try:
            return self.of(tree)
        except RecursionError:
            raise ValueError(
                "the tree: its containers are nested too deeply for Python's recursion limit "
                f"({sys.getrecursionlimit()}), expected a flatter tree; put them side by side"
            ) from None

    def of(self, node: Any, path: Path = ()) -> Any:
        """The node at this path as JSON.

        >>> Writer().of({"a": (1, None), 2: float("inf")})
        {'dict': [['a', {'tuple': [1, None]}], [2, {'float': 'inf'}]]}
        """
        where = path_str(path)
        if where in self.given and path:
            self.left_out.add(where)
            return {"given": where}
        if id(node) in self._within:
            raise ValueError(
                f"{where}: is {self._within[id(node)] or 'the tree'} again, which holds it, expected containers that do not hold "
                "themselves; leave it out of itself"
            )
        self._within[id(node)] = where
        try:
            return self._of(node, path, where)
        finally:
            del self._within[id(node)]

    def _of(self, node: Any, path: Path, where: str) -> Any:
        kind, name = type(node), entered(type(node))
        if isinstance(node, Tensor):
            return {"tensor": self._tensor(node, path)}
        if node is None or kind in (bool, int, str):
            return node
        if kind is float:
            return node if math.isfinite(node) else {"float": str(node)}
        if kind is list:
            return self._parts(node, path)
        if kind in MAPPING_OF:
            return self._mapping(node, path)
        if kind in KIND_OF:
            container = KIND_OF[kind]
            parts = self._parts(CONTAINERS[container].parts(node), path)
            return {container: sorted(parts, key=json.dumps) if container in UNORDERED else parts}
        if isinstance(node, type) and entered(node):
            return {"class": entered(node)}
        if callable(node) and (name_of(node) or entered(node)):
            return {"function": name_of(node) or entered(node)}
        if name is not None:
            return self._object(node, name, path)
        raise TypeError(f"{where or 'the tree'}: {refusal(node, where)}")

    def _parts(self, parts: Iterable[Any], path: Path) -> list[Any]:
        return [self.of(part, (*path, n)) for n, part in enumerate(parts)]

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        kind = MAPPING_OF[type(node)]
        if all(type(key) is str for key in node):
            made: dict[str, Any] = {kind: {key: self.of(value, (*path, key)) for key, value in node.items()}}
        else:
            made = {kind: [[self._key(key, path), self.of(value, (*path, key))] for key, value in node.items()]}
        if kind == "defaultdict":
            made["factory"] = self._factory(node.default_factory, path)
        return made

    def _key(self, key: Any, path: Path) -> Any:
        if isinstance(key, Tensor):
            raise TypeError(
                f"{path_str(path) or 'the tree'}: got a tensor as a key, expected text, numbers or tuples of them"
            )
        return self.of(key, (*path, key))

    def _factory(self, factory: Any, path: Path) -> str | None:
        for name, known in FACTORIES.items():
            if factory is known:
                return name
        where = path_str(path) or "the tree"
        raise TypeError(
            f"{where}: got a defaultdict of {factory!r}, expected one of {[n for n in FACTORIES if n]}; save dict(it)"
        )

    def _object(self, node: Any, name: str, path: Path) -> dict[str, Any]:
        if isinstance(node, enum.Enum):
            return {"member": [name, node.name]}
        if hasattr(type(node), "__setstate__"):
            return {"record": name, "state": self.of(node.__getstate__(), path)}
        if isinstance(node, tuple) and not hasattr(node, "_fields"):
            return {"record": name, "arguments": self._parts(vars(type(node))["__getnewargs__"](node), path)}
        named = field_names(type(node))
        own: dict[str, Any] = dict(zip(named or (), node)) if isinstance(node, tuple) else vars(node)
        pickled = _pickled(node)

        def of(key: str, value: Any) -> Any:
            try:
                return self.of(value, (*path, key))
            except TypeError:
                if key not in pickled or pickled[key] is value:
                    raise
                return self.of(pickled[key], (*path, key))

        fields = {key: of(key, value) for key, value in own.items() if named is None or key in named}
        beside = {key: of(key, value) for key, value in own.items() if key not in fields and not _cached(node, key)}
        return {"record": name, "fields": fields} | ({"beside": beside} if beside else {})

    def _tensor(self, t: Tensor, path: Path) -> str:
        check_storable(t, path_str(path) or "the tree")
        if id(t) not in self._names:
            name = next(n for n in _free(path_str(path) or "value") if n not in self.tensors and n != "__metadata__")
            self._names[id(t)] = name
            self.tensors[name] = t
        return self._names[id(t)]


def _pickled(node: Any) -> dict[str, Any]:
    """What an object has pickled of itself, where it says so: of a posterior, something else in place of its function."""
    own: Any = getattr(type(node), "__getstate__", None)
    state: Any = {} if own is getattr(object, "__getstate__", None) else own(node)
    return state if isinstance(state, dict) else {}


def _cached(node: Any, key: str) -> bool:
    """Whether an attribute is what a cached property keeps, which is made again of the fields."""
    return isinstance(getattr(type(node), key, None), functools.cached_property)


def _free(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}#{number}"
        number += 1


def field_names(cls: type) -> tuple[str, ...] | None:
    """The fields of a dataclass or a named tuple; None of a class that has none.

    >>> field_names(Writer)
    """
    if dataclasses.is_dataclass(cls):
        return tuple(f.name for f in dataclasses.fields(cls))
    fields: tuple[str, ...] | None = getattr(cls, "_fields", None) if issubclass(cls, tuple) else None
    return fields


def refusal(node: Any, where: str) -> str:
    """What is said of a node that no file can hold."""
    kind = type(node)
    expected = "expected tensors, numbers, text, containers of them and records"
    at = repr(where or "path")
    outside = f"save(..., given=[{at}]) leaves it out and load(..., given={{{at}: ...}}) puts it in again"
    if isinstance(node, torch.nn.Module):
        return f"got {kind.__name__}, a module, {expected}; save its state_dict(), or {outside}"
    if isinstance(node, torch.Generator):
        return f"got a torch.Generator, {expected}; save generator.get_state()"
    if hasattr(node, "__array__"):
        return f"got {kind.__module__.partition('.')[0]}.{kind.__name__}, {expected}; save torch.as_tensor(...) or .item() of it"
    if callable(node) and not isinstance(node, type):
        name = getattr(node, "__qualname__", kind.__name__)
        return (
            f"got the function {name}, which a file cannot hold, {expected}; make the record again where the function is, or "
            f"{outside}; a function of a module may be registered there by @linmaps.trees.static"
        )
    what = node.__qualname__ if isinstance(node, type) else kind.__qualname__
    return (
        f"got {what}, a class that is not registered, {expected}; register it where it is defined by @linmaps.trees.record or "
        f"@linmaps.trees.static, or {outside}"
    )
