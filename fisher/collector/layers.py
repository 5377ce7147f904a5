"""Layers as data: which leaf of `params` is used how; static, hashable, printed as a table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.collector.blocks.sizes import numbers_of, spoken_size
from fisher.collector.blocks.uses import PRODUCT, THROUGH, UNUSED, Layer, Use
from fisher.collector.watching.following import Way
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.trees import Layout, path_str
from linmaps.trees.keys import names


@trees.static
@dataclasses.dataclass(frozen=True, repr=False)
class Layers:
    """The layers of a function with the uses they are made of and the layout of all params, as `LayerCollection` finds them.

    singly: columns are taken back one by one, since a call in f has a wrong rule for several at once.
    """

    layers: tuple[Layer, ...]
    uses: tuple[Use, ...]
    layout: Layout
    singly: bool = False

    def select(self, names: Any) -> Self:
        """Some of the layers, by name or by a predicate on the Layer; matrices then live on their leaves alone.

        >>> import torch
        >>> from fisher import LayerCollection
        >>> f = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"]
        >>> layers = LayerCollection.from_function(f, {"w": torch.ones(2, 3), "v": torch.ones(3, 1)}, torch.ones(4, 2))
        >>> layers.select(["v"]).space.paths
        (('v',),)
        """
        if callable(names):
            names = [l.name for l in self if names(l)]
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, Iterable):
            raise TypeError(
                f"names: got {type(names).__name__}, expected names of layers, as ['{self.names()[0]}'], or a predicate"
            )
        chosen = {self[name].name for name in names}
        made = dataclasses.replace(self, layers=tuple(l for l in self if l.name in chosen))
        for l in made:
            if l.part is not None:
                others = [o.name for o in self if set(o.leaves) & set(l.leaves) and o.name not in chosen]
                if others:
                    raise ValueError(f"{l.name}: shares a leaf with {others}, expected all of them or none")
        return made

    @typed
    def remove(self, *names: str) -> Self:
        """All layers but these."""
        gone = {self[name].name for name in names}
        return self.select([l.name for l in self if l.name not in gone])

    @typed
    def add(self, layer: Layer) -> Self:
        """These layers and one more of the same function, in the order of their leaves."""
        doors.of_type(layer, Layer, "layer", "a Layer, as layers[name]")
        if layer.name in self.names():
            raise ValueError(f"{layer.name}: is there already, expected another layer")
        if any(n >= len(self.layout.shapes) for n in layer.leaves) or any(k >= len(self.uses) for k in layer.uses):
            raise ValueError(
                f"{layer.name}: is a layer of another function; make one with LayerCollection.from_function"
            )
        order = sorted((*self.layers, layer), key=lambda l: (min(l.leaves), l.part or (0, 0)))
        return dataclasses.replace(self, layers=tuple(order))

    @typed
    def merge(self, other: Layers) -> Self:
        """The layers of two collections of the same function, each once."""
        doors.of_type(other, Layers, "other", "a LayerCollection")
        if (self.uses, self.layout) != (other.uses, other.layout):
            raise ValueError(
                "merge: got layers of another function or of other params, expected two parts of one collection"
            )
        made = self
        for layer in other:
            if layer not in self.layers:
                made = made.add(layer)
        return made

    @typed
    def get_common_layers(self, other: Layers) -> Self:
        """Those of these layers that the other collection has too: same name, kind and shapes."""
        doors.of_type(other, Layers, "other", "a LayerCollection")
        theirs = {(l.name, l.kind, l.shapes) for l in other}
        return self.select([l.name for l in self if (l.name, l.kind, l.shapes) in theirs])

    @typed
    def leaf_of(self, use: int) -> int:
        """Number of a leaf of this use: it says the dtype and device of the tap."""
        return self.use_leaves[use]

    @functools.cached_property
    def use_leaves(self) -> tuple[int, ...]:
        """`leaf_of` each use."""
        return tuple(self.layout.paths.index(use.paths[0]) for use in self.uses)

    @functools.cached_property
    def tapped(self) -> tuple[int, ...]:
        """The uses whose (a, g) the layers with a rule need."""
        return tuple(sorted({k for layer in self.layers for k in layer.uses}))

    @functools.cached_property
    def exact(self) -> tuple[Layer, ...]:
        """The layers whose rows are those of their leaves: without a rule, or seen through."""
        return tuple(layer for layer in self.layers if layer.by_leaf)

    @property
    def through(self) -> tuple[Layer, ...]:
        """The layers that are seen through."""
        return tuple(layer for layer in self.layers if layer.family == THROUGH)

    @functools.cached_property
    def plain(self) -> set[bool]:
        """Empty once f was seen to make a call that is not known to be plain; no result depends on it."""
        return {True}

    @functools.cached_property
    def way(self) -> list[Way]:
        """The calls that f was last seen to make, if plain ones; an empty way if not.  No result depends on it."""
        return []

    @functools.cached_property
    def complete(self) -> bool:
        """Whether these layers are all of f's parameters."""
        leaves = {n for l in self for n in l.leaves}
        return len(leaves) == len(self.layout.paths) and sum(l.numel for l in self) == self.layout.numel

    @functools.cached_property
    def space(self) -> Layout:
        """Layout of the vectors that matrices on these layers act on: that of params, or `{path: leaf}` of some layers."""
        if self.complete:
            return self.layout
        name, shapes = names(self.layout.paths), self.layout.shapes
        return Layout.of({name[n]: torch.empty(shapes[n], device="meta") for n in self._numbers})

    @functools.cached_property
    def _numbers(self) -> list[int]:
        """The leaves of these layers, in the flat order of `space`."""
        found = {n for l in self for n in l.leaves}
        return sorted(found, key=None if self.complete else names(self.layout.paths).__getitem__)

    @functools.cached_property
    def view_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each view of a vector."""
        empty = self.space.unflatten([torch.empty(s, device="meta") for s in self.space.shapes])
        return {name: tuple(t.shape) for name, t in self.views(empty).items()}

    def __getstate__(self) -> dict[str, Any]:  # the fields alone: what is found of them is found again
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def views(self, v: Any) -> dict[str, Tensor]:
        """A vector of parameter space by layer: `[O, I]` (the bias a last column) where factored, `[n, 2]` of a scale with its
        shift, `[n]` elsewhere.

        ValueError that names the path for a v of another structure or shape.
        """
        return self._cut(trees.leaves(self.space.check(v, "v")))

    def _cut(self, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
        """`views` of the leaves of a vector, which are not looked at."""
        flat = dict(zip(self._numbers, leaves))
        return {l.name: l.matrix(flat) for l in self.layers}

    @typed
    def tree(self, views: dict[str, Tensor]) -> Any:
        """The vector of parameter space with these views: the way back from `views`."""
        if not isinstance(views, Mapping) or not all(isinstance(views.get(n), Tensor) for n in self.names()):
            got = sorted(map(str, views)) if isinstance(views, Mapping) else type(views).__name__
            raise TypeError(
                f"views: got {got}, expected a tensor for each of {list(self.names())}, as `views` gives them"
            )
        return self._joined(views)

    def _joined(self, views: dict[str, Tensor]) -> Any:
        """`tree` of views, which are not looked at."""
        whole: dict[int, Tensor] = {}
        parts: dict[int, list[tuple[int, Tensor]]] = {}
        for l in self.layers:
            found = l.scatter(views[l.name])
            if l.part is None:
                whole |= found
                continue
            for n, t in found.items():
                parts.setdefault(n, []).append((l.part[0], t))
        for n, rows in parts.items():
            whole[n] = torch.cat([t for _, t in sorted(rows, key=lambda pair: pair[0])])
        return self.space.unflatten([whole[n] for n in self._numbers])

    def restrict(self, v: Any) -> Any:
        """Of a vector of all parameters what belongs to these layers, a vector of `space`."""
        v = self.layout.check(v, "v")
        if self.complete:
            return v
        flat = trees.leaves(v)
        return self.space.unflatten([flat[n] for n in self._numbers])

    @typed
    def restricted(self, f: Callable[..., Tensor], params: Any) -> Callable[..., Tensor]:
        """f as a function of these layers' leaves, `{path: leaf}`, at the other leaves of params."""
        f = doors.function(f)
        self.layout.check(params, "params (of the LayerCollection)")
        flat, treedef = trees.flatten(params)

        def g(own: Any, x: Any) -> Tensor:
            whole = dict(enumerate(flat)) | dict(zip(self._numbers, trees.leaves(own)))
            return f(treedef.unflatten([whole[n] for n in range(len(flat))]), x)

        return g

    def numel(self) -> int:
        """Number of parameters."""
        return sum(l.numel for l in self)

    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @typed
    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(f"{name!r}: no such layer; expected one of {list(self.names())}")

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        head = ["layer", "block", "kind", "out x in", "uses", "bytes", "leaves", "note"]
        item = max((u.dtype.itemsize for u in self.uses if u.dtype is not None), default=4)
        body = []
        for l in self.layers:
            o, i = l.shape
            size = f"{o} x {i + (l.bias is not None)}" if l.kronecker else f"{l.numel} x {l.numel}"
            size = f"{l.form.groups} of {size}" if l.grouped else size
            leaves = ", ".join(path_str(self.layout.paths[n]) for n in l.leaves)
            block = {PRODUCT: "kronecker", THROUGH: "through", UNUSED: "none"}.get(l.family, "exact")
            kept = spoken_size(numbers_of(l) * item)
            body.append([l.name, block, l.kind, size, str(len(l.uses)), kept, leaves, l.note])
        widths = [max(len(row[c]) for row in [head, *body]) for c in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(w) if c in (4, 5) else cell.ljust(w) for c, (cell, w) in enumerate(zip(row, widths))
            ).rstrip()
            for row in [head, *body]
        ]
        total = spoken_size(sum(numbers_of(l) for l in self) * item)
        title = (
            f"LayerCollection: {len(self._numbers)} leaves, {self.numel():,} parameters, {len(self)} blocks, {total}"
        ) + (", columns one by one" if self.singly else "")
        return "\n".join([title, *lines])
