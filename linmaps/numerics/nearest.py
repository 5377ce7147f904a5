"""Nearest points: rows moved onto l1 balls and simplices, numbers moved to a product of one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linmaps.numerics.ranges import relu


def onto_l1_ball(rows: Tensor, radius: float) -> Tensor:
    """Rows [m, k] moved to the nearest ones with `sum_j |entry_j| <= radius`.

    The nearest point is moved towards 0, and not past it, by the level at which the k largest entries have lost their
    excess over the radius, which is the largest of these levels over k.  No entry is above the radius then, so that what a
    row's largest exceeds it by is a part of the level, and taken away first: what is left is of the size of the radius,
    however large the row.

    >>> onto_l1_ball(torch.tensor([[3e30, -3e30, 1.0], [0.5, 0.0, 0.1]]), 1.0)
    tensor([[ 0.5000, -0.5000,  0.0000],
            [ 0.5000,  0.0000,  0.1000]])
    """
    sizes = rows.abs()
    most = sizes.detach().amax(1, keepdim=True)
    beyond = most > radius
    sizes = torch.where(beyond, sizes - most + radius, sizes)
    largest = sizes.sort(dim=1, descending=True).values.cumsum(1)
    count = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    level = ((largest - radius) / count).amax(1, keepdim=True)
    return rows.sgn() * relu(
        sizes - torch.where(beyond, level, relu(level))
    )  # not below 0, and at 0 with its derivative


def simplex(W: Tensor, total: Tensor | float = 1.0) -> Tensor:
    """Rows of probabilities, the nearest to W / total, total being a number or one for each row [rows, 1].

    The positive part after a shift of each row (Held, Wolfe and Crowder 1974); what is more than 1 below the largest entry
    of a row has no share, so that rows of any size are brought to entries from -2 to 0 first.

    >>> simplex(torch.tensor([[3e30, 3e30, -1.0], [-0.5, 0.0, 0.1]]))
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.4500, 0.5500]])
    """
    W = ((W - W.detach().amax(1, keepdim=True)) / total).clamp(min=-2)  # at -1 they would share in its derivative
    u = W.sort(dim=1, descending=True).values
    surplus = (u.cumsum(1) - 1) / torch.arange(1, W.shape[1] + 1, dtype=W.dtype, device=W.device)
    shift = torch.where(u > surplus, surplus, -torch.inf).amax(1, keepdim=True)
    return (W - shift).clamp(min=0)


def onto_product_one(s: Tensor) -> Tensor:
    """Positive numbers [n] of product 1 near s [n], descending, of which the last may be negative, -s_(n-1) at least.

    They are stationary points of the distance: s' (s' - s) = m is the same for all.  With b the last of them,

        m = b (b - s_n),    s'_i = (s_i + sqrt(s_i^2 + 4 m)) / 2,

    and the largest b whose product is 1 is found by bisection of log b; above s_n / 2 the product grows with b, and where
    it is too large there already, b is below.  Two steps of Newton's method give the derivatives.

    >>> onto_product_one(torch.tensor([2.0, 0.5])), onto_product_one(torch.tensor([0.0, 0.0]))
    (tensor([2.0000, 0.5000]), tensor([1., 1.]))
    """
    return logs_of_product_one(s).exp().to(s.dtype)


def logs_of_product_one(s: Tensor) -> Tensor:
    """Their logarithms, in float64: the last number may be too small for any dtype, and the squares of the first too large."""
    s = s.to(torch.float64)
    s0, last = s.detach(), s.detach()[-1]
    low = -(len(s) - 1) * ((s0[0].abs() + 0.5).log() + math.log(2))
    half = torch.where(last > 0, last / 2, 1.0).log()
    half = torch.where(last > 0, torch.maximum(half, low), low)
    below = _log_product(half, s0)[0] > 0
    high = torch.where(below, half, last.clamp(min=1).log())
    low = torch.where(below, low, half)
    for _ in range(64):
        t = (low + high) / 2
        much = _log_product(t, s0)[0] > 0
        low, high = torch.where(much, low, t), torch.where(much, t, high)
    value = t = (low + high) / 2
    for _ in range(2):
        total, slope, _ = _log_product(t, s)
        step = t - total / slope
        t = value + (step - step.detach())
    return torch.cat([_log_product(t, s)[2], t[None]])


def _log_product(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithm of the product for b = exp(t), its derivative in t, and the logarithms of all but the last number."""
    b, rest, last = t.exp(), s[:-1], s[-1]
    size = torch.maximum(rest, b.sqrt() * (b - last).abs().sqrt()).detach()  # so that no square overflows or vanishes
    size = torch.where(size > 0, size, 1.0)
    inside = (rest / size).square() + 4 * (b / size) * ((b - last) / size)
    positive = inside > 0
    root = torch.where(positive, size * torch.where(positive, inside, 1.0).sqrt(), 0.0)
    moved = (rest + root) / 2
    slope = 1 + (b / moved * ((2 * b - last) / torch.where(positive, root, 1.0))).sum()
    logs = moved.log()
    return t + logs.sum(), slope, logs
