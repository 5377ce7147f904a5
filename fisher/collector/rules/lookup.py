"""Rules for tables: `F.embedding`, `W[index]`, `index_select`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.collector.rules import forms
from fisher.collector.rules.match import Lookup, Match, bind
from linmaps.trees import path_str


def embedding(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.embedding(index, W, padding_idx)`: one row of W for each index, and no use at all at padding_idx.

    ValueError for max_norm (it changes W in place) and scale_grad_by_freq (its gradient is no derivative).
    """
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    index, w, padding, max_norm, _, by_freq, _ = bind(names, args, kwargs, (None, None, None, None, 2.0, False, False))
    seen = view(w)
    if seen is None:
        return None
    for name, on in (("max_norm", max_norm is not None), ("scale_grad_by_freq", by_freq)):
        if on:
            raise ValueError(
                f"{path_str(seen.path)}: embedding with {name}, expected a plain table; what it does to the weight or to the "
                f"gradient is no function of the parameters: leave {name} out"
            )
    return _table(index, w, seen, padding)


def getitem(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`W[index]` with a tensor of ints."""
    w, index = args
    seen = view(w)
    return _table(index, w, seen, None) if seen is not None else None


def index_select(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`W.index_select(0, index)`."""
    w, dim, index = bind(("input", "dim", "index"), args, kwargs, (None, None, None))
    seen = view(w)
    return _table(index, w, seen, None) if seen is not None and dim == 0 else None


def _table(index: Any, w: Tensor, seen: Any, padding: int | None) -> Match | None:
    ints = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not ints or index.ndim == 0 or w.ndim != 2 or not seen.whole:
        return None
    return Match("embedding", seen, None, index, forms.Lookup(True, w.shape[0], padding))
