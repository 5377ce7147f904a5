"""How far a step goes: exact lengths by the quadratic model, or a rate and momentum; clips of its norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisher.recipes.optimizers.model import Model
from fisher.recipes.optimizers.schedules import Turn
from fisher.recipes.optimizers.settings import Settings
from linmaps import trees


class Step(NamedTuple):
    """The step, its length along the direction (the rate), the model and the lengths in it where one was made."""

    step: Any
    rate: float | Tensor
    model: Model | None = None
    lengths: Tensor | None = None


def exact_step(rules: Settings, model: Callable[[list[Any]], Model], direction: Any, velocity: Any, shift: Any) -> Step:
    """The minimum of the model with shift I added to F (or the matrix of which `shift(directions)` is the products), in the span
    of the direction and the step before."""
    still = isinstance(rules.momentum, (int, float)) and rules.momentum == 0
    directions = [direction] if still else [direction, velocity]
    found = model(directions)
    lengths = _clipped(rules, found, found.lengths(shift(directions) if callable(shift) else shift))
    parts = lengths.unbind()
    step = trees.map(lambda *ds: sum(c * d for c, d in zip(parts, ds)), *directions)
    return Step(step, lengths[0], found, lengths)


def rated_step(
    rules: Settings,
    model: Callable[[list[Any]], Model],
    direction: Any,
    velocity: Any,
    gradient: Any,
    turn: Turn,
) -> Step:
    """rate direction + momentum velocity; the model of it is made where it is looked at."""
    like = trees.leaves(direction)[0]
    rate = turn.at("rate", rules.rate, like, low=0)  # type: ignore[arg-type]
    momentum = turn.at("momentum", rules.momentum, like, low=0, high=1, below=True)
    if rules.norm_constraint is not None:
        squared = rate * rate * -trees.dot(direction, gradient)
        direction = trees.scale(shrink(rules.norm_constraint, squared), direction)
    step = trees.map(lambda d, v: rate * d + momentum * v, direction, velocity)
    if rules.clip is None and not turn.adapts:
        return Step(step, rate)
    found = model([step])
    lengths = _clipped(rules, found, torch.ones_like(found.slopes))
    return Step(step if rules.clip is None else trees.scale(lengths[0], step), rate, found, lengths)


def shrink(most: float, squared: Tensor) -> Tensor:
    """The factor that brings a squared norm down to `most`, 1 where it is no larger, NaN of a norm that is no number.

    >>> shrink(1.0, torch.tensor(4.0)), shrink(1.0, torch.tensor(0.25))
    (tensor(0.5000), tensor(1.))
    """
    over = ~(squared <= most)
    return torch.where(over, (most / torch.where(over, squared, 1.0)).sqrt(), 1.0)


def _clipped(rules: Settings, found: Model, lengths: Tensor) -> Tensor:
    return lengths if rules.clip is None else lengths * shrink(rules.clip, lengths @ found.curved @ lengths)
