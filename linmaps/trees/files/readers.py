"""A tree from the JSON of its structure: registered classes alone, and no code but theirs."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from linmaps.trees.files.containers import CONTAINERS, FACTORIES, MAPPINGS
from linmaps.trees.files.functions import FUNCTIONS
from linmaps.trees.files.layouts import field_names
from linmaps.trees.files.version import __version__
from linmaps.trees.nodes import one_level
from linmaps.trees.registry import find


class Reader:
    """Makes the tree of one file again.

    take: the tensor of a name; given: what the file left out, by path; written: the version that wrote the file.
    """

    def __init__(self, take: Callable[[str], Tensor], given: Mapping[str, Any], written: str) -> None:
        self.take, self.given, self.written = take, given, written
        self.used: set[str] = set()
        self._tensors: dict[str, Tensor] = {}

    def of(self, node: Any) -> Any:
        """What this JSON describes.

        >>> Reader(lambda name: name, {}, "0.1").of({"dict": [["a", {"tuple": [1, None]}], [2, {"float": "inf"}]]})
        {'a': (1, None), 2: inf}
        """
        if isinstance(node, list):
            return [self.of(part) for part in node]
        if not isinstance(node, dict):
            return node
        kind, body = next(iter(node.items()), ("", []))
        if kind in MAPPINGS:
            return self._mapping(kind, body, node)
        if kind in CONTAINERS:
            return CONTAINERS[kind].made([self.of(part) for part in body])
        if kind not in self._KINDS:
            raise ValueError(f"got a node {kind!r}, expected one of {sorted({*self._KINDS, *MAPPINGS, *CONTAINERS})}")
        return self._KINDS[kind](self, body, node)

    def _mapping(self, kind: str, body: Any, node: dict[str, Any]) -> Any:
        pairs = list(body.items()) if isinstance(body, dict) else [(self.of(key), value) for key, value in body]
        first = (FACTORIES[node["factory"]],) if kind == "defaultdict" else ()
        return MAPPINGS[kind](*first, [(key, self.of(value)) for key, value in pairs])

    def _tensor(self, name: str, _: Any) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = self.take(name)
        return self._tensors[name]

    def _given(self, where: str, _: Any) -> Any:
        if where not in self.given:
            raise ValueError(
                f"{where}: was left out when the file was written, expected it here; give load(..., given={{{where!r}: ...}})"
            )
        self.used.add(where)
        return self.given[where]

    def _function(self, name: str, _: Any) -> Any:
        return FUNCTIONS[name] if name in FUNCTIONS else self._found(name)

    def _class(self, name: str, _: Any) -> type:
        cls = self._found(name)
        if not isinstance(cls, type):
            raise ValueError(f"got {name}, which is no class")
        return cls

    def _member(self, body: list[str], _: Any) -> Any:
        name, member = body
        cls = self._class(name, None)
        if not issubclass(cls, enum.Enum) or member not in cls.__members__:
            raise ValueError(f"got {member} of {name}, which this version ({__version__}) does not have{self._by}")
        return cls[member]

    def _record(self, name: str, node: dict[str, Any]) -> Any:
        cls = self._class(name, None)
        new: Any = object.__new__(cls) if not issubclass(cls, tuple) else None
        if "state" in node:
            new.__setstate__(self.of(node["state"]))
            return new
        if "arguments" in node:
            return cls(*(self.of(part) for part in node["arguments"]))
        fields = self._complete(cls, node["fields"])
        if new is None:
            return cls(**fields)
        beside = {key: self.of(value) for key, value in node.get("beside", {}).items()}
        if unknown := [key for key in beside if callable(getattr(cls, key, print))]:
            raise ValueError(
                f"{cls.__name__}: got attributes {unknown}, which this version ({__version__}) does not have{self._by}"
            )
        for key, value in {**fields, **beside}.items():
            object.__setattr__(new, key, value)  # as pytrees do, no __init__: a record may hold members of an ensemble
        if one_level(new) is None and hasattr(
            cls, "__post_init__"
        ):  # settings: checked, and completed where defaults are
            new.__post_init__()
        return new

    def _complete(self, cls: type, body: dict[str, Any]) -> dict[str, Any]:
        """The fields of the class, those with a default where the file has none; ValueError where that does not do."""
        fields = {key: self.of(value) for key, value in body.items()}
        names = field_names(cls)
        if names is None:
            return fields
        if extra := [key for key in fields if key not in names]:
            raise ValueError(
                f"{cls.__name__}: got fields {extra}, which this version ({__version__}) does not know, expected some of "
                f"{list(names)}{self._by}; load it with that version"
            )
        fields = _defaults(cls) | fields
        if missing := [key for key in names if key not in fields]:
            raise ValueError(
                f"{cls.__name__}: fields {missing} are missing, which this version ({__version__}) needs{self._by}; make the "
                "record again, or load it with that version"
            )
        return {key: fields[key] for key in names}

    def _found(self, name: str) -> Any:
        found = find(name)
        if found is None:
            raise ValueError(
                f"got {name}, which is not registered here{self._by}; import the module that defines it, by "
                "@linmaps.trees.record or @linmaps.trees.static, before load"
            )
        return found

    @property
    def _by(self) -> str:
        return f" (the file was written by version {self.written})"

    _KINDS: ClassVar[dict[str, Callable[..., Any]]] = {
        "tensor": _tensor,
        "float": lambda self, body, node: float(body),
        "record": _record,
        "member": _member,
        "class": _class,
        "function": _function,
        "given": _given,
    }


def _defaults(cls: type) -> dict[str, Any]:
    if not dataclasses.is_dataclass(cls):
        return dict(getattr(cls, "_field_defaults", {}))
    found = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    made = {
        f.name: f.default_factory() for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING
    }
    return found | made
