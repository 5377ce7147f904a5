"""Second moments of what enters and leaves a layer, `[..., F]`, with a column of ones, by group, by example."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from fisher.reducers.base import mean
from linmaps.numerics.moments import bordered_moment, second_moment

FEW = 2**16  # numbers that are copied at once


def with_ones(a: Tensor, grouped: bool, over: int) -> Tensor:
    """`moment` of (a, 1): that of a beside its sum, so that a is not copied for a column of ones."""
    if a.numel() <= FEW:  # a copy costs less than more calls
        return moment(torch.nn.functional.pad(a, (0, 1), value=1.0), grouped, over)
    if not grouped and not apart(a):
        return bordered_moment(a, over)
    of_a = moment(a, grouped, over)
    first = a.sum((0, 1))[..., None] / over
    number = first.new_full((), a.shape[0] * a.shape[1] / over).expand(*first.shape[:-2], 1, 1)
    return torch.cat([torch.cat([of_a, first], -1), torch.cat([first.mT, number], -1)], -2)


def moment(t: Tensor, grouped: bool, over: int = 1) -> Tensor:
    """Sum of t t' / over, over all but the last axis, `[F, F]`, or `[groups, F, F]` of t `[..., groups, F]`.

    Where positions of examples are no rows of one matrix in memory (the channels of a convolution's output lie between
    them), by one small product for each example: as many multiplications as all positions in one product, and no copy.
    """
    if grouped:
        return vmap(moment, in_dims=(-2, None, None))(t, False, over)
    if apart(t):
        return mean((t.mT @ t).flatten(0, -3).sum(0), over)
    return second_moment(t, over)


def apart(t: Tensor) -> bool:
    """Whether positions of examples, more than features, are no rows of one matrix in memory."""
    return 1 < t.shape[-1] <= t.shape[-2] and any(
        t.stride(k) != t.shape[k + 1] * t.stride(k + 1) for k in range(t.ndim - 2)
    )
