"""Sources: where the entries of a matrix over resized params come from.

A source says for each new row (or column, entry) of a layer's view `[O, I]` which old one it is, -1 for none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisher.collector.collection import LayerCollection
from growth.carry.layouts import moves_of
from growth.surgery.moves import Moves
from linmaps import trees
from linmaps.trees import Layout

CPU = "cpu"  # of numbers of entries, which go where the entries are


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the entries of a new view come from: rows `[O]`, columns `[I]`, entries `[O I]`; changed: whether any did."""

    rows: Tensor
    columns: Tensor
    entries: Tensor
    changed: bool


def flat_source(layout: Layout, moves: Moves) -> Tensor:
    """The source of each entry of the flat order."""
    parts = zip(moves_of(layout, moves), layout.sizes, layout.offsets)
    found = [m(torch.arange(n, device=CPU).reshape(m.old) + start, -1).flatten() for m, n, start in parts]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=CPU)


def layer_sources(old: LayerCollection, new: LayerCollection, moves: Moves) -> dict[str, Source]:
    """For each layer the sources of its new view: views of numbers that went the way of the leaves."""
    shapes = {name: t.shape for name, t in old.views(_empty(old.space)).items()}
    numbers = old.tree({name: torch.arange(s.numel(), device=CPU).reshape(s) for name, s in shapes.items()})
    flat = [m(t, -1) for t, m in zip(trees.leaves(numbers), moves_of(old.space, moves))]
    views = new.views(new.space.unflatten(flat))
    changed = {leaf for leaf, m in enumerate(moves.leaves.values()) if not m.still}
    found = {}
    for layer in old:
        view = views[layer.name]
        touched = bool(changed & set(layer.leaves))
        if view.ndim == 2:
            wide = pad(view, (0, 1, 0, 1), value=-1)  # amax needs an entry
            rows, columns = _quotient(wide, shapes[layer.name][1]).amax(1)[:-1], _rest(wide, shapes[layer.name][1])
            found[layer.name] = Source(rows, columns.amax(0)[:-1], view.flatten(), touched)
        else:
            found[layer.name] = Source(view.flatten(), view.flatten(), view.flatten(), touched)
    return found


def _quotient(numbers: Tensor, n: int) -> Tensor:
    return torch.where(numbers < 0, -1, numbers // max(1, n))


def _rest(numbers: Tensor, n: int) -> Tensor:
    return torch.where(numbers < 0, -1, numbers % max(1, n))


def _empty(layout: Layout) -> Any:
    return layout.unflatten([torch.empty(s, device="meta") for s in layout.shapes])
