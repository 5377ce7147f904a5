"""Functions tried before matrices are made of them: repeated, and with other examples in the batch.  B examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fisher.checks import agreement, doors, finiteness, purity
from fisher.checks.axes import batch_size
from fisher.collector.calls.batching import soundly
from fisher.trials.halves import Mask, masks, others, replaced
from linmaps.checks import values


def function(
    run: Callable[[Any, Any], Tensor], params: Any, x: Any, name: str = "f(params, x)", finite: bool = True
) -> Tensor:
    """y = run(params, x) `[B, ...]`; ValueError if it is random, has not one row per example, or if examples mix.

    Examples are apart if the first and the last output have a gradient in their own inputs alone, and if half of the rows
    stay what they are with other examples in the other half.  Two forwards and four backwards; four more forwards.

    >>> import torch
    >>> function(lambda p, x: p * (x - x.mean()), torch.ones(()), torch.arange(3.0))
    Traceback (most recent call last):
    ValueError: f(params, x): the output of one example depends on other examples, ...
    """
    batch, run = batch_size(x), soundly(run)
    y, back = purity.repeatable(run, params, x, name)
    doors.rows(y, batch, name)
    if finite:
        own = "it overflows at these params and data (or pass check_finite=False)"
        finiteness.finite(y, name, own if name.startswith("f(") else finiteness.OF_LOSSES)
    apart = all(_vanish(back(one)[1], rows) for one, rows in _cotangents(y)) if batch > 1 else True
    for mask in masks(batch):
        for gone in (mask, others(mask)):
            again, kept = run(params, replaced(x, gone)), others(gone)
            apart = apart and agreement.repeats(_rows(again, kept), _rows(y, kept))
    purity.apart(apart, name, x)
    return y


def _cotangents(y: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """A generic cotangent of the first and of the last example alone, and the rows of all others."""
    ramp, row = agreement.generic(y), torch.arange(len(y), device=y.device).reshape(-1, *[1] * (y.ndim - 1))
    yield ramp * (row == 0), slice(1, None)
    yield ramp * (row == len(y) - 1), slice(None, -1)


def _vanish(gradients: list[Tensor], rows: slice) -> bool:
    found = [values(t[rows]) for t in gradients]
    return not any(bool(((t != 0) & t.isfinite()).any()) for t in found if t is not None)


def _rows(y: Tensor, mask: Mask) -> Tensor:
    return y[torch.tensor([b for b, chosen in enumerate(mask) if chosen], device=y.device)]
