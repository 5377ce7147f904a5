"""Free parameters and the quantities between two bounds, or above one, that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor


def between(low: float, high: float, free: Tensor) -> Tensor:
    """`low + (high - low) sigmoid(free)`: free parameters to quantities between two bounds."""
    return low + (high - low) * free.sigmoid()


MARGIN = 1e-6


def unbetween(low: float, high: float, value: Tensor) -> Tensor:
    """Free parameters with `between(low, high, free) = value`, the value kept `MARGIN (high - low)` inside the bounds."""
    return torch.logit(((value - low) / (high - low)).clamp(MARGIN, 1 - MARGIN))


def relu(t: Tensor) -> Tensor:
    """max(t, 0) with derivative 1 at 0, so that a parameter projected onto 0 is not dead."""
    info = torch.finfo(t.dtype)
    return torch.nn.functional.threshold(t, -info.tiny * info.eps, 0.0)  # faster than where; no number lies between


def squashed(S: Tensor, size: Tensor) -> Tensor:
    """S times `asinh(size) / size`, which is S itself to first order; size: a norm of S, a scalar.

    >>> squashed(torch.full((1,), 1e4), torch.tensor(1e4))
    tensor([9.9035])
    """
    nonzero = size > 0
    safe = torch.where(nonzero, size, 1.0)
    return S * torch.where(nonzero, safe.asinh() / safe, 1.0)
