"""Columns and scores of a softmax over the last axis: logits z `[..., C]`, K columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from linmaps.numerics.numeric import positive_root


def plain_columns(z: Tensor, first: int, end: int) -> Tensor:
    """Columns r_k, k = first .. end - 1, `[K, B, P, C]` of logits `[B, P, C]`; all in log space, where nothing cancels."""
    j = torch.arange(z.shape[-1], device=z.device)
    k = j[first:end, None, None, None]
    # a logit of minus infinity (a masked class) would give inf - inf
    logp = torch.log_softmax(z.clamp_min(torch.finfo(z.dtype).min / 8), -1)
    tails = torch.where(j > k, logp, -math.inf)
    largest = tails.amax(-1).detach()  # what is divided by it does not depend on it
    rest = (tails - largest[..., None]).exp_()  # of the classes after k
    total = rest.sum(-1)
    head = logp[..., first:end].movedim(-1, 0)
    # log of p q / (p + q), q of all of them; logaddexp's second derivative overflows
    size = torch.exp(0.5 * (head + logsigmoid(largest + total.log() - head)))
    return torch.where(j == k, size[..., None], rest * -(size / total)[..., None])


def weighted_columns(z: Tensor, w: Tensor, first: int, end: int) -> Tensor:
    """Columns sqrt(w_t p_t) (e_t - p), t = first .. end - 1, `[K, B, P, C]` of logits `[B, P, C]`."""
    z = z.clamp_min(torch.finfo(z.dtype).min / 8)
    hot = torch.eye(z.shape[-1], dtype=torch.bool, device=z.device)[first:end, None, None]
    size = torch.exp(0.5 * torch.log_softmax(z, -1)[..., first:end]) * positive_root(w[first:end])
    return size.movedim(-1, 0)[..., None] * softmax_score(z.expand(end - first, *z.shape), hot)


def softmax_score(z: Tensor, hot: Tensor) -> Tensor:
    """e_t - p with 1 - p_t as the sum of the others: accurate where p_t is close to 1."""
    p = torch.softmax(z, -1)
    others = torch.where(hot, 0.0, p).sum(-1, keepdim=True)
    return torch.where(hot, others, -p)
