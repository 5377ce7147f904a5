"""Sums, norms and roots of tensors, right where they are zero, and what a map without leaves computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import get_unwrapped, is_gradtrackingtensor, peek_interpreter_stack
from torch.autograd.forward_ad import unpack_dual

from linmaps import trees
from linmaps.numerics.dtypes import working
from linmaps.trees.graphs.tracing import traced


def magnitudes(t: Tensor) -> Tensor:
    """The larger of the real and the imaginary part of each entry, in absolute value: finite where entries are."""
    return torch.maximum(t.real.abs(), t.imag.abs()) if t.is_complex() else t.abs()


def unit(size: Tensor) -> Tensor:
    """What to divide numbers of magnitude `size` by before they are squared: 1, or the size where squares might overflow.

    >>> unit(torch.tensor([2.0, 1e30]))
    tensor([1.0000e+00, 1.0000e+30])
    """
    return torch.where(size <= torch.finfo(size.dtype).max ** 0.25, 1.0, size)


def frobenius(*residuals: Tensor) -> Tensor:
    """Norm of several residuals together, finite where it can be represented, with gradient 0 at 0.

    >>> import torch
    >>> frobenius(torch.tensor([3e30, 4e30]))
    tensor(5.0000e+30)
    """
    sizes = [magnitudes(t.detach()).amax() for t in residuals if t.numel()]
    if not sizes:
        return trees.norm(list(residuals))
    largest = reduce(torch.maximum, sizes)
    info = torch.finfo(largest.dtype)
    usual = (largest >= info.tiny**0.25) | (largest == 0)
    scale = torch.where(largest.isfinite(), unit(torch.where(usual, largest, 1.0)), 1.0)
    scale = torch.where(usual, scale, largest)  # has no derivative, as the norm does not depend on it
    return scale * trees.norm([t / scale for t in residuals])


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of one tensor or more."""
    return sum(parts[1:], parts[0])


def running(total: Any, part: Any) -> Any:
    """total + part, a sum over batches: kept in float32 at least, since half precision stops to grow.  None is zero.

    >>> import torch
    >>> running(None, torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    wide = trees.map(working, part)
    return wide if total is None else trees.add(total, wide)


def positive_root(squared: Tensor) -> Tensor:
    """sqrt with derivative 0 at 0; of what rounding made negative 0."""
    positive = ~(squared <= 0)  # true of NaN too
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def differentiated(t: Tensor) -> bool:
    """Whether a derivative may be asked of t: it requires grad, has a tangent, or a transform of torch.func wraps it, other
    than one that differentiates what t does not depend on."""
    if torch.compiler.is_compiling():  # torch.compile cannot ask
        return True
    levels = [t]
    while is_gradtrackingtensor(levels[-1]):
        levels.append(get_unwrapped(levels[-1]))
    if any(u.requires_grad for u in levels) or torch.func.debug_unwrap(levels[-1]) is not levels[-1]:
        return True
    return any(unpack_dual(u).tangent is not None for u in levels)


def is_plain(t: Tensor) -> bool:
    """Whether t is a tensor of numbers on the CPU of which nothing but its numbers is asked: no derivative, no member of an
    ensemble, no part of a graph.  What then is known of the numbers may save work, never change them.

    >>> is_plain(torch.ones(1)), torch.func.vmap(lambda t: torch.tensor(is_plain(t)).expand(()))(torch.ones(2))
    (True, tensor([False, False]))
    """
    return (
        type(t) is Tensor
        and t.device.type == "cpu"
        and not traced()
        and peek_interpreter_stack() is None
        and not _len_torch_function_stack()
        and not _len_torch_dispatch_stack()
        and not t.requires_grad
        and unpack_dual(t).tangent is None
    )


def eye_like(t: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """The identity [rows, columns] (square unless given) in t's dtype, on its device."""
    return torch.eye(rows, rows if columns is None else columns, dtype=t.dtype, device=t.device)


def by_planes(fn: Callable[[Any, Tensor], Tensor], params: Any, x: Tensor) -> Tensor:
    """fn(params, x), linear in x, for the real and the imaginary part of x in turn where the params are real."""
    if x.is_complex() and not any(leaf.is_complex() for leaf in trees.leaves(params)):
        real, imaginary = fn(params, x.real), fn(params, x.imag)
        return real + 1j * imaginary if real.is_complex() else torch.complex(real, imaginary)
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
