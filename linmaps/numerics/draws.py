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


def hashed_normal(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal numbers in float64, those of each place a hash of the seed and the place: no generator, no random call.

    The hash is lowbias32 of Wellons, twice; the normal numbers are those of Box and Muller.

    >>> hashed_normal(0, (2,), torch.device("cpu")).shape
    torch.Size([2])
    """
    place = torch.arange(2 * math.prod(shape), device=device)
    bits = _hashed(_hashed(place) ^ _hashed(torch.full_like(place, seed)))
    u = ((bits.to(torch.float64) + 0.5) / 2**32).reshape(2, *shape)
    return (-2 * u[0].log()).sqrt() * (2 * math.pi * u[1]).cos()


def _hashed(x: Tensor) -> Tensor:
    """Numbers of 32 bits in int64 to such numbers."""
    low = 2**32 - 1
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
    x = ((x ^ (x >> 15)) * 0x846CA68B) & low
    return x ^ (x >> 16)
