"""A few digits that tell trees apart: structure, settings, dtypes and bits; of what no file can hold, what it is made of."""

from __future__ import annotations

import functools
import json
import types
import zlib
from collections.abc import Mapping
from typing import Any

from linmaps.trees.files.layouts import Writer
from linmaps.trees.files.numbers import buffer, described, raw
from linmaps.trees.registry import place


def digest(tree: Any) -> str:
    """CRC-32 of what `save` would write; of an object that no file can hold the name of its class and digests of its attributes,
    of a function its name, code, and what it closes over.

    >>> import torch
    >>> digest({"a": torch.ones(2)}) == digest({"a": torch.ones(2)}), digest({"a": torch.ones(2)}) == digest({})
    (True, False)
    >>> times = lambda c: lambda x: c * x
    >>> digest(times(2)) == digest(times(2)), digest(times(2)) == digest(times(3))
    (True, False)
    """
    return _digest(tree, frozenset())


def _digest(tree: Any, around: frozenset[int]) -> str:
    writer = Writer()
    try:
        layout = writer.of(tree)
    except (TypeError, ValueError):  # no file can hold it
        return _of_parts(tree, around)
    found = zlib.crc32(json.dumps(layout).encode())
    for t in writer.tensors.values():
        said = {k: v for k, v in described(t).items() if k != "device"}
        found = zlib.crc32(json.dumps([said, list(t.shape)]).encode(), found)
        numbers = raw(t)
        found = zlib.crc32(buffer(numbers), found)
    return f"{found:08x}"


def _of_parts(thing: Any, around: frozenset[int]) -> str:
    """around: what holds it, by id."""
    name = place(thing if hasattr(thing, "__qualname__") else type(thing))
    parts = {} if id(thing) in around else _parts(thing)
    digests = [[str(key), _digest(part, around | {id(thing)})] for key, part in parts.items()]
    return f"{name} {zlib.crc32(json.dumps(digests).encode()):08x}" if parts else name


def _parts(thing: Any) -> Mapping[Any, Any]:
    if isinstance(thing, Mapping):
        return thing
    if isinstance(thing, (list, tuple)):
        return dict(enumerate(thing))
    if isinstance(thing, functools.partial):
        return {"function": thing.func, "args": thing.args, "keywords": thing.keywords}
    if isinstance(thing, types.MethodType):
        return {"function": thing.__func__, "of": thing.__self__}
    if isinstance(thing, types.FunctionType):
        given = {"code": _code(thing.__code__), "defaults": thing.__defaults__, "keywords": thing.__kwdefaults__}
        filled = [cell for cell in thing.__closure__ or () if cell != types.CellType()]
        return given | dict(enumerate(cell.cell_contents for cell in filled))
    if hasattr(thing, "tobytes"):  # an array of numpy
        return {"bits": zlib.crc32(thing.tobytes()), "shape": tuple(thing.shape), "dtype": str(thing.dtype)}
    own = {} if isinstance(thing, (type, types.ModuleType)) else getattr(thing, "__dict__", {})
    kept = lambda key: isinstance(getattr(type(thing), key, None), functools.cached_property)
    return {key: part for key, part in own.items() if not kept(key)}


def _code(code: types.CodeType) -> list[Any]:
    """What a function does, whoever compiled it, and where: constants have no order where Python gives them none."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
