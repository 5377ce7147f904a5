"""Numbers from a generator, and fixed numbers that are not special."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def uniform(generator: torch.Generator, shape: tuple[int, ...], bound: float, dtype: torch.dtype) -> Tensor:
    """Independent entries from U(-bound, bound), on the generator's device."""
    return bound * (2 * torch.rand(shape, generator=generator, dtype=dtype, device=generator.device) - 1)


def normal(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Independent standard normal entries, on the generator's device."""
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


def generic(t: Tensor, *shape: int) -> Tensor:
    """Fixed numbers sin(sqrt(2) k^2), k = 1, 2, ..., in t's dtype, on its device: a direction that is not special.

    >>> generic(torch.zeros(()), 3, 2).shape
    torch.Size([3, 2])
    """
    k = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64, device=t.device)
    return (2**0.5 * k * k).sin().to(t.dtype).reshape(shape)


def middle(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Free parameters whose quantities are uniform over the middle nine tenths between their bounds."""
    return torch.logit(0.5 + uniform(generator, shape, 0.45, dtype))
