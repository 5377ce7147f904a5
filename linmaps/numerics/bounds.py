"""What maps with bounded spectra and bounded row sums share: excess of eigenvalues, nearest rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from linmaps.numerics.eigen import eigvals
from linmaps.numerics.numeric import eye_like
from linmaps.numerics.ranges import relu


def spectral_excess(W: Tensor, excess: Callable[[Tensor], Tensor], inside: float) -> Tensor:
    """`excess(eigenvalues of W)`, a scalar >= 0, with no derivative where it is 0: W may be defective there.

    inside: a number without excess.
    """
    out = ~(excess(eigvals(W.detach())) <= 0)  # true of NaN too
    return torch.where(out, excess(eigvals(torch.where(out, W, inside * eye_like(W, len(W))))), 0.0)


def radius_excess(W: Tensor, bound: float) -> Tensor:
    """`max(0, rho - bound)` for the spectral radius rho of W [n, n]."""
    return spectral_excess(W, lambda values: relu(modulus(values).amax() - bound), 0.0)


def modulus(z: Tensor) -> Tensor:
    """|z| with gradient 0 at 0."""
    nonzero = z != 0
    return torch.where(nonzero, torch.where(nonzero, z, 1.0).abs(), 0.0)


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
