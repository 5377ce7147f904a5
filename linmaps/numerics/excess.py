"""What the eigenvalues of W [n, n] exceed a bound by, with derivative 0 where that is nothing."""

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
