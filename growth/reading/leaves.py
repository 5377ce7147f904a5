"""Where the hidden units of a pair are in the params, leaf by leaf, and what a new one gets between the layers."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from growth.reading.along import FILL, along_leaves, columns
from growth.reading.layers import layers_of, leaves_between
from growth.reading.pairs import Pair
from linmaps import trees
from linmaps.trees.keys import Path


def places(params: Any, pair: Pair) -> list[tuple[Path, int, int]]:
    """Where the hidden units of a pair are: (path of a leaf, axis, how many entries of the axis belong to one unit).

    >>> import torch
    >>> params = {"a": {"bias": torch.zeros(2), "weight": torch.zeros(2, 3)}, "b": {"weight": torch.zeros(1, 2)}}
    >>> places(params, Pair("a", "b"))
    [(('a', 'weight'), 0, 1), (('a', 'bias'), 0, 1), (('b', 'weight'), 1, 1)]
    """
    before, after = layers_of(params, pair)
    rows = before.all if before.gate is None else (*before.all, before.gate)
    found: list[tuple[Path, int, int]] = []
    for layer in rows:
        found.append((layer.weight_path, layer.axis(0), 1))
        found += [] if layer.bias_path is None else [(layer.bias_path, 0, 1)]
    found.append((after.weight_path, after.axis(1), after.columns))
    return found + [(path, 0, each) for path, _, _, each in vectors(params, pair)]


def unit_size(params: Any, pair: Pair) -> int:
    """How many parameters a new hidden unit of a pair brings, over all leaves.

    >>> import torch
    >>> unit_size(
    ...     {"a": {"bias": torch.zeros(2), "weight": torch.zeros(2, 3)}, "b": {"weight": torch.zeros(1, 2)}},
    ...     Pair("a", "b"),
    ... )
    5
    """
    found = ((trees.get(params, path).shape, axis, columns) for path, axis, columns in places(params, pair))
    return sum(columns * math.prod((*shape[:axis], *shape[axis + 1 :])) for shape, axis, columns in found)


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
