"""Bags of embeddings: what `F.embedding_bag` computes, by a lookup and a sum.  B bags, S entries, O features."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor | None:
    """Sum or mean `[B, O]` of the entries of each bag `[B, S]`, those at padding_idx not counted; None for what is no sum, or
    for bags given by offsets.

    >>> import torch
    >>> embedding_bag(torch.tensor([[0, 1]]), torch.eye(2), mode="sum")
    tensor([[1., 1.]])
    """
    if (
        input.ndim != 2
        or offsets is not None
        or max_norm is not None
        or scale_grad_by_freq
        or mode not in ("sum", "mean")
    ):
        return None
    rows = F.embedding(input, weight, padding_idx)
    if padding_idx is not None or per_sample_weights is not None:
        counts = rows.new_ones(input.shape) if per_sample_weights is None else per_sample_weights
        if padding_idx is not None:
            counts = counts * (input != padding_idx % weight.shape[0])
        rows = rows * counts[..., None]
    if mode == "sum":
        return rows.sum(1)
    if padding_idx is None:
        return rows.mean(1)
    return rows.sum(1) / (input != padding_idx % weight.shape[0]).sum(1, keepdim=True).clamp(min=1)
