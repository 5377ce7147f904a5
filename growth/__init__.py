"""Closed-form growth of dense networks, as pure functions of parameter pytrees.

A growth step: one pass over data, two small solves, an enlarged tree; the optimizer's state goes along.

>>> import torch, growth
>>> f = lambda p, x: torch.tanh(x @ p["hidden"]["weight"].T + p["hidden"]["bias"]) @ p["output"]["weight"].T
>>> params = {"hidden": {"weight": torch.eye(2), "bias": torch.zeros(2)}, "output": {"weight": torch.ones(3, 2)}}
>>> data, pair = (torch.eye(2), torch.tensor([0, 2])), growth.Pair(before="hidden", after="output")
>>> stats = growth.statistics(f, params, data, pair)
>>> delta = growth.optimal_delta(stats)
>>> new = growth.choose_sign(f, params, data, pair, growth.optimal_neurons(stats, k=2, target="gradient"))
>>> grown = growth.grow(params, pair, new, delta=delta, scale=(0.5, 1.0))
>>> grown["hidden"]["weight"].shape, grown["output"]["weight"].shape
(torch.Size([4, 2]), torch.Size([3, 4]))
>>> moments = growth.grow_like({"m": params}, params, grown)

The delta is subtracted, new units are added and come last; `decrease` and `gain` are slopes of the mean loss.
"""

from growth.carry import grow_like
from growth.delta import Delta, optimal_delta
from growth.neurons import Neurons, optimal_neurons
from growth.pairs import Pair
from growth.signs import choose_sign
from growth.statistics import Statistics, statistics
from growth.surgery import apply_extended, grow

__all__ = [
    "Delta",
    "Neurons",
    "Pair",
    "Statistics",
    "apply_extended",
    "choose_sign",
    "grow",
    "grow_like",
    "optimal_delta",
    "optimal_neurons",
    "statistics",
]
