"""Losses per sample, and their gradient with respect to the output.  B batch, S positions, C classes or coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad

from fisher.likelihoods.logits import expect_logits
from linmaps.checks import values

Loss = Callable[[Tensor, Any], Tensor]
LossName = Literal["cross_entropy", "squared_error"]
IGNORED = -100


def cross_entropy(y: Tensor, target: Tensor) -> Tensor:
    """-log softmax(y)[target] summed over positions: logits `[B, ..., C]`, classes `[B, ...]` -> `[B]`.

    Positions of class -100 do not count, as in torch.  Raises ValueError where those of images may as well be on axis 1.

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, 3]))
    tensor([1.3863, 1.3863])
    """
    _classes(y, target)
    return -torch.where(_chosen(y, target), y.log_softmax(-1), 0.0).reshape(y.shape[0], -1).sum(1)


def _chosen(y: Tensor, target: Tensor) -> Tensor:
    return target.unsqueeze(-1) == torch.arange(y.shape[-1], device=y.device)


def _classes(y: Tensor, target: Any) -> None:
    """Raise a ValueError unless target are classes of these logits."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != y.shape[:-1]:
        got = f"{target.dtype} {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(
            f"cross_entropy: target is {got}, expected integer classes {tuple(y.shape[:-1])} for logits "
            f"{tuple(y.shape)} (classes last); for other targets give loss as a callable (y, target) -> [B]"
        )
    if y.ndim > 3 and y.shape[1] == y.shape[-1] and target.shape == (y.shape[0], *y.shape[2:]):
        raise ValueError(
            f"cross_entropy: logits {tuple(y.shape)} for classes {tuple(target.shape)} have as many entries on axis 1, where "
            "torch has classes, as on the last, where growth has them, expected one of the two to fit; say which by a callable: "
            "loss=lambda y, t: F.cross_entropy(y, t, reduction='none').flatten(1).sum(1) for classes on axis 1, the same of "
            "y.movedim(-1, 1) for classes last"
        )
    seen = values(target)
    if seen is not None and bool(((seen != IGNORED) & ((seen < 0) | (seen >= y.shape[-1]))).any()):
        raise ValueError(
            f"cross_entropy: classes from {int(seen.min())} to {int(seen.max())}, expected 0 to {y.shape[-1] - 1} "
            f"(or {IGNORED} for a position to leave out)"
        )


def squared_error(y: Tensor, target: Tensor) -> Tensor:
    """1/2 sum (y - target)^2 over all coordinates of a sample: `[B, ...]`, `[B, ...]` -> `[B]`.

    >>> import torch
    >>> squared_error(torch.ones(2, 3), torch.zeros(2, 3))
    tensor([1.5000, 1.5000])
    """
    _outputs(y, target)
    return (0.5 * (y - target) ** 2).reshape(y.shape[0], -1).sum(1)


def _outputs(y: Tensor, target: Any) -> None:
    """Raise a ValueError unless target has the shape of the output."""
    if not isinstance(target, Tensor) or target.shape != y.shape:
        got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"squared_error: target has shape {got}, expected that of the output {tuple(y.shape)}")


def _slope_of_cross_entropy(y: Tensor, target: Tensor) -> Tensor:
    """softmax(y) - onehot(target), 0 at positions that are left out."""
    _classes(y, target)
    chosen = _chosen(y, target)
    return torch.where((target != IGNORED).unsqueeze(-1), y.softmax(-1) - chosen.to(y.dtype), 0.0)


def _slope_of_squared_error(y: Tensor, target: Tensor) -> Tensor:
    _outputs(y, target)
    return (y - target).to(y.dtype)


LOSSES: dict[LossName, Loss] = {"cross_entropy": cross_entropy, "squared_error": squared_error}
SLOPES: list[tuple[Loss, Loss]] = [(cross_entropy, _slope_of_cross_entropy), (squared_error, _slope_of_squared_error)]


def per_sample(loss: LossName | Loss) -> Loss:
    """The loss as a function `(y, target) -> [B]` that checks what it returns.

    A mean over the batch would make all statistics depend on the batch size; so it raises.

    >>> import torch
    >>> per_sample(lambda y, t: ((y - t) ** 2).mean())(torch.zeros(4, 1), torch.zeros(4, 1))
    Traceback (most recent call last):
    ValueError: loss: returned shape (), expected (4,), one loss per sample; use reduction="none" and sum over ...
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss: got {loss!r}, expected one of {sorted(LOSSES)} or a callable (y, target) -> [B]")
        return LOSSES[loss]
    if not callable(loss):
        raise TypeError(
            f"loss: got {type(loss).__name__}, expected one of {sorted(LOSSES)} or a callable (y, target) -> [B]"
        )

    def checked(y: Tensor, target: Any) -> Tensor:
        value = loss(y, target)
        if not isinstance(value, Tensor) or tuple(value.shape) != (y.shape[0],):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f'loss: returned {got}, expected ({y.shape[0]},), one loss per sample; use reduction="none" and sum '
                "over positions and coordinates, never over the batch"
            )
        return value

    return checked


def gradient(loss: Loss, target: Any) -> Callable[[Tensor], Tensor]:
    """The cotangent `y -> [1, B, ...]`, gradient of the sum of the per-sample losses."""

    def cotangent(y: Tensor) -> Tensor:
        if loss is cross_entropy:
            expect_logits(y, -1)
        for known, slope in SLOPES:
            if loss is known:
                return slope(y, target)[None]
        return grad(lambda y: loss(y, target).sum())(y)[None]

    return cotangent
