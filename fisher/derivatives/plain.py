"""Functions in a form that all modes differentiate alike: forward, reverse, and under vmap over examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.collector.calls.batching import sound
from fisher.collector.rules.match import bind
from fisher.collector.watching.known import opened


class Plain(TorchFunctionMode):
    """Calls as reverse mode differentiates them: torch's own layers keep off their fused paths, attention is spelled out,
    the padding row of an embedding has no derivative (forward mode would give it one), and calls with a wrong batching rule are
    replaced."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return opened(func)(*args, **kwargs)
        out = _REPLACED[func](args, kwargs) if func in _REPLACED else None
        return sound(func, args, kwargs) if out is None else out


def plainly(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """f under `Plain`, so that its forward and reverse derivatives agree."""

    def run(*args: Any) -> Tensor:
        with Plain():
            return f(*args)

    return run


def _embedding(args: Any, kwargs: Any) -> Tensor | None:
    index, w, padding = bind(("input", "weight", "padding_idx"), args, kwargs, (None, None, None))
    if padding is None:
        return None
    out = F.embedding(*args, **kwargs)
    return torch.where((index == padding % w.shape[0])[..., None], out.detach(), out)


def _attention(args: Any, kwargs: Any) -> Tensor | None:
    """softmax(q k' / sqrt(E) + mask) v."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    q, k, v, mask, dropout, causal, scale, grouped = bind(
        names, args, kwargs, (None, None, None, None, 0.0, False, None, False)
    )
    if dropout:
        return None
    if grouped:  # fewer keys and values than queries, each for several heads
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    logits = (q @ k.mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        logits = torch.where(mask, logits, -math.inf) if mask.dtype == torch.bool else logits + mask
    return torch.softmax(logits, -1) @ v


_REPLACED: dict[Any, Callable[[Any, Any], Tensor | None]] = {
    F.embedding: _embedding,
    F.scaled_dot_product_attention: _attention,
}
