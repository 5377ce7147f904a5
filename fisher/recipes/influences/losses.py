"""Losses of single examples, by name, as a likelihood or as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from fisher.likelihoods import Categorical, Likelihood
from fisher.likelihoods.arrays import check_target, per_example

LossName = Literal["cross_entropy", "squared_error"]
LOSSES = get_args(LossName)
Loss = LossName | Likelihood | Callable[[Tensor, Tensor], Tensor]


def loss_function(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as a function (y, target) -> [B]; ValueError for another name.

    >>> import torch
    >>> loss_function("squared_error")(torch.ones(1, 2), torch.zeros(1, 2))
    tensor([1.])
    """
    if isinstance(loss, str) and loss in LOSSES:
        return _cross_entropy if loss == "cross_entropy" else _squared_error
    if isinstance(loss, str) or not (callable(loss) or hasattr(loss, "log_prob")):
        raise ValueError(
            f"loss: got {loss!r}, expected one of {list(LOSSES)}, a likelihood with log_prob, or a function (y, target) -> [B]"
        )
    return (lambda y, t: -loss.log_prob(y, t)) if hasattr(loss, "log_prob") else loss


def _squared_error(y: Tensor, target: Tensor) -> Tensor:
    return per_example((check_target("squared_error", target, tuple(y.shape)) - y) ** 2) / 2


def _cross_entropy(y: Tensor, target: Tensor) -> Tensor:
    """By the class axis that the shapes allow: 1, as in torch, or the last one."""
    shape = tuple(y.shape)
    axes = [k for k in sorted({1, y.ndim - 1}) if k and shape[:k] + shape[k + 1 :] == tuple(target.shape)]
    if len(axes) > 1:
        raise ValueError(
            f"cross_entropy: the classes of outputs of shape [B, {', '.join(map(str, shape[1:]))}] may be axis 1 or the last, "
            "expected one that fits; say which with loss=fisher.Categorical(class_axis=1) or (class_axis=-1)"
        )
    return -Categorical(class_axis=axes[0] if axes else 1).log_prob(y, target)


def of_one(fn: Callable[[Tensor, Tensor], Tensor], y: Tensor, target: Tensor) -> Tensor:
    """The loss of one example as a scalar, from y `[1, ...]` and target `[1, ...]`; ValueError unless fn gives `[1]`."""
    found = fn(y, target)
    if not isinstance(found, Tensor) or tuple(found.shape) != (1,):
        got = f"a result of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"loss: got {got} for a batch of one example, expected (1,); return one number for each example, summed over "
            "positions and coordinates"
        )
    return found[0]
