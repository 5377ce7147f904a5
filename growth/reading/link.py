"""Links: at which positions of the hidden map `after` looks, so that dense and convolutional pairs obey one formula.

B batch, m hidden positions, X positions of `after`, e taps: a new unit A, Ω moves output x by sum over e of
Ω[:, e] (A · b2[y(x, e)]), where y(x, e) is the hidden position under tap e (none where it falls on padding).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import torch
from torch import Tensor

from fisher.collector.blocks.uses import Use
from fisher.collector.rules.forms import Convolution
from growth.reading.layers import Layer
from growth.reading.pairs import Pair
from linmaps.trees.graphs.tracing import outside

Taps = Literal["all", "centre"]
TAPS = ALL, CENTRE = get_args(Taps)
AT_ONCE = 2**24  # numbers of gathered rows held at a time


@dataclasses.dataclass(frozen=True)
class Link:
    """index `[X, taps]`: the hidden position under each tap, m where there is none; None: tap and position are one."""

    index: Tensor | None
    positions: int

    @property
    def taps(self) -> int:
        return 1 if self.index is None else self.index.shape[1]

    @property
    def bordered(self) -> bool:
        """Whether some tap falls on padding."""
        with outside():
            return self.index is not None and bool((self.index == self.positions).any())

    def own(self, b2: Tensor) -> Tensor:
        """Sum over b, x, e of b2 b2' at y(x, e), `[r, r]` for b2 `[B, m, r]`."""
        if self.index is None:
            rows = b2.flatten(0, 1)
            return rows.mT @ rows
        seen = torch.bincount(self.index.flatten(), minlength=self.positions + 1)[:-1].to(b2.dtype)
        return (b2 * seen[:, None]).flatten(0, 1).mT @ b2.flatten(0, 1)

    def cross(self, b2: Tensor, t: Tensor) -> Tensor:
        """Sum over b, x of b2 at y(x, e) times t at x, `[taps, r, c]` for t `[B, X, c]`."""
        if self.index is None:
            return (b2.flatten(0, 1).mT @ t.flatten(0, 1))[None]
        padded = torch.nn.functional.pad(b2, (0, 0, 0, 1))
        each = max(1, b2.shape[0] * self.index.shape[0] * b2.shape[2])
        parts = self.index.split(max(1, AT_ONCE // each), 1)
        return torch.cat([torch.einsum("bxer,bxc->erc", padded[:, part], t) for part in parts])

    def back(self, g: Tensor, fan_out: Tensor) -> Tensor:
        """Sum over x, e with y(x, e) = y of g[x] · Ω[:, e], `[B, m, k]` for g `[B, X, q]`, fan_out `[q taps, k]`."""
        if self.index is None:
            return g @ fan_out
        kernel = fan_out.unflatten(0, (g.shape[-1], self.taps))
        spread = torch.einsum("bxq,qek->bxek", g, kernel).flatten(1, 2)
        total = g.new_zeros(g.shape[0], self.positions + 1, fan_out.shape[1])
        return total.index_add(1, self.index.flatten(), spread)[:, :-1]


def linked(
    pair: Pair, before: Use, after: Use, layer: Layer, shape: tuple[int, ...], taps: Taps, device: torch.device
) -> Link:
    """The link of two uses; shape: of the hidden map, or the positions of a dense layer; taps: as in `statistics`."""
    m = math.prod(shape)
    if isinstance(after.form, Convolution):
        with outside():  # places, which depend on no argument
            arange = torch.arange(1, m + 1, dtype=torch.float64, device=device).reshape(1, 1, *shape)
            seen = after.form.inputs(arange).flatten(0, -2).long()  # [X, taps], 0 on padding
            index = torch.where(seen == 0, m, seen - 1)
        return Link(index[:, centre(layer.weight.shape[2:])][:, None] if taps == CENTRE else index, m)
    if not isinstance(before.form, Convolution) or layer.columns == 1:
        return Link(None, m)
    if layer.columns != m:
        raise ValueError(
            f"{pair}: {layer.name} takes {layer.columns} inputs per output of the layer before, expected {m}, the positions "
            "of its map (flattened); nothing but elementwise functions may stand between"
        )
    if taps == CENTRE:
        raise ValueError(f'{pair}: taps="centre", expected "all": a dense layer behind a flattened map has no centre')
    return Link(torch.arange(m, device=device)[None], m)


def centre(kernel: tuple[int, ...]) -> int:
    """The number of the centre tap, row-major."""
    number = 0
    for n in kernel:
        number = number * n + (n - 1) // 2
    return number
