"""Torch calls whose batching rules are wrong or missing, in terms of calls whose rules are right, and f read with these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from fisher.collector.calls.bags import embedding_bag
from fisher.collector.calls.recurrent import RECURRENT
from fisher.collector.rules.match import bind
from linmaps.checks.precision import full_precision, is_on
from linmaps.numerics.dtypes import working
from linmaps.numerics.numeric import positive_root

IF_MANY, BY_PRODUCT = "use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist"  # modes of torch.cdist
MANY = 25  # rows, from which on it makes distances by a product


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """max(x, 0) + w min(x, 0), with one w or one for each channel, axis 1: torch's own sums over the wrong axes under vmap.

    >>> prelu(torch.tensor([[-2.0, 2.0]]), torch.tensor([0.5]))
    tensor([[-1.,  2.]])
    """
    if weight.ndim and x.ndim > 1:
        weight = weight.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, weight * x)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """v g / |v|, the norm over all axes but one (of all for -1): torch's fused kernel has no forward mode and no batches.

    >>> weight_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0]]))
    tensor([[6., 8.]])
    """
    axes = [k for k in range(v.ndim) if dim == -1 or k != dim % v.ndim]
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))


@full_precision()
def distances(a: Tensor, b: Tensor, p: float = 2.0, mode: str = IF_MANY) -> Tensor:
    """|a - b|_p of all pairs of rows, `[..., P, R]` of `[..., P, M]` and `[..., R, M]`: of several columns torch's own takes the
    wrong ones back, and it has no forward mode.

    mode: as of `torch.cdist`, whether |a - b|^2 = |a|^2 + |b|^2 - 2 a'b is made by a product, without differences in memory.

    >>> distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor([[5., 1.]])
    """
    if p == 2 and (mode == BY_PRODUCT or (mode == IF_MANY and max(a.shape[-2], b.shape[-2]) > MANY)):
        squares = (a**2).sum(-1)[..., None] + (b**2).sum(-1)[..., None, :]
        return positive_root(squares - 2 * a @ b.mT)
    return _lengths(a.unsqueeze(-2) - b.unsqueeze(-3), p)


@full_precision()
def among(x: Tensor, p: float = 2.0) -> Tensor:
    """|x_i - x_j|_p of all pairs i < j of rows, `[R (R - 1) / 2]` of `[R, M]`: torch's own has no forward mode.

    >>> among(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])).tolist()
    [5.0, 1.0, 4.242640495300293]
    """
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return _lengths(x[i] - x[j], p)


def _lengths(t: Tensor, p: float) -> Tensor:
    """|t|_p over the last axis; for p = 0 how many numbers are not 0, whose derivative is zero."""
    return (t != 0).sum(-1).to(t.dtype) if p == 0 else torch.linalg.vector_norm(t, p, -1)


def strided(x: Tensor, size: Sequence[int], stride: Sequence[int], start: int = 0) -> Tensor | None:
    """Entries of a contiguous x at start + i_1 stride_1 + i_2 stride_2 + ..., a copy of what x.as_strided shows: torch's own
    counts in the memory of all examples together.  None where they are not all in x.  Autograd refuses to write into it, as
    the view could be written into.

    >>> strided(torch.arange(5.0), (2, 3), (2, 1))
    tensor([[0., 1., 2.],
            [2., 3., 4.]])
    """
    last = start + sum((n - 1) * s for n, s in zip(size, stride))
    if not x.is_contiguous() or min((start, *stride), default=0) < 0 or last >= x.numel():
        return None
    index = torch.full((1,) * len(size), start, device=x.device)
    for axis, (n, s) in enumerate(zip(size, stride)):
        index = index + s * torch.arange(n, device=x.device).reshape(-1, *[1] * (len(size) - axis - 1))
    return x.reshape(-1)[index].unsqueeze(0).unbind(0)[0]  # one of several views, into which nothing is written


def _distances(args: Any, kwargs: Any) -> Tensor:
    a, b, p, mode = bind(("x1", "x2", "p", "compute_mode"), args, kwargs, (None, None, 2.0, IF_MANY))
    return _lowered(distances(working(a), working(b), p, mode), a)


def _among(args: Any, kwargs: Any) -> Tensor:
    x, p = bind(("input", "p"), args, kwargs, (None, 2.0))
    return _lowered(among(working(x), p), x)


def _lowered(out: Tensor, like: Tensor) -> Tensor:
    """In the dtype of what was given, or in float32 under autocast, which computes distances in it."""
    return out if is_on() and torch.is_autocast_enabled(like.device.type) else out.to(like.dtype)


def _strided(args: Any, kwargs: Any) -> Tensor | None:
    x, size, stride, offset = bind(
        ("input", "size", "stride", "storage_offset"), args, kwargs, (None, None, None, None)
    )
    return strided(x, size, stride, offset or 0) if _batched(x) and (not offset or x.storage_offset() == 0) else None


def _batched(x: Tensor) -> bool:
    """Whether x is under vmap, at whatever level: elsewhere views stay views, that may be written to."""
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return True
        x = get_unwrapped(x)
    return False


def _roll(args: Any, kwargs: Any) -> Tensor | None:
    """Of all entries in a line, which torch takes for those of all columns in a line."""
    x, shifts, dims = bind(("input", "shifts", "dims"), args, kwargs, (None, None, ()))
    return None if dims not in ((), [], None) else x.reshape(-1).roll(shifts, 0).reshape(x.shape)


def _weight_norm(args: Any, kwargs: Any) -> Tensor:
    return weight_norm(*bind(("v", "g", "dim"), args, kwargs, (None, None, 0)))


def _prelu(args: Any, kwargs: Any) -> Tensor:
    return prelu(*bind(("input", "weight"), args, kwargs, (None, None)))


def _widened(func: Callable[..., Tensor]) -> Callable[[Any, Any], Tensor | None]:
    """A norm of half-precision x with wider weights, computed and rounded as torch does, which knows no batch of them."""

    def run(args: Any, kwargs: Any) -> Tensor | None:
        x, *rest = args
        wide = next((t.dtype for t in (*rest, *kwargs.values()) if isinstance(t, Tensor) and t.dtype != x.dtype), None)
        return None if wide is None else func(x.to(wide), *rest, **kwargs).to(x.dtype)

    return run


SPELLED: dict[Any, Callable[..., Any]] = RECURRENT | {F.embedding_bag: embedding_bag}  # fused calls by smaller ones


def _spelled(steps: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    return lambda args, kwargs: steps(*args, **kwargs)


SOUND: dict[Any, Callable[[Any, Any], Any]] = {
    **{call: _spelled(steps) for call, steps in SPELLED.items()},
    **dict.fromkeys((F.prelu, torch.prelu, torch.Tensor.prelu), _prelu),
    torch._weight_norm: _weight_norm,
    torch.cdist: _distances,
    torch.pdist: _among,
    **dict.fromkeys((torch.as_strided, torch.Tensor.as_strided), _strided),
    **dict.fromkeys((torch.roll, torch.Tensor.roll), _roll),
    **{norm: _widened(norm) for norm in (F.layer_norm, F.group_norm, F.batch_norm, F.instance_norm)},
}


def sound(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The call, or what stands for it."""
    out = SOUND[func](args, kwargs) if func in SOUND and args else None
    return func(*args, **kwargs) if out is None else out


class Sound(TorchFunctionMode):
    """Calls in `SOUND` are replaced."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return sound(func, args, kwargs or {})


def soundly(f: Callable[..., Any]) -> Callable[..., Any]:
    """f with the calls in `SOUND` replaced: the same values and derivatives, under vmap too."""

    def run(*args: Any) -> Any:
        with Sound():
            return f(*args)

    return run
