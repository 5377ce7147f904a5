"""Params in which some hidden units (or heads) lead nowhere: their outgoing weights are zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growth.reading.layers import layers_of
from growth.reading.pairs import Pair
from growth.reading.transformers.heads import Heads, head_axes
from linmaps import trees


def zeroed(params: Any, pair: Pair | Heads, units: Tensor, p: int) -> Any:
    """params with zeros in the columns of `after` (of out) that belong to `units`, indices among p.

    >>> zeroed({"a": torch.ones(2, 1), "b": torch.ones(1, 2)}, Pair("a", "b"), torch.tensor([1]), 2)["b"]
    tensor([[1., 0.]])
    """
    gone = torch.zeros(p, dtype=units.dtype, device=units.device).index_add(0, units, torch.ones_like(units)) > 0
    if isinstance(pair, Pair):
        after = layers_of(params, pair)[1]
        mask = gone.repeat_interleave(after.columns).reshape(-1, *[1] * (after.weight.ndim - 2))
        return after.put(params, torch.where(mask, torch.zeros_like(after.weight), after.weight))
    for a in head_axes(params, pair):
        leaf = trees.get(params, a.path)
        if any(s.role == "out" for s in a.segments) and not a.bias:
            each = [gone.repeat_interleave(s.heads // p)[:, None, None] for s in a.segments]
            new = [torch.where(m, torch.zeros_like(t), t) for m, t in zip(each, a.split(leaf))]
            params = trees.replace(params, a.path, a.joined(new))
    return params
