"""Records: frozen dataclasses that are pytrees of tensors, with their settings as static structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, dataclass_transform, overload

import optree
import torch
import torch.utils._pytree as torch_pytree
from optree.registry import __GLOBAL_NAMESPACE as GLOBAL

from linmaps.trees.registry import enter

T = TypeVar("T")
Parts = tuple[tuple[Any, ...], tuple[Any, ...], tuple[str, ...]]


@overload
def static(thing: T) -> T: ...
@overload
def static() -> Callable[[T], T]: ...
def static(thing: Any = None) -> Any:
    """Decorator: `trees.load` and `torch.load` of default settings read this frozen dataclass of plain numbers, strings, tuples.

    Files may name it: a dataclass, a named tuple, an enum, or a function that stands in a record.  `@static()` is the same.

    Raises TypeError for what is neither a class nor a function.

    >>> import dataclasses
    >>> @static
    ... @dataclasses.dataclass(frozen=True)
    ... class Size:
    ...     rows: int
    >>> Size(3)
    Size(rows=3)
    """
    if thing is None:
        return static
    if not hasattr(thing, "__module__") or not hasattr(thing, "__name__"):
        raise TypeError(
            f"static: got {type(thing).__name__}, expected a class or a function; put @linmaps.trees.static above it"
        )
    torch.serialization.add_safe_globals([thing])
    return enter(thing)


@overload
def record(cls: type[T], /) -> type[T]: ...
@overload
def record(*, static: Sequence[str] = ()) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(frozen_default=True)
def record(cls: Any = None, /, *, static: Sequence[str] = ()) -> Any:
    """Class decorator: a frozen dataclass whose fields are children of a pytree, but for those named in `static`.

    The class is registered with optree (global namespace) and with torch's own pytrees, so that instances pass through
    `torch.func.vmap`, `grad`, `jacrev`, `optree.tree_map`, `trees.save` / `load`, `pickle` and `torch.save` / `torch.load`.
    Static fields must be hashable.  A field that holds None is no leaf.  `@record` without parentheses is `@record()`.

    Raises TypeError for what is no class, and for names in `static` that are no fields.

    >>> import torch, optree
    >>> from linmaps import trees
    >>> @trees.record(static=("unit",))
    ... class Length:
    ...     value: torch.Tensor
    ...     unit: str = "m"
    >>> torch.func.vmap(lambda r: optree.tree_map(lambda t: 2 * t, r))(Length(torch.arange(2.0)))
    Length(value=tensor([0., 2.]), unit='m')
    """

    def decorate(cls: type[T]) -> type[T]:
        made, flatten, rebuild = frozen(cls, static)
        optree.register_pytree_node(made, flatten, rebuild, namespace=GLOBAL)
        torch_pytree.register_pytree_node(
            made,
            lambda r: (list(flatten(r)[0]), flatten(r)[1]),
            lambda children, settings: rebuild(settings, children),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )
        torch.serialization.add_safe_globals([made])
        return enter(made)

    if cls is None:
        return decorate
    if not isinstance(cls, type):
        raise TypeError(f"record: got {type(cls).__name__}, expected a class; name fields as @record(static=('name',))")
    return decorate(cls)


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
