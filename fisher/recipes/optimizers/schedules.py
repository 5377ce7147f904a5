"""Settings that are numbers, or functions of the number of the step: 0, 1, 2, ..."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linmaps.checks import number

Schedule = float | Tensor | Callable[[int], float | Tensor]


def check_schedule(value: Any, name: str, **bounds: Any) -> None:
    """Raise unless value is a number within the bounds, or a function, whose values are looked at as they come."""
    if not callable(value):
        number(value, name, **bounds, cure="or a function of the number of the step")
        return
    try:
        inspect.signature(value).bind(0)
    except TypeError:
        raise TypeError(
            f"{name}: got a function of other arguments, expected one of the number of the step, 0, 1, ...: lambda step: 0.1"
        ) from None
    except ValueError:  # one without a signature, whose own error will say so
        return


def scheduled(value: Schedule, step: int, name: str, like: Tensor, **bounds: Any) -> float | Tensor:
    """The value at a step; ValueError for one out of bounds, TypeError for a tensor elsewhere than `like`.

    >>> import torch
    >>> scheduled(lambda step: 0.1 / (1 + step), 1, "rate", torch.ones(1)), scheduled(0.1, 0, "rate", torch.ones(1))
    (0.05, 0.1)
    """
    found = value
    if callable(value):
        found = value(step)
        number(found, f"{name}({step})", **bounds)
    if isinstance(found, Tensor) and found.device not in (like.device, torch.device("cpu")):
        raise TypeError(f"{name}: got a tensor on {found.device}, expected one on {like.device}; move it with .to(...)")
    made: float | Tensor = found  # type: ignore[assignment]
    return made
