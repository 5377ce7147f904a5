"""Units of several gates: those of each in closed form, the best of all; what has no meaning for them.

k new units, c gate rows of the statistics; other axes as in `statistics`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from growth.closed_form.units import Neurons
from growth.moments.first_order import Statistics
from growth.moments.gates import GateMoments
from growth.reading.gated_pairs import Gated
from growth.reading.pairs import Pair

ASK = "take optimal_neurons, tiny, senn, zero_out, zero_in, random, or growth.gated_neurons"


def of_gate(stats: Statistics, number: int) -> Statistics:
    """The statistics to units of one gate: those of a pair without activation, whose inputs the gate has let through."""
    gates = _gates(stats)
    return dataclasses.replace(stats, S_prev=gates.S[number], M_prev=gates.M[number], P=gates.P[number], gates=None)


def best_of_gates(stats: Statistics, k: int, solve: Callable[[Statistics], Neurons]) -> Neurons:
    """The k units of largest eigenvalue among those that `solve` finds for each gate, with their gate rows."""
    count = len(_gates(stats).rows)
    return _joined(stats, [(solve(of_gate(stats, j)), j) for j in range(count)], k)


def dealt(stats: Statistics, draws: Tensor, make: Callable[[Statistics, Tensor], Neurons]) -> Neurons:
    """Units that `make` makes of rows of draws `[k, n]`, dealt to the gates in turn; those of largest eigenvalue first."""
    count = len(_gates(stats).rows)
    made = [(make(of_gate(stats, j), draws[j::count]), j) for j in range(min(count, max(1, len(draws))))]
    return _joined(stats, made, len(draws))


def ungated(stats: Statistics, name: str) -> None:
    """Raise a ValueError for statistics of a gated pair, which mean nothing to the function of this name."""
    if stats.gates is not None:
        raise ValueError(f"{name}: got statistics of {stats.pair}, expected those of a pair without a gate; {ASK}")


def ungated_pair(pair: object, name: str) -> None:
    """The same for a pair."""
    if isinstance(pair, Gated):
        raise ValueError(
            f"{name}: got {pair}, expected a pair without a gate; widen(params, pair, k, 'zero_out') draws units of three "
            "sides, and growth.random takes those of statistics"
        )


def check_gate(pair: Pair, new: Neurons) -> None:
    """Raise a ValueError for units without gate rows of a gated pair, and for those with gate rows of another."""
    if isinstance(pair, Gated) != (new.gate is not None):
        got, cure = ("no gate rows", ASK) if isinstance(pair, Gated) else ("gate rows", "give units made for this pair")
        raise ValueError(f"{pair}: new has {got}, expected {'some' if new.gate is None else 'none'}; {cure}")


def _gates(stats: Statistics) -> GateMoments:
    return cast(GateMoments, stats.gates)


def _joined(stats: Statistics, found: list[tuple[Neurons, int]], k: int) -> Neurons:
    gates, (first, _) = _gates(stats), found[0]
    join = lambda name, axis=0: torch.cat([getattr(new, name) for new, _ in found], axis)
    values = join("eigenvalues")
    order = values.argsort(descending=True, stable=True)[:k]
    number = torch.cat([order.new_full((new.size,), j) for new, j in found])[order]
    gains = join("gains")[order]
    return dataclasses.replace(
        first,
        fan_in=join("fan_in")[order],
        fan_in_bias=None if first.fan_in_bias is None else join("fan_in_bias")[order],
        fan_out=join("fan_out", 1)[:, order],
        eigenvalues=values[order],
        gains=gains,
        gain=gains.sum(),
        gate=gates.rows[number],
        gate_bias=None if gates.bias is None else gates.bias[number],
    )
