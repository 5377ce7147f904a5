"""Sums, norms and roots of tensors, right where they are zero, and what a map without leaves computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_gradtrackingtensor,
    peek_interpreter_stack,
)
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd.forward_ad import unpack_dual

from linmaps import trees
from linmaps.checks.arguments import REAL
from linmaps.checks.precision import HALF
from linmaps.numerics.dtypes import precise, working
from linmaps.trees.graphs.tracing import traced

KINDS = (Tensor, torch.nn.Parameter)
DOUBLED = (torch.float32, *HALF)  # whose squares float64 holds

EXPONENTS = {  # integers of as many bits, and the bits of the exponent
    torch.float64: (torch.int64, 0x7FF0000000000000),
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}


def magnitudes(t: Tensor) -> Tensor:
    """The larger of the real and the imaginary part of each entry, in absolute value: finite where entries are."""
    return torch.view_as_real(t.resolve_conj()).abs().amax(-1) if t.is_complex() else t.abs()


def unit(size: Tensor) -> Tensor:
    """What to divide numbers of magnitude `size` by before they are squared: 1, or the size where squares might overflow.

    >>> unit(torch.tensor([2.0, 1e30]))
    tensor([1.0000e+00, 1.0000e+30])
    """
    return torch.where(size <= torch.finfo(size.dtype).max ** 0.25, 1.0, size)


def binade(t: Tensor) -> Tensor:
    """The power of two next to, and not above, the largest magnitude in t, a constant scalar; 1 for zeros.

    What is divided by it has squares that neither overflow nor vanish, and the same digits.

    >>> binade(torch.tensor([-3e30, 1.0])).log2(), binade(torch.zeros(1))
    (tensor(101.), tensor(1.))
    """
    sizes = magnitudes(t.detach())
    if not t.numel():
        return sizes.new_ones(())
    whole, exponent = EXPONENTS[sizes.dtype]  # torch.frexp says the same, but not of an empty ensemble
    size, tiny = sizes.amax(), torch.finfo(sizes.dtype).tiny
    power = (size.view(whole) & exponent).view(size.dtype).clamp(min=tiny)
    return torch.where((size > 0) & size.isfinite(), power, 1.0)


def homogeneous(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """fn(t) for a linear fn whose sums might overflow where their result does not: it sees t by a power of two.

    >>> homogeneous(lambda t: t.mean(0), torch.full((4,), 3e38))
    tensor(3.0000e+38)
    """
    scale = binade(t)
    return fn(t / scale) * scale


def frobenius(*residuals: Tensor) -> Tensor:
    """Norm of several residuals together, finite where it can be represented, with gradient 0 at 0.

    >>> import torch
    >>> frobenius(torch.tensor([3e30, 4e30]))
    tensor(5.0000e+30)
    """
    parts = [t for t in residuals if t.numel()]
    if not parts:
        return trees.norm(list(residuals))
    dtype = parts[0].dtype
    real = REAL.get(dtype, dtype)
    if real in DOUBLED and precise(real, parts[0].device, 1) == torch.float64:
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return trees.norm([t.to(wide) for t in parts]).to(real)  # no square overflows
    info = torch.finfo(dtype)
    largest = reduce(torch.maximum, [magnitudes(t.detach()).amax() for t in parts])
    scale = largest.clamp(info.tiny, info.max)  # has no derivative, as the norm does not depend on it
    return scale * trees.norm([t / scale for t in parts])


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


def ruled(rule: type[torch.autograd.Function], *args: Any) -> Any:
    """`rule.apply(*args)`; outside of transforms without torch's look at the signature, which takes longer than small sums."""
    if torch._C._are_functorch_transforms_active():
        return rule.apply(*args)
    return super(torch.autograd.Function, rule).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def forward_mode(*tensors: Tensor) -> bool:
    """Whether a derivative in forward mode may pass, which torch takes of the operations alone: the rule that an
    autograd.Function has for it knows nothing of another around it, and its numbers would be wrong without a word."""
    if torch.compiler.is_compiling():
        return True
    if any(level.key() == TransformType.Jvp for level in get_interpreter_stack() or ()):
        return True
    return any(unpack_dual(t).tangent is not None for t in tensors)


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
    return is_taped(t) and type(t) is Tensor and not t.requires_grad


def is_taped(*tensors: Tensor) -> bool:
    """Whether these are tensors of numbers on the CPU of which no derivative is asked but by autograd's own tape, and which
    nobody else sees.

    >>> t = torch.ones(1, requires_grad=True)
    >>> is_taped(t), is_plain(t), torch.func.grad(lambda t: t.sum() * is_taped(t))(torch.ones(1))
    (True, False, tensor([0.]))
    """
    if traced() or peek_interpreter_stack() is not None or _len_torch_dispatch_stack() or _len_torch_function_stack():
        return False
    return all(type(t) in KINDS and t.is_cpu and unpack_dual(t).tangent is None for t in tensors)


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
