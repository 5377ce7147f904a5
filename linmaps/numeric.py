"""What every map computes with: the dtype to work in, numbers from a generator, the norm of residuals."""

from __future__ import annotations

import torch
from torch import Tensor

from linmaps import trees

HALF = (torch.float16, torch.bfloat16)


def working(dtype: torch.dtype) -> torch.dtype:
    """The dtype to factorize in: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in HALF else dtype


def uniform(generator: torch.Generator, shape: tuple[int, ...], bound: float, dtype: torch.dtype) -> Tensor:
    """Independent entries from U(-bound, bound), on the generator's device."""
    return bound * (2 * torch.rand(shape, generator=generator, dtype=dtype, device=generator.device) - 1)


def normal(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Independent standard normal entries, on the generator's device."""
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


def frobenius(*residuals: Tensor) -> Tensor:
    """Norm of several residuals together, with gradient 0 at 0."""
    return trees.norm(list(residuals))
