"""The registry of maps: snake_case name -> class, in the order of names, read-only to its readers.

It is filled by importing `linmaps`: each class enters itself where it is defined, by `register`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from linmaps import trees

if TYPE_CHECKING:
    from linmaps.base.contract import Map

C = TypeVar("C", bound="type[Map]")


class Registry(Mapping[str, "type[Map]"]):
    """Every map by its name, in any case and as its class is spelled; prints as a table of what each one promises.

    "W at params = 0" is where weight decay of the params leads: 0, the identity I (cut or padded), a diagonal with signs,
    entries that are all alike ("uniform"); m is the middle of the bounds sigma_min and sigma_max.

    >>> import linmaps
    >>> linmaps.maps["orthogonal"](4, 2)
    Orthogonal(in_features=4, out_features=2, bias=False, method='householder', n_reflectors=None, det=None, base=None)
    >>> linmaps.maps["orthogonl"]
    Traceback (most recent call last):
    KeyError: "no map is called 'orthogonl'; did you mean 'orthogonal'? expected one of ['block_diagonal', ...]"
    >>> linmaps.maps["PerronFrobenius"] is linmaps.maps["perron_frobenius"]
    True
    """

    def __init__(self) -> None:
        self._classes: dict[str, type[Map]] = {}

    def __getitem__(self, name: str) -> type[Map]:
        known = self._known(name)
        if known is None:
            near = difflib.get_close_matches(_bare(name), [_bare(one) for one in self], 1, 0.7)
            hint = [one for one in self if near and _bare(one) == near[0]]
            meant = f"did you mean {hint[0]!r}? " if hint else ""
            raise KeyError(f"no map is called {name!r}; {meant}expected one of {list(self)}")
        return self._classes[known]

    def __contains__(self, name: object) -> bool:
        return self._known(name) is not None

    def _known(self, name: object) -> str | None:
        """The name in snake case; None for what is none."""
        if not isinstance(name, str) or name in self._classes:
            return name if isinstance(name, str) else None
        return next((one for one in self._classes if _bare(one) == _bare(name)), None)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    def __repr__(self) -> str:
        rows = [("name", "shape", "kept", "time", "params at 8 x 8", "W at params = 0", "promise")]
        for name, cls in self.items():
            shape, kept, count = (
                "square" if cls.square else "any",
                "hard" if cls.hard else "soft",
                cls._of_size(8, 8).n_params,
            )
            rows.append((name, shape, kept, cls.time or "-", str(count), cls.at_zero or "-", cls.promise))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[6]]) for row in rows)


def _bare(name: object) -> str:
    return str(name).lower().replace("_", "").replace("-", "").replace(" ", "")


maps = Registry()


def register(cls: C) -> C:
    """Class decorator: enter a concrete map under `cls.name`, and let `torch.load` of default settings read its specs.

    ValueError for a name that is taken by another class or is not a snake_case identifier.
    """
    name = cls.name
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"{cls.__name__}.name: got {name!r}, expected a snake_case identifier")
    taken = maps._classes.get(name, cls)
    if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{cls.__name__}.name: {name!r} is the name of {taken.__qualname__}; choose another")
    maps._classes[name] = trees.static(cls)
    return cls
