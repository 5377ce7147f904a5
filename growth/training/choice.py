"""Which pairs grow in a step of a fit, and by how much: all by their plans, or the one whose units gain most per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from growth.checks.doors import count
from growth.training.comparison import compare
from growth.training.proposals import Proposal
from linmaps import trees

Choose = Literal["all", "slope"]
CHOICES = get_args(Choose)
MAPPED = (
    'choose="slope": got an ensemble under vmap, expected one network: members would choose different pairs, and their sizes '
    'would differ; call it for each member, or take choose="all"'
)


def rooms(widths: Sequence[int], target: int | Sequence[int], k: int | Sequence[int], steps: int) -> list[list[int]]:
    """For each growth step the units that each pair may get, were it the first to grow: k, or what is left to its target.

    >>> rooms([1, 4], [6, 5], 2, 1), rooms([1, 4], 6, [3, 1], 2)
    ([[2, 1]], [[3, 2], [1, 1]])
    """
    targets = [target] * len(widths) if isinstance(target, int) else list(target)
    if len(targets) != len(widths):
        raise ValueError(f"target: got {len(targets)}, expected {len(widths)}, one per pair")
    for width, most in zip(widths, targets):
        count(most, "target", width)
    sizes = [k] * steps if isinstance(k, int) else list(k)
    if len(sizes) != steps:
        raise ValueError(
            f"k: got {len(sizes)} numbers of units, expected {steps}, one per growth step of order, or an int"
        )
    for n in sizes:
        count(n)
    return [[min(n, most - width) for width, most in zip(widths, targets)] for n in sizes]


def alone(params: Any, *others: Any) -> None:
    """Raise a ValueError for values under vmap, on which a choice cannot depend.

    >>> torch.vmap(alone)(torch.ones(2, 1))
    Traceback (most recent call last):
    ValueError: choose="slope": got an ensemble under vmap, expected one network: ...
    """
    for t in trees.leaves((params, *others)):
        if isinstance(t, Tensor) and torch.func.debug_unwrap(t, recurse=True).ndim != t.ndim:
            raise ValueError(MAPPED)


def steepest(params: Any, steps: Sequence[Proposal]) -> Proposal:
    """The step whose units gain most per parameter that they add; the first of equal ones."""
    table = compare([s.pair for s in steps], [s.new for s in steps], None, params=params)
    alone(table.slopes)
    return steps[int(table.steepest)]
