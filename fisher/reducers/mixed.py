"""Several representations at once, one pass over the data: each reducer sees the layers that are its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fisher.collector.blocks.uses import Layer
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import LeafRows
from fisher.pmat import PMat, PMatBlockDiag, PMatDiag, PMatEKFAC, PMatKFAC, PMatMixed
from fisher.reducers.base import Options, Reducer
from fisher.reducers.kfac import KFAC, fits
from fisher.reducers.table import REDUCERS

PARTS: dict[type[PMat], type[Reducer]] = {**REDUCERS, PMatEKFAC: KFAC}  # KFAC, corrected by a second pass


class Mixed(Reducer):
    """A reducer for each representation on its sub-collection of layers."""

    def __init__(self, layers: LayerCollection, options: Options, layers_to: Mapping[str, type[PMat]]) -> None:
        super().__init__(layers, options)
        self.split = split(layers, layers_to, options.largest_block)
        self.parts = [PARTS[kind](own, options) for kind, own in self.split]
        self.patched = any(part.patched for part in self.parts)
        self.by_position = any(part.by_position for part in self.parts)

    @classmethod
    def of(cls, layers_to: Mapping[str, type[PMat]]) -> Callable[[LayerCollection, Options], Reducer]:
        """Makes of the layers a reducer for this mapping of kinds and names."""
        return lambda layers, options: cls(layers, options, layers_to)

    @property
    def by_rows(self) -> tuple[Layer, ...]:
        return tuple(layer for part in self.parts for layer in part.by_rows)

    @functools.cached_property
    def tapped(self) -> tuple[int, ...]:
        return tuple(sorted({k for part in self.parts for k in part.tapped}))

    @property
    def through(self) -> tuple[Layer, ...]:
        return tuple(layer for part in self.parts for layer in part.through)

    def keep(self, use: int, a: Tensor) -> Any:
        given = lambda part: a if part.patched else self.unfolded(use, a)
        return {str(n): part.keep(use, given(part)) for n, part in enumerate(self.parts) if use in part.tapped}

    def inputs(self, kept: dict[int, Any]) -> Any:
        return [part.inputs(self._own(n, kept)) for n, part in enumerate(self.parts)]

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        return [part.columns(self._own(n, kept), g, rows) for n, part in enumerate(self.parts)]

    def at_a_time(self, batch: int) -> int:
        return min(part.at_a_time(batch) for part in self.parts)

    def onto(self, total: Any, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        return [part.onto(own, self._own(n, kept), g, rows) for n, (part, own) in enumerate(zip(self.parts, total))]

    def closed(self, total: Any, kept: dict[int, Any], chunks: int) -> Any:
        return [part.closed(own, self._own(n, kept), chunks) for n, (part, own) in enumerate(zip(self.parts, total))]

    def add(self, one: Any, other: Any) -> Any:
        return [part.add(s, t) for part, s, t in zip(self.parts, one, other)]

    @property
    def gathers(self) -> bool:  # type: ignore[override]
        return any(part.gathers for part in self.parts)

    def apart(self, inputs: Any, columns: Any) -> tuple[Any, Any]:
        found = [part.apart(i, c) for part, i, c in zip(self.parts, inputs, columns)]
        return [sums for sums, _ in found], [rows for _, rows in found]

    def together(self, sums: Any, rows: Any) -> tuple[Any, Any]:
        found = [part.together(s, r) for part, s, r in zip(self.parts, sums, rows or [[]] * len(self.parts))]
        return [i for i, _ in found], [c for _, c in found]

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        made = [part.finish(i, c, seen) for part, i, c in zip(self.parts, inputs, columns)]
        found = [
            F.eigendecomposition(group=self.options.group) if kind is PMatEKFAC else F
            for (kind, _), F in zip(self.split, made)
        ]
        return PMatMixed(tuple(found), tuple(own for _, own in self.split), self.layers)

    def _own(self, n: int, kept: dict[int, Any]) -> dict[int, Any]:
        return {k: t[str(n)] for k, t in kept.items() if str(n) in t}


def split(
    layers: LayerCollection, layers_to: Mapping[str, type[PMat]], largest_block: int | None
) -> list[tuple[type[PMat], LayerCollection]]:
    """Which representation gets which layers: by name, else by kind, else KFAC where there are factors, blocks, diagonals."""
    known = {*layers.names(), *(l.kind for l in layers), *(l.family for l in layers)}
    for key, kind in layers_to.items():
        if kind not in PARTS:
            expected = sorted(r.__name__ for r in PARTS)
            raise ValueError(f"layers_to[{key!r}]: got {getattr(kind, '__name__', kind)!r}, expected one of {expected}")
        if key not in known:
            raise ValueError(f"layers_to: got {key!r}, expected names or kinds of layers: {sorted(known)}")
    chosen: dict[type[PMat], list[str]] = {}
    for l in layers:
        small = PMatBlockDiag if fits(l.numel, largest_block) else PMatDiag
        default = PMatKFAC if l.kronecker or l.factored else small
        keys = [k for k in (l.name, l.kind, l.family) if k in layers_to]
        chosen.setdefault(layers_to[keys[0]] if keys else default, []).append(l.name)
    return [(kind, layers.select(names)) for kind, names in chosen.items()]
