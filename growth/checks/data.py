"""The examples of a pass: batches that are not empty, finite, with their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fisher.checks.axes import batch_size
from fisher.checks.data import batches, one_batch
from fisher.checks.data import check_finite as check_data
from fisher.checks.finiteness import finite
from linmaps import trees

FEW = 32
DIVERGED = "the training has diverged: go back to finite parameters (or pass check_finite=False)"


def few(x: Any) -> Any:
    """Some of the examples: they go apart, so these show how f uses its leaves."""
    return trees.map(lambda t: t[:FEW], x)


def again(data: Any, what: str) -> None:
    """Raise a ValueError for data that can be gone through but once, where several passes are needed.

    >>> again(iter([1]), "line_search")
    Traceback (most recent call last):
    ValueError: data: got list_iterator, which can be gone through once, expected batches that come again, since line_search ...
    """
    if not one_batch(data) and isinstance(data, Iterable) and iter(data) is data:
        raise ValueError(
            f"data: got {type(data).__name__}, which can be gone through once, expected batches that come again, since {what} "
            "makes several passes: a list of the batches, a DataLoader, or a class whose __iter__ starts anew"
        )


def examples(
    data: Any, params: Any, *, progress: bool, check_finite: bool, what: str = "growth statistics", none: bool = False
) -> Iterator[tuple[str, Any, Any, int]]:
    """(name, x, target, B) of each batch that has examples; ValueError where params or data are not finite, or for none,
    unless there may be `none`, as at a rank without.

    >>> import torch
    >>> [
    ...     (name, n)
    ...     for name, _, _, n in examples([torch.ones(0, 2), torch.ones(3, 2)], (), progress=False, check_finite=True)
    ... ]
    [('data: batch 1', 3)]
    """
    seen = False
    for number, (x, target) in enumerate(batches(data, progress=progress, what=what, none=none)):
        name, size = f"data: batch {number}", batch_size(x)
        if size == 0:
            continue
        if check_finite:
            if not seen:
                finite(params, "params", DIVERGED)
            check_data({"x": x} if target is None else {"x": x, "target": target}, name)
        seen = True
        yield name, x, target, size
    if not seen and not none:
        raise ValueError("data: got only empty batches, expected at least one sample")
