"""Sums of statistics over the samples of several processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fisher.distributed.marks import Symmetric, marked
from fisher.distributed.stages import Reduce, over_all
from growth.moments.first_order import Statistics

CONSTANTS = ("sigma0", "slope_plus", "slope_minus")  # the same at all ranks
Rows = tuple[Tensor, Tensor | None] | None


def over_ranks(reduce: Reduce, sums: list[Statistics], rows: Sequence[Rows]) -> list[Statistics]:
    """The sums over the samples of all ranks; an empty list where none are here.  rows: of the gates of each pair."""
    own = [_linear(s) for s in sums]
    total, count = over_all(reduce, own or None, int(sums[0].count) if sums else 0)
    return [_back(s, count, known) for s, known in zip(total, rows)]


def _linear(s: Statistics) -> Any:
    """What of the sums is linear in the data, constants times the samples; second moments are marked."""
    gates = s.gates
    if gates is not None:
        bias = None if gates.bias is None else gates.bias[:0]
        gates = dataclasses.replace(gates, rows=gates.rows[:0], bias=bias, S=marked(gates.S, 3))
    norm = None if s.norm is None else dataclasses.replace(s.norm, S=marked(s.norm.S))
    made: dict[str, Any] = {name: Symmetric(getattr(s, name)) for name in ("S", "S_prev", "E")}
    made |= {name: getattr(s, name) * s.count for name in CONSTANTS}
    made |= {name: getattr(s, name).double() for name in ("count", "positions")}
    return dataclasses.replace(s, gates=gates, norm=norm, **made)


def _back(s: Statistics, count: Any, rows: Rows) -> Statistics:
    gates = s.gates
    if gates is not None and rows is not None:
        gates = dataclasses.replace(
            gates, rows=rows[0].to(gates.S), bias=None if rows[1] is None else rows[1].to(gates.S)
        )
    made: dict[str, Any] = {name: getattr(s, name) / count for name in CONSTANTS}
    made |= {"count": s.S.new_zeros(()) + count, "positions": s.positions.to(s.S)}
    return dataclasses.replace(s, gates=gates, **made)
