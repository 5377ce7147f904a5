"""Settings that are numbers, or functions of the number of the step: 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from linmaps.checks import number

Schedule = float | Tensor | Callable[[int], float | Tensor]


def check_schedule(value: Any, name: str, **bounds: Any) -> None:
    """Raise unless value is a number within the bounds, or a function, whose values are looked at as they come."""
    if not callable(value):
        number(value, name, **bounds, cure="or a function of the number of the step")


def scheduled(value: Schedule, step: int | None, name: str, **bounds: Any) -> float | Tensor:
    """The value at a step; ValueError for one out of bounds.

    >>> scheduled(lambda step: 0.1 / (1 + step), 1, "rate"), scheduled(0.1, None, "rate")
    (0.05, 0.1)
    """
    if not callable(value):
        return value
    found = value(step)  # type: ignore[arg-type]
    number(found, f"{name}({step})", **bounds)
    return found
