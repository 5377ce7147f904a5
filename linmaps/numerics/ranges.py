"""Free parameters and the quantities between two bounds, or above one, that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from linmaps.checks import values
from linmaps.numerics.numeric import frobenius


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
    safe = size.clamp(min=torch.finfo(size.dtype).tiny ** 0.5)  # where the quotient is 1, and its slope nothing
    return S * (safe.asinh() / safe)


def limited(S: Tensor, limit: float) -> Tensor:
    """S, or S `limit / |S|` where its norm is above the limit.

    >>> limited(torch.full((4,), 3e38), 2.0)
    tensor([1., 1., 1., 1.])
    """
    if within(S, limit):
        return S
    scale = S.detach().abs().amax().clamp(min=1.0)  # by which the norm is a float, and what its derivative sums up
    S = S / scale
    return S * (limit / frobenius(S).clamp(min=limit / scale))


def within(S: Tensor, limit: float) -> bool:
    """Whether the norm is at most the limit, of each member of an ensemble, where this can be told at once: a factor of 1, and
    its graph, are spared."""
    known = values(S)
    if known is None or not known.is_cpu:
        return False
    return not known.numel() or float(torch.linalg.vector_norm(known, torch.inf)) * known.numel() ** 0.5 <= limit


def above(low: float, free: Tensor) -> Tensor:
    """`low + sqrt(1 + q^2) - 1`, q = 1 + free: free parameters to quantities of at least `low`, which grow as |free|.

    It is smooth, reaches `low` itself, and parameters of zero are no special point.

    >>> above(0.5, torch.tensor([-1.0, -1e3, 1e3]))
    tensor([5.0000e-01, 9.9850e+02, 1.0005e+03])
    """
    q = 1 + free
    return low + q * (q / (1 + torch.hypot(q, torch.ones_like(q))))


def unabove(low: float, value: Tensor) -> Tensor:
    """Free parameters with `above(low, free) = value`, a value below `low` counting as `low`.

    At `low` itself there is no gradient, so values exceed it by rounding at least.
    """
    size = value.detach().abs()
    size = torch.where(value >= low, size, size.clamp(max=1))  # the rounding of what it becomes, not of what it was
    least = 4 * torch.finfo(value.dtype).eps * (abs(low) + size)
    excess = torch.maximum(value - low, least)
    return excess.sqrt() * (excess + 2).sqrt() - 1
