"""Records: frozen dataclasses taken apart into tensors and settings, so that a pytree library can carry them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

Parts = tuple[tuple[Any, ...], tuple[Any, ...], tuple[str, ...]]


def frozen(cls: type, static: Sequence[str]) -> tuple[Any, Callable[[Any], Parts], Callable[[Any, Any], Any]]:
    """(the dataclass, flatten: record -> (children, settings, names), rebuild: (settings, children) -> record).

    A field that holds None is a setting, not a child: torch's pytrees take None for a leaf, which breaks vmap's outputs.
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    names = tuple(f.name for f in dataclasses.fields(made))
    unknown = [n for n in static if n not in names]
    if unknown:
        raise TypeError(f"{cls.__name__}: static={unknown} are no fields; expected some of {list(names)}")

    def flatten(r: Any) -> Parts:
        present = tuple(n for n in names if n not in static and getattr(r, n) is not None)
        return tuple(getattr(r, n) for n in present), (present, *(getattr(r, n) for n in static)), present

    def rebuild(settings: Any, children: Any) -> Any:
        new = object.__new__(made)  # no __post_init__: transforms put placeholders into records
        values = dict.fromkeys(names) | dict(zip(settings[0], children)) | dict(zip(static, settings[1:]))
        for n, value in values.items():
            object.__setattr__(new, n, value)
        return new

    return made, flatten, rebuild
