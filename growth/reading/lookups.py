"""Lookups as layers: the inputs of an embedding are unit vectors, one per row of its table.

B batch, S positions, V rows of the table, p its columns (hidden units).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fisher.collector.blocks.uses import Use
from fisher.collector.rules.forms import Lookup
from growth.reading.layers import Layer
from linmaps.numerics.dtypes import working

MOST = 2**13  # rows of a table whose inputs have a second moment [V, V]
AT_ONCE = 2**28  # numbers of one batch of unit vectors


def inputs_of(use: Use, a: Tensor, layer: Layer) -> Tensor:
    """What enters a layer, `[B, S, r]`: as the collector has it, or of a lookup unit vectors for its indices, 0 at padding.

    Raises ValueError where these are too many numbers.
    """
    if not isinstance(use.form, Lookup):
        return working(a)
    rows = use.form.vocabulary
    if rows > MOST or math.prod(a.shape) * rows > AT_ONCE:
        raise ValueError(
            f"{layer.name}: a lookup of {tuple(a.shape)} indices in {rows} rows, whose inputs are unit vectors of that length "
            f"with a second moment {(rows, rows)}, expected at most {MOST} rows and {AT_ONCE} numbers in a batch; give smaller "
            "batches, number only the rows that occur, or grow without data: growth.widen, growth.initialize"
        )
    weight = working(layer.weight)
    return (a[..., None] == torch.arange(rows, device=a.device)).to(weight.dtype)


def output_of(use: Use, a: Tensor, layer: Layer) -> Tensor:
    """What a layer makes of its input without its bias, `[B, S, p]`: the product, or the rows of a table, padding included."""
    weight = working(layer.weight).flatten(1)
    if not isinstance(use.form, Lookup):
        return working(a) @ weight.mT
    padding = 0 if use.form.padding_idx is None else use.form.padding_idx
    return torch.cat([weight, weight[:, padding, None]], 1).mT[a]
