"""Torch calls whose batching rules are wrong or missing, in terms of calls whose rules are right, and f read with these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.collector.calls.bags import embedding_bag
from fisher.collector.calls.recurrent import RECURRENT
from fisher.collector.rules.match import bind


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
