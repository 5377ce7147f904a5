"""Where the hidden units of a pair are in the params, leaf by leaf, and what a new one gets between the layers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from growth.checks.buffers import parameter
from growth.reading.along import FILL, along_leaves, columns
from growth.reading.layers import layers_of, leaves_between
from growth.reading.pairs import Pair
from linmaps import trees
from linmaps.trees.keys import Path


class Axis(NamedTuple):
    """An axis of a leaf on which hidden units are: `each` entries side by side belong to one; parts: stretches one behind the
    other, each of which has all units (two where a leaf holds gate and up).

    >>> import torch
    >>> Axis(("w",), 0, 1, 2).numbers(torch.tensor([0]), 6), Axis(("w",), 0, 1, 2).behind(torch.zeros(4), torch.ones(2))
    (tensor([0, 3]), tensor([0., 0., 1., 0., 0., 1.]))
    """

    path: Path
    axis: int
    each: int = 1
    parts: int = 1

    def numbers(self, units: Tensor, size: int) -> Tensor:
        """Indices of units on the axis, of this size, stretch by stretch."""
        own = spread(units, self.each)
        return own if self.parts == 1 else torch.cat([own + size // self.parts * n for n in range(self.parts)])

    def shape(self, leaf: Tensor, k: int) -> tuple[int, ...]:
        """The shape of the entries of k units."""
        return (*leaf.shape[: self.axis], k * self.each * self.parts, *leaf.shape[self.axis + 1 :])

    def behind(self, leaf: Tensor, more: Tensor) -> Tensor:
        """The leaf with the entries of new units, those of each stretch behind it."""
        old, new = (t.tensor_split(self.parts, self.axis) for t in (leaf, more))
        return torch.cat([t for both in zip(old, new) for t in both], self.axis)


def places(params: Any, pair: Pair) -> list[Axis]:
    """Where the hidden units of a pair are, leaf by leaf.

    >>> import torch
    >>> params = {"a": {"bias": torch.zeros(2), "weight": torch.zeros(2, 3)}, "b": {"weight": torch.zeros(1, 2)}}
    >>> [place[:3] for place in places(params, Pair("a", "b"))]
    [(('a', 'weight'), 0, 1), (('a', 'bias'), 0, 1), (('b', 'weight'), 1, 1)]
    """
    before, after = layers_of(params, pair)
    parts = 1 if before.half is None else 2
    found: list[Axis] = []
    for layer in before.all if before.gate is None or parts > 1 else (*before.all, before.gate):
        found.append(Axis(layer.weight_path, layer.axis(0), layer.rows, parts))
        found += [] if layer.bias_path is None else [Axis(layer.bias_path, 0, layer.rows, parts)]
    found.append(Axis(after.weight_path, after.axis(1), after.columns))
    return found + [Axis(path, 0, each) for path, _, _, each in vectors(params, pair)]


def spread(units: Tensor, each: int) -> Tensor:
    """Indices `[u]` of units as indices `[u each]` of their entries on an axis, unit by unit.

    >>> import torch
    >>> spread(torch.tensor([2, 0]), 3)
    tensor([6, 7, 8, 0, 1, 2])
    """
    return (units[:, None] * each + torch.arange(each, device=units.device)).flatten()


def unit_size(params: Any, pair: Pair) -> int:
    """How many parameters a new hidden unit of a pair brings, over all leaves; running statistics are none.

    >>> import torch
    >>> unit_size(
    ...     {"a": {"bias": torch.zeros(2), "weight": torch.zeros(2, 3)}, "b": {"weight": torch.zeros(1, 2)}},
    ...     Pair("a", "b"),
    ... )
    5
    """
    at = [(place, trees.get(params, place.path)) for place in places(params, pair)]
    return sum(math.prod(place.shape(leaf, 1)) for place, leaf in at if parameter(place.path, leaf))


def vectors(params: Any, pair: Pair) -> list[tuple[Path, Tensor, Tensor, int]]:
    """The leaves between the layers that grow along: of the norms, the depthwise convolution, the activation.

    With what a new unit gets there, and how many entries of the first axis belong to one unit.

    >>> import torch
    >>> params = {"a": torch.ones(2, 3), "s": torch.ones(2), "b": torch.ones(1, 2)}
    >>> [(path, float(entry), each) for path, _, entry, each in vectors(params, Pair("a", "b", along=("s",)))]
    [(('s',), 0.25, 1)]
    """
    before, after = layers_of(params, pair)
    found = [(path, leaf, entry, 1) for path, leaf, entry in leaves_between(params, pair)]
    for path, leaf in along_leaves(params, pair):
        each = columns(pair, path, leaf, before.weight.shape[0], after.columns, before.name)
        found.append((path, leaf, leaf.new_full((), FILL), each))
    return found
