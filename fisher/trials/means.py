"""Losses tried before matrices are made of them: of each example, or their mean.  B examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fisher.checks import finiteness, purity
from fisher.checks.axes import batch_size
from fisher.checks.data import Batch
from fisher.trials.functions import function
from fisher.trials.halves import chosen, masks, others, replaced
from linmaps import trees
from linmaps.checks import values


def losses(loss: Callable[..., Tensor], y: Tensor, rest: tuple[Any, ...], finite: bool = True) -> None:
    """Raise a ValueError unless loss(y, target) is `[B]`: one number for each example."""
    made = purity.repeatable(lambda y, rest: loss(y, *rest), y, rest, "loss(y, target)")[0]
    shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
    if shape != (len(y),):
        raise ValueError(
            f"loss(y, target): got a result of shape {shape}, expected [{len(y)}], the loss of each example: use "
            "reduction='none', and sum over the positions of an example"
        )
    if finite:
        finiteness.finite(made, "loss(y, target)", finiteness.OF_LOSSES)
    function(lambda y, y2: loss(y2, *rest), y, y, "loss(y, target)", finite)


def mean_loss(
    loss: Callable[..., Tensor], params: Any, parts: Sequence[Batch], finite: bool = True, *, weighted: bool = False
) -> None:
    """Raise a ValueError unless loss(params, x, y) is the loss of each example `[B]`, or a scalar, their mean.

    A scalar L is tried on the two parts of a batch at three places: L = (B1 L1 + B2 L2) / B.
    """
    name = "loss(params, x, y)" if len(parts[0]) > 1 else "loss(params, x)"
    part = largest(parts)
    batch = batch_size(part[0])
    run = lambda params, part: loss(params, *part)
    whole = purity.repeatable(run, params, part, name)[0]
    shape = tuple(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
    if shape == (batch,):
        function(lambda params, x: loss(params, x, *part[1:]), params, part[0], name, finite)
        return
    if weighted:
        raise ValueError(
            f"{name}: got a result of shape {shape} with data of weights, expected [{batch}], the loss of each example, which is "
            "weighed: use reduction='none'"
        )
    if shape != ():
        raise ValueError(
            f"{name}: got a result of shape {shape}, expected a scalar, the mean over the batch, or [{batch}], the loss of each "
            "example"
        )
    if finite:
        finiteness.finite(whole, name, finiteness.OF_LOSSES)
    for mask in masks(batch):
        one, other = replaced(part[0], mask), replaced(part[0], others(mask))
        found = [loss(params, x, *part[1:]) for x in (one, other, chosen(mask, one, other))]
        purity.apart(_equal(whole + found[2], found[0] + found[1], [whole, *found]), name, part[0])
    for k in sorted({1, batch // 2, batch - 1} - {0}):
        first, second = (
            loss(params, *trees.map(lambda t, rows=rows: t[rows], part)) for rows in (slice(k), slice(k, None))
        )
        if not _equal(whole, (k * first + (batch - k) * second) / batch, [whole, first, second]):
            raise ValueError(
                f"{name}: of {batch} examples it is not the mean of those of its first {k} and last {batch - k}, expected a mean "
                "over examples; a sum, or a mean that is weighted (weight=, ignore_index=), has another normaliser in each "
                "batch: return the loss of each example, [B] (reduction='none')"
            )


def largest(parts: Sequence[Batch]) -> Batch:
    """The batch of the most examples; two together where they have one each."""
    found = max(parts, key=lambda part: batch_size(part[0]))
    full = [part for part in parts if batch_size(part[0])]
    if batch_size(found[0]) == 1 and len(full) > 1:
        return trees.map(lambda s, t: torch.cat([s, t]), full[0], full[1])
    return found


def _equal(one: Tensor, other: Tensor, terms: list[Tensor]) -> bool:
    """Whether two sums of these terms are equal to rounding."""
    a, b, scale = (values(t) for t in (one, other, torch.stack([t.detach().abs() for t in terms]).amax(0)))
    if a is None or b is None or scale is None:
        return True
    gap = (a - b).abs()  # of NaN nothing is known
    return bool((~gap.isfinite() | (gap <= min(0.1, 1000 * torch.finfo(a.dtype).eps) * scale)).all())
