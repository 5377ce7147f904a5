"""One pass over data: what enters the two layers of each pair, and the gradient at the output of the second.

B batch, S positions, r p q as in `pairs`.  One forward and one backward per batch, for all pairs together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from fisher import LayerCollection
from fisher.axes import batch_size
from fisher.fold import batches
from fisher.fold import check_finite as check_data
from fisher.taps import layer_io
from growth.losses import Loss, gradient, per_sample
from growth.pairs import Activation, Pair, locate
from linmaps import trees
from linmaps.linalg import working

FEW = 32


@dataclasses.dataclass(frozen=True)
class View:
    """A pair on one batch, a row per sample and position: b2 `[B S, r]`, b1 `[B S, p]`, g `[B S, q]` = d loss / d a."""

    b2: Tensor
    b1: Tensor
    g: Tensor
    samples: int
    activation: Activation


def observe(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pairs: Sequence[Pair],
    loss: str | Loss,
    layers: LayerCollection | None,
    progress: bool,
    check_finite: bool,
) -> Iterator[tuple[str, list[View]]]:
    """For each batch that is not empty: its name and one View per pair; raises if there is none."""
    each = per_sample(loss)
    places: list[tuple[int, int, Activation]] | None = None
    for number, (x, target) in enumerate(batches(data, progress=progress, what="growth statistics")):
        samples = batch_size(x)
        if samples == 0:
            continue
        name = f"data: batch {number}"
        if check_finite:
            check_data({"x": x} if target is None else {"x": x, "target": target}, name)
        if layers is None:
            # examples go apart, so a few of them show how f uses its leaves
            layers = LayerCollection.from_function(f, params, trees.map(lambda t: t[:FEW], x))
        if places is None:
            places = [locate(layers, params, pair) for pair in pairs]
        uses = tuple(sorted({k for i, j, _ in places for k in (i, j)}))
        _, io = layer_io(f, params, x, layers, gradient(each, target), uses=uses)
        flat = {k: (working(a).flatten(0, 1), working(g[0]).flatten(0, 1)) for k, (a, g) in io.items()}
        views = [View(flat[i][0], flat[j][0], flat[j][1], samples, activation) for i, j, activation in places]
        yield name, views
    if places is None:
        raise ValueError("data: got only empty batches, expected at least one sample")


def constants(activation: Activation, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigma(0) and the one-sided derivatives of an elementwise map at 0, as scalar tensors of the dtype of `like`.

    >>> import torch
    >>> [t.item() for t in constants(torch.relu, torch.zeros(1))]
    [0.0, 1.0, 0.0]
    """
    tiny = torch.finfo(like.dtype).tiny ** 0.5
    at = torch.tensor([0.0, tiny, -tiny], dtype=like.dtype, device=like.device)
    value, slope = jvp(activation, (at,), (torch.ones_like(at),))  # type: ignore[misc]
    if value.shape != at.shape:
        raise ValueError(
            f"activation: returned shape {tuple(value.shape)} for input (3,), expected (3,); only elementwise maps may "
            "stand between the layers of a Pair"
        )
    return value[0], slope[1], slope[2]
