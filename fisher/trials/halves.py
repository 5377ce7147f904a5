"""Half of the examples of a batch, replaced by others."""

from __future__ import annotations

from typing import Any

import torch

from linmaps import trees

Mask = list[bool]


def masks(batch: int) -> list[Mask]:
    """Two ways to choose half of the examples; none of a single one."""
    return [[b < (batch + 1) // 2 for b in range(batch)], [b % 2 == 0 for b in range(batch)]] if batch > 1 else []


def ends(batch: int) -> Mask:
    """Half of the examples, the first and the last among them where there are others; none of a single one.

    >>> ends(5), ends(2)
    ([True, False, False, False, True], [False, True])
    """
    each = max(1, batch // 4)
    return [b >= each for b in range(batch)] if batch == 2 else [not each <= b < batch - each for b in range(batch)]


def replaced(x: Any, mask: Mask) -> Any:
    """x with the first of the other examples in place of those of the mask."""
    first = mask.index(False)
    return chosen(mask, trees.map(lambda t: t[first : first + 1], x), x)


def chosen(mask: Mask, one: Any, other: Any) -> Any:
    """The examples of one where the mask says so, elsewhere those of the other."""
    pick = lambda s, t: torch.where(torch.tensor(mask, device=t.device).reshape(-1, *[1] * (t.ndim - 1)), s, t)
    return trees.map(pick, one, other)


def others(mask: Mask) -> Mask:
    """The other half."""
    return [not b for b in mask]
