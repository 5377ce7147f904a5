"""Agreement of numbers: equal to rounding, zero to rounding, raw under every transform.  Looked at only to raise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.func import debug_unwrap
from torch.overrides import TorchFunctionMode

from linmaps.checks import values

AT_ONCE = 2**18  # differences held at a time


def raw(t: Tensor) -> Tensor:
    """The values under every transform."""
    return debug_unwrap(t, recurse=True).detach()


def generic(y: Tensor) -> Tensor:
    """A cotangent of y that nothing is orthogonal to by accident."""
    return torch.cos(1.7 * torch.arange(y.numel(), device=y.device)).reshape(y.shape).to(y.dtype)


def rounding(tensors: list[Tensor]) -> float:
    """What rounding may leave of a zero beside these numbers."""
    sizes = [(largest(t), t.dtype) for t in tensors if t.is_floating_point() and t.numel()]
    return max((100 * torch.finfo(dtype).eps * size for size, dtype in sizes), default=0.0)


def largest(t: Tensor) -> float:
    """The largest absolute value of the finite entries, raw, in one pass where all are finite; of none 0."""
    size = extent(t)
    return size if math.isfinite(size) else extent(raw(t).nan_to_num(0.0, 0.0, 0.0))


def extent(t: Tensor) -> float:
    """The largest absolute value, raw and without a copy, NaN where there is one; of none, or unknown, 0."""
    found = values(t)
    if found is None or not found.numel():
        return 0.0
    low, high = torch.stack(torch.aminmax(found)).tolist()
    return max(-low, high) if low == low else low


def gap(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference of raw values, NaN where there is one; a part at a time."""
    a, b = torch.broadcast_tensors(*(torch.atleast_1d(raw(t)) for t in side_by_side(one, other)))
    rows = max(1, AT_ONCE // max(1, a[:1].numel()))
    found = [extent(s - t) for s, t in zip(a.split(rows), b.split(rows))]
    return max(found, default=0.0) if all(v == v for v in found) else math.nan


def side_by_side(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors whose raw values lie entry by entry: each transform may have put its axis elsewhere in each of them.

    >>> import torch
    >>> seen = []
    >>> look = lambda a, b: (seen.extend(raw(t).shape for t in side_by_side(a, b)), a)[1]
    >>> _ = torch.func.vmap(look, (0, 1))(torch.ones(2, 3), torch.ones(3, 2))
    >>> seen
    [torch.Size([2, 3]), torch.Size([2, 3])]
    """
    first = tensors[0]
    if any(t.shape != first.shape for t in tensors) or all(raw(t).ndim == t.ndim for t in tensors):
        return tensors
    stacked = torch.stack([t.detach().to(first) for t in tensors])
    return tuple(one.to(t.dtype) for one, t in zip(stacked.unbind(), tensors))


def repeats(one: Tensor, other: Tensor, floor: float = 0.0) -> bool:
    """Whether two results of one computation differ by rounding at most (threads and atomics sum in any order)."""
    a, b = (values(t) for t in side_by_side(one, other))
    if a is None or b is None:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):  # one pass and no copy, and nearly always so
        return True
    if not (a.is_floating_point() or a.is_complex()):
        return False
    finite = a.isfinite() & b.isfinite()
    scale = torch.where(finite, b, torch.zeros_like(b)).abs().amax() if b.numel() else 0.0
    tol = min(0.1, 1000 * torch.finfo(a.dtype).eps)
    same = (a == b) | (a.isnan() & b.isnan()) | (finite & ((a - b).abs() <= tol * scale + floor))
    return bool(same.all())


class _Dtypes(TorchFunctionMode):
    """The floating dtypes that calls return."""

    def __init__(self) -> None:
        super().__init__()
        self.met: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.met.add(out.dtype)
        return out


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """What rounding may do, relatively: half the digits of the coarsest of these dtypes, of half precision all but four bits."""
    eps = max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=0.0)
    return min(10 * eps**0.5, 16 * eps) if eps > 1e-4 else 10 * eps**0.5


def tolerance_of(f: Callable[..., Any], *args: Any) -> float:
    """The same of a function that may compute in another precision than that of its arguments, as under autocast."""
    with _Dtypes() as seen:
        f(*args)
    return tolerance(seen.met)


def same(one: Tensor, other: Tensor, tol: float) -> bool:
    """Whether raw values agree up to tol, relative to the largest (at least 1)."""
    a, b = (values(t) for t in side_by_side(one, other))
    if a is None or b is None or not b.numel():
        return True
    scale = torch.maximum(b.abs().amax(), torch.ones_like(b.amax()))
    return a.shape == b.shape and bool(((a - b).abs() <= tol * scale).all())


def vanishes(t: Tensor) -> bool:
    """Whether raw values are zero; an overflow is not a finding: the result's own check reports it."""
    found = values(t)
    return found is None or not bool(found.any()) or not bool(((found != 0) & found.isfinite()).any())
