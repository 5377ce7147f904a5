"""One hidden unit more: does f take its sizes from params, and is a unit that nothing reads nothing to it?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import agreement
from growth.reading.calls import ungrown
from growth.reading.layers import layers_of
from growth.reading.leaves import places, vectors
from growth.reading.pairs import Pair
from linmaps import trees
from linmaps.checks import values


def with_unit(params: Any, pair: Pair, silent: Any = ()) -> Any:
    """One more hidden unit of generic weights, which a norm leaves as it is; zeros at the paths in silent."""
    fills = {path: entry for path, _, entry, _ in vectors(params, pair)}
    for place in places(params, pair):
        path, leaf = place.path, trees.get(params, place.path)
        shape = place.shape(leaf, 1)
        generic = torch.cos(1.7 * torch.arange(1, math.prod(shape) + 1, device=leaf.device)).reshape(shape)
        size = max(1, math.prod(leaf.shape[1:])) ** -0.5
        more = fills[path].expand(shape) if path in fills else (size * generic).to(leaf.dtype)
        more = torch.zeros_like(more) if path in silent else more
        params = trees.replace(params, path, place.behind(leaf, more))
    return params


def check_silent(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any, old: Tensor) -> None:
    """Raise a ValueError if one more hidden unit whose outgoing weights are zero changes f: it reads the width from params."""
    silent = with_unit(params, pair, {layer.weight_path for layer in layers_of(params, pair)[1].all})
    try:
        now = f(silent, x)
    except Exception as error:  # a function of one width: growth itself says so
        if (words := ungrown(f, params, pair, x)) is not None:
            raise ValueError(words) from error
        return
    a, b = (values(t) for t in agreement.side_by_side(old, now))
    if a is None or b is None or not a.numel() or not bool((a.isfinite() & b.isfinite()).all()):
        return
    size = float(a.abs().amax())
    gap = float((a - b).abs().amax()) if a.shape == b.shape else math.inf
    if gap > agreement.tolerance([a.dtype]) * size and gap > agreement.tolerance_of(f, params, x) * size:
        raise ValueError(
            f"{pair}: f changes by up to {gap:.3g}, at a size of {size:.3g}, with one more hidden unit whose outgoing weights "
            "are zero, expected no change; it reads the width from params (a factor 1/sqrt(width), a mean over units): keep "
            "such a factor constant, as a number that f closes over"
        )
