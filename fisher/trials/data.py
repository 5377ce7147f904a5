"""The batches that a trial is made on: finite, inputs alone where a target has no use, several examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fisher.checks.axes import batch_size
from fisher.checks.data import Weighted, check_finite, weighted_batches
from linmaps import trees


def examples(data: Any, what: str, finite: bool = True, none: bool = False) -> Iterator[Weighted]:
    """The batches `(x, target, weight)` of data, finite if asked; whether there may be none."""
    for number, item in enumerate(weighted_batches(data, what=what, none=none)):
        if finite:
            check_finite(item[:2], f"data: batch {number}")
            check_finite(() if item[2] is None else item[2], f"data: batch {number}: weight")
        yield item


def inputs(data: Any, name: str, what: str, finite: bool = True) -> list[Any]:
    """The inputs of each batch; ValueError where there is a target, which function space has no use for."""
    found = []
    for number, (x, target, weight) in enumerate(weighted_batches(data, what=what)):
        if finite:
            check_finite((x, target), f"data: batch {number}")
        if weight is not None:
            raise ValueError(
                f"{name}: got (x, target, weight), expected inputs alone: the rows of {what} are derivatives of f, in which no "
                f"weight stands; give x, and multiply the rows by weight.sqrt(), or make the matrix J'WJ / B at once: "
                "fisher.fim(f, params, (x, None, weight), fisher.PMatDense, 'gaussian')"
            )
        if target is not None:
            raise ValueError(
                f"{name}: got a pair (x, target), expected inputs alone: {what} has no use for a target; give x, or [x for x, "
                "target in data]; several inputs are one x in a tuple of its own: ((x1, x2),)"
            )
        found.append(x)
    return found


def several(parts: Sequence[Any]) -> Any:
    """The inputs of the most examples, twice if it is one: those that mix show only among several."""
    x = max(parts, key=batch_size)
    return trees.map(lambda t: torch.cat([t, t]), x) if batch_size(x) == 1 else x
