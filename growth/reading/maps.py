"""What stands between two layers over positions: pooling and padding of each unit's map by itself.

B batch, C channels (units, or the inputs of `before`), m hidden positions, X positions behind the pooling.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vjp

from fisher.collector.calls.chains import ELEMENTWISE, LINEAR, Chain, Step, run
from linmaps.trees.graphs.tracing import outside

AT_ONCE = 2**24  # shares of positions held at a time


@dataclasses.dataclass(frozen=True)
class Passage:
    """The calls between the layers, some of which join positions; shape: of the hidden map; own: the calls as they are to
    the units there are, None where that is the same.

    `values` are what f computes, for a map of hidden units; `inputs` is the linear map of positions that the closed forms
    see in place of it: exact for averages and padding, for the largest of a window the positions that the units there are
    choose now.
    """

    chain: Chain
    shape: tuple[int, ...]
    own: Chain | None = None

    def values(self, z: Tensor) -> Tensor:
        """What reaches the layer after, `[B, X, C]`, for outputs z `[B, m, C]` of the layer before."""
        return _rows(self.chain(_maps(z, self.shape)))

    def after(self, like: Tensor) -> tuple[int, ...]:
        """The shape of the map behind."""
        return tuple(self.chain(torch.zeros(1, 1, *self.shape, dtype=like.dtype, device=like.device)).shape[2:])

    def inputs(self, a: Tensor, z: Tensor) -> Tensor:
        """a `[B, m, C]` at the positions behind, `[B, X, C]`; z `[B, m, p]`: outputs of the layer before."""
        h, moved = _maps(z, self.shape), _maps(a, self.shape)
        for step in (self.own or self.chain).steps:
            if step[0] not in ELEMENTWISE:
                moved = run(step, moved) if step[0] in LINEAR else _chosen(step, h, moved)
            h = run(step, h)
        return _rows(moved)

    def slope(self, u: Tensor, w: Tensor) -> Tensor:
        """Sum over b and X of w times the one-sided derivative of the passage at 0 along u.

        `[C]`; u `[B, m, C]`, w `[B, X, C]`.
        """
        tiny = torch.finfo(u.dtype).tiny ** 0.25
        largest = u.detach().abs().amax().clamp_min(torch.finfo(u.dtype).tiny ** 0.5) if u.numel() else u.sum()
        start = u.detach() * (tiny / largest)
        back: Callable[[Tensor], tuple[Tensor]] = vjp(self.values, start)[1]
        return (back(w)[0] * u).sum((0, 1))

    def even(self, like: Tensor) -> bool:
        """Whether a constant map stays constant: no padding with zeros is averaged in."""
        with outside():  # numbers of no argument
            ones = torch.ones(1, 1, *self.shape, dtype=like.dtype, device=like.device)
            for step in self.chain.steps:
                ones = ones if step[0] in ELEMENTWISE else run(step, ones)
            return bool((ones - ones.flatten()[0]).abs().amax() < 1e-6) if ones.numel() else True


def _maps(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[B, m, C]` as maps `[B, C, *shape]`."""
    return rows.mT.reshape(rows.shape[0], rows.shape[2], *shape)


def _rows(maps: Tensor) -> Tensor:
    """`[B, C, *space]` as rows `[B, X, C]`; one row where space is gone."""
    return maps.reshape(*maps.shape[:2], -1).mT


def _chosen(step: Step, h: Tensor, a: Tensor) -> Tensor:
    """a `[B, r, *space]` at the positions that a pooling of the maps h `[B, p, *space]` chooses, the mean over their units; of
    a pooling by powers at all positions of a window alike, times its value for ones."""
    name, args, kwargs = step
    own, options = name.rpartition(".")[2], dict(kwargs)
    if own.startswith("lp_"):
        options.pop("norm_type", None)
        average = getattr(torch.nn.functional, f"avg_{own[3:]}")
        return average(a, *args[1:], **options) * run(step, torch.ones_like(a[:1, :1]))
    if own in ("amax", "max"):
        dim = options["dim"] if "dim" in options else args[0]
        index, behind = _largest(h, dim if isinstance(dim, tuple) else (dim,)), run(step, h).shape[2:]
    else:
        pool = getattr(torch.nn.functional, own)
        found = pool(h, *args, **{**options, "return_indices": True})[1]
        index, behind = found.flatten(2), found.shape[2:]
    size = math.prod(h.shape[2:])
    each = max(1, AT_ONCE // max(1, index.shape[2] * size))
    parts = [_shared(i, b, size) for i, b in zip(index.split(each), a.flatten(2).split(each))]
    moved = torch.cat(parts) if parts else a.flatten(2)[..., :0]
    return moved.reshape(*moved.shape[:2], *behind)


def _largest(h: Tensor, axes: tuple[int, ...]) -> Tensor:
    """At which position of maps `[B, p, *space]` the largest entries over these axes are, `[B, p, X]`."""
    last = tuple(range(-len(axes), 0))
    together = lambda t: t.movedim(axes, last).flatten(-len(axes))
    size = math.prod(h.shape[2:])
    where = together(torch.arange(size, device=h.device).reshape(1, 1, *h.shape[2:]))
    seen = together(h)
    return where.expand_as(seen).gather(-1, seen.argmax(-1, keepdim=True)).flatten(2)


def _shared(index: Tensor, a: Tensor, size: int) -> Tensor:
    """a `[B, r, m]` at the positions `[B, p, X]` of each of p units, their mean `[B, r, X]`."""
    one = a.new_full((), 1 / index.shape[1]).expand_as(index.mT)
    share = a.new_zeros(len(index), index.shape[2], size).scatter_add(2, index.mT, one)  # [B, X, m]
    return torch.einsum("bxy,bry->brx", share, a)
