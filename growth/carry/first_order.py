"""First-order statistics over a change of widths: zeros for new units, as if they had been silent; pruned ones go."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from growth.moments.first_order import Statistics
from growth.moments.gates import GateMoments
from growth.reading.layers import Layer, layers_of
from growth.surgery.moves import Move, Moves


def carried_statistics(stats: Statistics, moves: Moves) -> Statistics:
    """The statistics of a pair with zeros for new units, as if they had been silent, and without pruned ones.

    The bias coordinate stays last.  Raises ValueError where the pair is not known or its sizes are not those of params.

    >>> import torch, growth
    >>> from growth.surgery.moves import growing
    >>> f, data = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T, (torch.eye(2), torch.eye(2))
    >>> p = {"a.weight": torch.eye(2), "b.weight": torch.eye(2)}
    >>> grown = {"a.weight": torch.ones(3, 2), "b.weight": torch.ones(2, 3)}
    >>> s = growth.statistics(f, p, data, growth.Pair("a", "b"), "squared_error")
    >>> carried_statistics(s, growing(p, grown)).S.shape
    torch.Size([3, 3])
    """
    if stats.pair is None:
        raise ValueError("state: Statistics without a pair, expected that of growth.statistics; compute them anew")
    before, after = layers_of(moves.params, stats.pair)
    b2, b1 = ([_move(moves, layer) for layer in side.all] for side in (before, after))
    into1, into2 = _Inputs(b1, stats.bias_after), _Inputs(b2, stats.bias_before)
    out = _Outputs(b1[0], 1)
    ways: dict[str, tuple[Any, ...]] = {
        "S": (into1, into1),
        "M": (into1, out),
        "S_prev": (into2, into2),
        "M_prev": (into2, _Outputs(b1[0], stats.taps)),
        "P": (into2, into1),
        "E": (out, out),
    }
    new = {}
    for name, sides in ways.items():
        t = getattr(stats, name)
        for axis, side in zip((-2, -1), sides):
            if t.shape[axis] != side.size:
                raise ValueError(
                    f"state: Statistics of {stats.pair} have {name} {tuple(t.shape)}, expected size {side.size} on axis {axis}, "
                    "as params have; map over an ensemble with torch.func.vmap"
                )
            t = side(t.movedim(axis, -1)).movedim(-1, axis)
        new[name] = t
    rest = {n: getattr(stats, n).clone() for n in ("count", "positions", "sigma0", "slope_plus", "slope_minus")}
    return dataclasses.replace(stats, gates=_carried_gates(stats.gates, b2, into2, into1, out), **new, **rest)


def _move(moves: Moves, layer: Layer) -> Move:
    """How the weight [out, in] of a layer goes over."""
    move = moves.leaves[layer.weight_path]
    return move if layer.layout == "out_in" else move.turned


def _carried_gates(
    gates: GateMoments | None, b2: list[Move], into2: _Inputs, into1: _Inputs, out: _Outputs
) -> GateMoments | None:
    """The moments of given gates, whose rows get zeros for new inputs."""
    if gates is None:
        return None
    S, M, P = (into2(t.mT).mT for t in (gates.S, gates.M, gates.P))
    rows = _Inputs(b2, False)(gates.rows)
    return dataclasses.replace(gates, rows=rows, S=into2(S), M=out(M), P=into1(P))


class _Inputs:
    """The inputs of layers side by side, each the entries of a row of its weight, and the 1 of the bias."""

    def __init__(self, moves: list[Move], bias: bool) -> None:
        self.rows = [m.of(slice(1, None)).lifted((1,)) for m in moves]
        self.sizes = [math.prod(m.old[1:]) for m in moves]
        self.size = sum(self.sizes) + bias

    def __call__(self, t: Tensor) -> Tensor:
        lead = t.shape[:-1]
        *parts, one = t.split([*self.sizes, self.size - sum(self.sizes)], -1)
        moved = [m.lifted(lead)(p.reshape(*lead, *m.old)).flatten(len(lead)) for p, m in zip(parts, self.rows)]
        return torch.cat([*moved, one], -1)


class _Outputs:
    """The outputs of a layer, with all taps each."""

    def __init__(self, move: Move, taps: int) -> None:
        self.rows, self.taps, self.size = move.of(slice(0, 1)), taps, move.old[0] * taps

    def __call__(self, t: Tensor) -> Tensor:
        each = t.unflatten(-1, (self.rows.old[0], self.taps)).movedim(-1, 0)
        return self.rows.lifted(each.shape[:-1])(each).movedim(0, -1).flatten(-2)
