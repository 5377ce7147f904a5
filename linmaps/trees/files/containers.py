"""Containers and constants as parts, and back: what is no tensor, no record, and no value that JSON has itself."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Container(NamedTuple):
    """A type whose values are made of parts, and of them again."""

    type: type
    parts: Callable[[Any], list[Any]]
    made: Callable[[list[Any]], Any]


def _named(kind: type, of: Any = torch) -> dict[str, Any]:
    """The constants of a type in a module, by their names in it."""
    return {str(value).removeprefix("torch."): value for value in vars(of).values() if isinstance(value, kind)}


DTYPES, LAYOUTS, FORMATS = _named(torch.dtype), _named(torch.layout), _named(torch.memory_format)
_spoken: Callable[[Any], list[Any]] = lambda value: [str(value).removeprefix("torch.")]
_limits: Callable[[Any], list[Any]] = lambda span: [span.start, span.stop, span.step]

CONTAINERS = {
    "tuple": Container(tuple, list, tuple),
    "size": Container(torch.Size, list, torch.Size),
    "deque": Container(
        collections.deque, lambda d: [d.maxlen, *d], lambda parts: collections.deque(parts[1:], parts[0])
    ),
    "set": Container(set, list, set),
    "frozenset": Container(frozenset, list, frozenset),
    "range": Container(range, _limits, lambda parts: range(*parts)),
    "slice": Container(slice, _limits, lambda parts: slice(*parts)),
    "complex": Container(complex, lambda z: [z.real, z.imag], lambda parts: complex(*parts)),
    "bytes": Container(bytes, lambda b: [b.hex()], lambda parts: bytes.fromhex(parts[0])),
    "dtype": Container(torch.dtype, _spoken, lambda parts: DTYPES[parts[0]]),
    "layout": Container(torch.layout, _spoken, lambda parts: LAYOUTS[parts[0]]),
    "memory_format": Container(torch.memory_format, _spoken, lambda parts: FORMATS[parts[0]]),
    "device": Container(torch.device, _spoken, lambda parts: torch.device(parts[0])),
}
UNORDERED = ("set", "frozenset")
KIND_OF = {container.type: kind for kind, container in CONTAINERS.items()}

MAPPINGS: dict[str, type] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "defaultdict": collections.defaultdict,
}
MAPPING_OF = {type_: kind for kind, type_ in MAPPINGS.items()}
FACTORIES: dict[str | None, Any] = {None: None} | {
    kind.__name__: kind for kind in (list, dict, set, tuple, int, float, bool, str, collections.OrderedDict)
}
