"""What every map computes with: the dtype to work in, numbers from a generator, the norm of residuals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from linmaps import trees
from linmaps.checks.precision import HALF


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to factorize in: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in HALF else dtype


def working(t: Tensor) -> Tensor:
    """`t` in a dtype that factorizations know: half precision becomes float32."""
    return t.to(working_dtype(t.dtype))


def in_working(fn: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """fn of the arguments in a dtype that factorizations know, cast back."""
    result = fn(*(working(a) for a in args))
    return result.to(args[0].dtype) if args[0].dtype in HALF else result


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


def uniform(generator: torch.Generator, shape: tuple[int, ...], bound: float, dtype: torch.dtype) -> Tensor:
    """Independent entries from U(-bound, bound), on the generator's device."""
    return bound * (2 * torch.rand(shape, generator=generator, dtype=dtype, device=generator.device) - 1)


def normal(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Independent standard normal entries, on the generator's device."""
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


def frobenius(*residuals: Tensor) -> Tensor:
    """Norm of several residuals together, with gradient 0 at 0."""
    return trees.norm(list(residuals))


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of one tensor or more."""
    return sum(parts[1:], parts[0])


def positive_root(squared: Tensor) -> Tensor:
    """sqrt with derivative 0 at 0; of what rounding made negative 0."""
    positive = ~(squared <= 0)  # true of NaN too
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def differentiated(t: Tensor) -> bool:
    """Whether a derivative may be asked of t: it requires grad, a transform of torch.func wraps it, or it has a tangent."""
    return t.requires_grad or torch.func.debug_unwrap(t) is not t or unpack_dual(t).tangent is not None


def generic(t: Tensor, *shape: int) -> Tensor:
    """Fixed numbers sin(sqrt(2) k^2), k = 1, 2, ..., in t's dtype, on its device: a direction that is not special.

    >>> generic(torch.zeros(()), 3, 2).shape
    torch.Size([3, 2])
    """
    k = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64, device=t.device)
    return (2**0.5 * k * k).sin().to(t.dtype).reshape(shape)


def eye_like(t: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """The identity [rows, columns] (square unless given) in t's dtype, on its device."""
    return torch.eye(rows, rows if columns is None else columns, dtype=t.dtype, device=t.device)


def between(low: float, high: float, free: Tensor) -> Tensor:
    """`low + (high - low) sigmoid(free)`: free parameters to quantities between two bounds."""
    return low + (high - low) * free.sigmoid()


def middle(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Free parameters whose quantities are uniform over the middle nine tenths between their bounds."""
    return torch.logit(0.5 + uniform(generator, shape, 0.45, dtype))


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


def by_planes(fn: Callable[[Any, Tensor], Tensor], params: Any, x: Tensor) -> Tensor:
    """fn(params, x), linear in x, for the real and the imaginary part of x in turn where the params are real."""
    if x.is_complex() and not any(leaf.is_complex() for leaf in trees.leaves(params)):
        return torch.complex(fn(params, x.real), fn(params, x.imag))
    return fn(params, x)


def led(params: Mapping[str, Any], like: Tensor) -> Mapping[str, Any]:
    """Params; of a map without leaves, with one that says the dtype and the device of what it computes."""
    return params if trees.leaves(params) else {**params, "bias": like.new_empty((), dtype=like.dtype.to_real())}


def nan_where(given: Iterable[Tensor], result: Tensor) -> Tensor:
    """The result, or NaN if a given tensor has a NaN: what is constant, or clamped, does not say so by itself."""
    for t in given:
        result = torch.where(t.isnan().any(), torch.nan, result)
    return result


def norm_or(t: Tensor, otherwise: float = 1.0) -> Tensor:
    """Frobenius norm, with `otherwise` (and no gradient) in place of 0."""
    size = frobenius(t)
    return torch.where(size > 0, size, otherwise)
