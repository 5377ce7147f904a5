"""Weights of the positions of each use: what weighs inputs as the columns weigh output-gradients.  B batch, S shared.

A Kronecker factor A = 1/B sum over b, s of w_bs a a' has the weight that the gradients g at the position have by their columns,
G = sum of g g' / sum over b, s of w_bs: G (x) A then has each weight once, and is the exact block of a linear net.  The weight
of a position of a use is that of the output positions that read it, the mean by the squares of their weighted gradients:

    w_bs = sum over p of w_bp^2 |J_ps' u|^2 / sum over p of w_bp |J_ps' u|^2,

by a few generic cotangents u: w_b where an example has one weight, w_bp where position p alone reads s, 1 among those that a mask
leaves, 0 where nothing that counts reads it.  A position without any gradient (its units are off, or saturated) counts as a unit
that is off does elsewhere, but for padding, which may hold anything: gradients do not tell the two apart, their places do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.checks import agreement
from fisher.collector.collection import LayerCollection
from fisher.collector.taps import column_rows
from fisher.likelihoods.weights import class_axes, spread
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.numeric import positive_root

PROBES = 4  # cotangents, where positions of one example may differ in weight


def of_examples(layers: LayerCollection, weight: Tensor | None) -> dict[int, Tensor]:
    """Weights of examples `[B]` as those of all their positions `[B, 1]`, for each use; none of other weights."""
    if weight is None or weight.ndim > 1:
        return {}
    return dict.fromkeys(range(len(layers.uses)), weight[:, None])


def of_uses(
    layers: LayerCollection, likelihood: Any, y: Tensor, counts: Tensor | None, weight: Tensor | None, back: Any
) -> dict[int, Tensor]:
    """The weight of each position of each use, `[B, S]`; back: gradients at the uses of cotangents `[C, *y.shape]`.

    A position that no output reads at all has the weight of the output position of its number, where a use has as many; else
    the mean weight of its example where all of it counts, and 0 beside a mask.
    """
    w = torch.ones_like(y) if weight is None else spread(likelihood, y, weight).expand(y.shape)
    w = w if counts is None else torch.where(counts, w, 0.0)
    ramp = agreement.generic(y)
    if weight is None or weight.ndim == 1:  # one weight, or none
        probes = ramp[None]
    else:
        probes = torch.stack([torch.cos(k + (1 + k) * ramp) for k in range(PROBES)])
    n = len(probes)
    found = column_rows(layers, back(torch.cat([ramp[None], probes * w, probes * positive_root(w)])), len(y))
    flat = w.reshape(len(y), -1).to(working_dtype(w.dtype))
    some = flat > 0
    unread = torch.where(some.all(1), _mean_of_some(flat), 0.0)[:, None]
    by_number = _by_number(likelihood, w.to(flat.dtype))
    low, high = torch.where(some, flat, torch.inf).amin(1)[:, None], flat.amax(1)[:, None]
    made = {}
    for k, t in found.items():
        t = t.to(flat.dtype)
        largest = t.detach().abs().flatten(3).amax((0, -1))  # squares of the smallest numbers are 0
        squares = (t.flatten(3) / torch.where(largest > 0, largest, 1.0)[..., None]).square().sum(-1)
        size = squares[1 + n :].sum(0)
        read = size > 0
        ratio = squares[1 : 1 + n].sum(0) / torch.where(read, size, 1.0)
        dead = ~(t[0] != 0).flatten(2).any(-1)
        off = by_number.get(t.shape[2], unread)
        made[k] = torch.where(read, torch.minimum(torch.maximum(ratio, low), high), torch.where(dead, off, 0.0))
    return made


def _by_number(likelihood: Any, w: Tensor) -> dict[int, Tensor]:
    """`{S: weights [B, S]}` of the S positions of the output, in their order: without an axis that may be that of the classes."""
    found: dict[int, Tensor] = {}
    for axis in class_axes(likelihood, w):
        each = _mean_of_some(w.movedim(axis, -1)).reshape(len(w), -1)
        found.setdefault(each.shape[1], each)
    return found if hasattr(likelihood, "class_axis") else {w[0].numel(): w.reshape(len(w), -1), **found}


def _mean_of_some(w: Tensor) -> Tensor:
    """The mean of the weights that are not 0, over the last axis."""
    return w.sum(-1) / (w > 0).sum(-1).clamp_min(1)
