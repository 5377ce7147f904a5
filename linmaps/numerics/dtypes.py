"""The dtypes to compute in: half precision in float32, small matrices in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from linmaps.checks.precision import HALF


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to factorize in: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in HALF else dtype


def working(t: Tensor) -> Tensor:
    """`t` in a dtype that factorizations know: half precision becomes float32."""
    return t.to(torch.float32) if t.dtype in HALF else t


def in_working(fn: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """fn of the arguments in a dtype that factorizations know, cast back."""
    result = fn(*(working(a) for a in args))
    return result.to(args[0].dtype) if args[0].dtype in HALF else result


def lowered(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t` in `dtype` if that is half precision; complex numbers stay, since torch computes with none of half precision.

    >>> lowered(torch.ones(1), torch.bfloat16).dtype, lowered(torch.ones(1) + 0j, torch.bfloat16).dtype
    (torch.bfloat16, torch.complex64)
    """
    return t.to(dtype) if dtype in HALF and not t.is_complex() else t


def restored(dtype: torch.dtype, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Results back in half precision where T was."""
    return [t.to(dtype) if dtype in HALF else t for t in tensors]


LARGEST_DOUBLE = {"cpu": 4096, "cuda": 2048}  # rows; elsewhere none: not every device has float64 (mps)


def precise(dtype: torch.dtype, device: torch.device, n: int) -> torch.dtype:
    """The dtype to decompose a matrix of n rows in: float64 for float32 and half precision while n is small, else
    `working_dtype`.

    A second moment of condition 1e9 keeps no digit of its small eigenvalues where it is decomposed in float32.
    """
    small = n <= LARGEST_DOUBLE.get(device.type, -1)
    return torch.float64 if small and dtype in (torch.float32, *HALF) else working_dtype(dtype)
