"""Nearest points: rows moved onto l1 balls and simplices."""

from __future__ import annotations

import torch
from torch import Tensor

from linmaps.numerics.ranges import relu


def shrunk(rows: Tensor, level: Tensor) -> Tensor:
    """Entries moved towards 0 by `level` [rows, 1], and not past it."""
    return rows.sgn() * relu(rows.abs() - level)


def onto_l1_ball(rows: Tensor, radius: float) -> Tensor:
    """Rows [m, k] moved to the nearest ones with `sum_j |entry_j| <= radius`.

    The nearest point is `shrunk` by the level at which the k largest entries have lost their excess over the radius,
    which is the largest of these levels over k.
    """
    largest = rows.abs().sort(dim=1, descending=True).values.cumsum(1)
    count = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    return shrunk(rows, relu(((largest - radius) / count).amax(1, keepdim=True)))


def simplex(W: Tensor) -> Tensor:
    """The nearest rows of probabilities: the positive part after a shift of each row (Held, Wolfe and Crowder 1974)."""
    u = W.sort(dim=1, descending=True).values
    surplus = (u.cumsum(1) - 1) / torch.arange(1, W.shape[1] + 1, dtype=W.dtype, device=W.device)
    shift = torch.where(u > surplus, surplus, -torch.inf).amax(1, keepdim=True)
    return (W - shift).clamp(min=0)
