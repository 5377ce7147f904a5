"""The steps that pairs could take: their statistics, changes and new units with the signs that gain, in two passes for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from growth.checks.losses import Loss, LossName
from growth.closed_form.delta import Delta, optimal_delta
from growth.closed_form.neurons import optimal_neurons
from growth.closed_form.signs import choose_sign
from growth.closed_form.units import Neurons
from growth.moments.accumulation import accumulated
from growth.moments.first_order import Statistics
from growth.reading.once import Reading
from growth.reading.pairs import Pair

Method = Callable[[Statistics, int], Neurons]
METRIC: dict[str, Any] = {"output_metric": "fisher", "shrinkage": 0.1}


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What a pair could do: its change, its new units with their gains, and the statistics they are of."""

    pair: Pair
    stats: Statistics
    change: Delta
    new: Neurons


def proposed(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pairs: Sequence[Pair],
    units: Sequence[int],
    loss: LossName | Loss,
    *,
    method: Method | None = None,
    ridge: float = 0.1,
    progress: bool = False,
    check_finite: bool = True,
) -> list[Proposal]:
    """The step of each pair by so many units.

    >>> import torch
    >>> f = lambda p, x: torch.tanh(x @ p["a"].T) @ p["b"].T
    >>> p = {"a": torch.eye(2)[:1], "b": torch.zeros(2, 1)}
    >>> [one] = proposed(f, p, (torch.eye(2), torch.tensor([0, 1])), [Pair("a", "b")], [1], "cross_entropy")
    >>> one.new.size
    1
    """
    held: list[Reading] = []
    how: dict[str, Any] = {"progress": progress, "check_finite": check_finite}
    stats = accumulated(f, params, data, list(pairs), loss, held=held, **how)
    changes = [optimal_delta(one, relative(one.S, ridge), **METRIC) for one in stats]
    news = [
        optimal_neurons(one, n, delta=change, ridge=relative(one.S_prev, ridge), **METRIC)
        if method is None
        else method(one, n)
        for one, n, change in zip(stats, units, changes)
    ]
    news = choose_sign(f, params, data, list(pairs), news, loss, layers=held[0] if held else None, **how)
    return [Proposal(*parts) for parts in zip(pairs, stats, changes, news)]


def relative(S: Tensor, ridge: float) -> Tensor:
    """ridge times the mean of the diagonal of S."""
    return ridge * S.diagonal().sum() / max(1, len(S))
