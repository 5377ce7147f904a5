"""Moves: how the entries of each leaf of params go over into resized params, by growth or by pruning."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from growth.reading.pairs import Pair
from growth.reading.transformers.heads import Heads
from growth.surgery.head_places import Attention, Places, check_first, halved, listed, placed
from growth.surgery.pruning import Units, count_of, partition
from growth.surgery.resize import entries
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Move:
    """old: shape of a leaf; new: its shape afterwards; take: by axis, which of the old entries are kept, in order.

    put: by axis, where the old entries go.  Without either the old entries come first, and new ones behind them.
    """

    old: Shape
    new: Shape
    take: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    put: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def __call__(self, t: Tensor, value: float = 0) -> Tensor:
        """A leaf moved, new entries being `value`; a new tensor in any case, since optimizers change their state in place."""
        for axis, index in self.take.items():
            t = t.index_select(axis, index.to(t.device))
        for axis, places in self.put.items():
            shape = (*t.shape[:axis], self.new[axis], *t.shape[axis + 1 :])
            t = t.new_full(shape, value).index_copy(axis, torch.tensor(places, device=t.device), t)
        if tuple(t.shape) == self.new:
            return t if self.take or self.put else t.clone()
        return pad(t, [n for a, b in zip(reversed(t.shape), reversed(self.new)) for n in (0, b - a)], value=value)

    def filled(self, t: Tensor) -> Tensor:
        """A leaf moved, new entries being the mean of the old ones."""
        new = self(torch.ones_like(t)) == 0
        return torch.where(new, t.sum() / max(1, t.numel()), self(t))

    def same(self, other: Move) -> bool:
        return self.new == other.new and self.take.keys() == other.take.keys() and self.put == other.put

    def lifted(self, lead: Shape) -> Move:
        """The move of a stack of such leaves, with these axes in front."""
        take = {axis + len(lead): index for axis, index in self.take.items()}
        put = {axis + len(lead): places for axis, places in self.put.items()}
        return Move((*lead, *self.old), (*lead, *self.new), take, put)

    def of(self, axes: slice) -> Move:
        """The move of these axes alone."""
        kept = range(len(self.old))[axes]
        take, put = ({a - kept.start: index for a, index in by.items() if a in kept} for by in (self.take, self.put))
        return Move(self.old[axes], self.new[axes], take, put)  # type: ignore[arg-type]

    @property
    def turned(self) -> Move:
        """The move of such a leaf with its first two axes the other way round."""
        over = lambda axis: 1 - axis if axis < 2 else axis
        shape = lambda s: (s[1], s[0], *s[2:])
        take, put = ({over(a): index for a, index in by.items()} for by in (self.take, self.put))
        return Move(shape(self.old), shape(self.new), take, put)  # type: ignore[arg-type]

    @property
    def still(self) -> bool:
        """Whether nothing moves."""
        return self.old == self.new and not self.take and not self.put

    @property
    def numel(self) -> int:
        return math.prod(self.old)


@dataclasses.dataclass(frozen=True)
class Moves:
    """The move of each leaf of params, in the leaf order of optree; inserted: their order of insertion in dicts.

    params: the old ones.  pruned: the hidden units (or heads) that go, with their pair.
    """

    params: Any
    leaves: dict[Path, Move]
    pruned: tuple[Pair | Heads, Tensor] | None = None

    @property
    def inserted(self) -> list[Path]:
        return _inserted(self.params, ())

    def tree(self, v: Any, value: float = 0) -> Any:
        """A tree like params moved, new entries being `value`."""
        flat, treedef = trees.flatten(v)
        return treedef.unflatten([move(t, value) for t, move in zip(flat, self.leaves.values())])


def growing(params: Any, grown: Any, heads: Attention = None, *, asked: bool = True) -> Moves:
    """The moves of a growth; raises ValueError for other leaves and for leaves that are smaller.

    heads: the attention layers whose heads are wider or more, and the packed gated pairs, since there new entries do not come
    last; an empty list: all come last.  asked: whether the values are asked if all others do; of an empty list they are not.
    """
    trees.check_like(grown, params, "grown", shapes=False)
    found = {}
    for path, old, new in zip(trees.paths(params), trees.leaves(params), trees.leaves(grown)):
        a, b = tuple(old.shape), tuple(new.shape)
        if len(a) != len(b) or any(m > n for m, n in zip(a, b)):
            raise ValueError(
                f"grown: {path_str(path)} has shape {b}, expected at least {a}; give grow(params, ...), or after prune use "
                "prune_like"
            )
        found[path] = Move(a, b)
    put: Places = {}
    for layer in listed(heads):
        put |= placed(params, grown, layer) if isinstance(layer, Heads) else halved(params, grown, layer)
    for (path, k), places in put.items():
        old = found[path]
        found[path] = dataclasses.replace(old, put={**old.put, len(old.old) + k: places})
    for (path, move), t, new in zip(found.items(), trees.leaves(params), trees.leaves(grown)):
        if asked and not move.put and (heads is None or listed(heads)):
            check_first(t, new, path)
    return Moves(params, found)


def shrinking(params: Any, pair: Pair | Heads, units: Units) -> Moves:
    """The moves of `prune(params, pair, units)`."""
    p, device = count_of(params, pair)
    dropped, kept = partition(units, p, device)
    found = {path: Move(tuple(t.shape), tuple(t.shape)) for path, t in zip(trees.paths(params), trees.leaves(params))}
    for path, axis, take in entries(params, pair, kept) if dropped.shape[0] else []:
        old = found[path]
        new = (*old.new[:axis], take.shape[0], *old.new[axis + 1 :])
        found[path] = Move(old.old, new, old.take | {axis: take})
    return Moves(params, found, (pair, dropped))


def _inserted(node: Any, path: Path) -> list[Path]:
    """Paths of the leaves in the order of insertion of dicts."""
    level = trees.one_level(node)
    if level is None:
        return [] if node is None else [path]
    return [p for k, c in zip(level[0], level[1]) for p in _inserted(c, (*path, k))]
