"""What the mean loss of a likelihood rises by from one output to another: the measured side of the damping's ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size
from fisher.likelihoods import Categorical
from fisher.likelihoods.arrays import class_axis_of
from fisher.likelihoods.weights import spread
from fisher.recipes.optimizers.upkeep import the_batch
from linmaps.checks.precision import full_precision
from linmaps.numerics.dtypes import working


def rise(likelihood: Any, before: Tensor, after: Tensor, target: Any, weight: Tensor | None = None) -> Tensor:
    """Sum over examples of w_b (log p(t_b | before) - log p(t_b | after)) / B: no digits are lost in the difference of means.

    weight: of examples, or of positions where the likelihood's coordinates or classes are apart; ValueError elsewhere.

    >>> import torch, fisher
    >>> y = torch.zeros(2, 1)
    >>> rise(fisher.Gaussian(), y, y + 1, y, torch.tensor([1.0, 0.0]))
    tensor(0.2500)
    """
    before, after, examples = working(before), working(after), len(before)
    if weight is not None and weight.ndim > 1:
        likelihood, before, after, target, weight = _by_positions(likelihood, before, after, target, weight)
    change = likelihood.log_prob(before, target) - likelihood.log_prob(after, target)
    if weight is not None:
        w = weight.to(change.dtype)
        change = torch.where(w == 0, 0.0, w * change)
    return change.sum() / max(1, examples)


@full_precision("f", "loss")
def check_measurable(f: Callable[..., Tensor], loss: Any, likelihood: Any, params: Any, batch: Any) -> None:
    """Raise for targets that are none of the likelihood's, or for a loss that is none; without either nothing is said."""
    x, target, _ = the_batch(batch)
    params = parameters(params)
    if loss is not None:
        measured(loss, params, batch, batch_size(x))
    elif target is not None and batch_size(x):
        likelihood.log_prob(f(params, x), target)


def measured(loss: Any, params: Any, batch: Any, examples: int) -> Tensor:
    """loss(params, batch), a scalar or `[B]`; ValueError for any other result: the mean of outputs is no loss.

    >>> import torch
    >>> measured(lambda params, batch: params @ batch, torch.ones(3, 2), torch.ones(2), 4)
    Traceback (most recent call last):
    ValueError: loss(params, batch): got a result of shape (3,), expected a scalar, or [4], the loss of each example; ...
    """
    found = loss(params, batch)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape not in ((), (examples,)):
        raise ValueError(
            f"loss(params, batch): got a result of shape {shape}, expected a scalar, or [{examples}], the loss of each example; "
            "of outputs return the loss, summed over the positions of an example"
        )
    made: Tensor = found
    return made


def _by_positions(
    likelihood: Any, before: Tensor, after: Tensor, target: Any, weight: Tensor
) -> tuple[Any, Tensor, Tensor, Any, Tensor]:
    """The same with an example for each position."""
    w = spread(likelihood, before, weight)
    if isinstance(likelihood, Categorical):
        axis = class_axis_of(before, likelihood.class_axis, "categorical")
        apart = lambda t: t.movedim(axis, -1).flatten(0, -2)
        t = apart(target) if target.shape == before.shape else target.flatten()
        w = apart(w)[:, 0]
        return dataclasses.replace(likelihood, class_axis=-1), apart(before), apart(after), t, w
    if getattr(likelihood, "coordinatewise", False) and getattr(target, "shape", None) == before.shape:
        each = lambda t: t.expand(before.shape).reshape(-1, 1)
        return likelihood, each(before), each(after), each(target), each(w)[:, 0]
    raise ValueError(
        f"weight: got weights of positions with {type(likelihood).__name__}, whose log-probabilities are those of examples, "
        "expected one number for each example; or give loss=(params, batch) -> a number for the ratio, or adapt=False"
    )
