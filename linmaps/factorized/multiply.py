"""Products of rows with one matrix in factorized form: the plan for so many rows, made once, and its execution."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from linmaps.checks import Shape
from linmaps.factorized.checkpoint import recompute
from linmaps.factorized.kinds import KINDS, Kind, Leaves
from linmaps.factorized.tensors.plan import Plan, least, product

IMPLEMENTATIONS = ("auto", "factorized", "reconstructed")


@functools.lru_cache(maxsize=4096)
def plan_for(name: str, r: Any, O: Shape, I: Shape, B: int, implementation: str) -> Plan:
    ways = KINDS[name].ways(r, O, I, B)
    allowed = [
        title
        for title, way in ways.items()
        if implementation == "auto" or len(ways) == 1 or (way.options is None) == (implementation == "reconstructed")
    ]
    chosen = allowed[least([ways[title].cost.time for title in allowed])]
    return Plan(B, ways, chosen, product(B, math.prod(I), math.prod(O)))


def multiply(
    kind: Kind, leaves: Leaves, x: Tensor, O: Shape, I: Shape, plan: Plan, *, checkpointing: bool = False
) -> Tensor:
    """`x W` for rows x [B, in]; real and complex numbers may meet."""
    f = _Product(kind, O, I, plan.ways[plan.chosen].options, tuple(leaves))
    tensors = _alike(x, *leaves.values())
    return recompute(f, *tensors) if checkpointing else f(*tensors)


@dataclass(frozen=True)
class _Product:
    """`x W` from x and the leaves, closing over no tensor."""

    kind: Kind
    O: Shape
    I: Shape
    options: dict[str, Any] | None
    names: tuple[str, ...]

    def __call__(self, x: Tensor, *leaves: Tensor) -> Tensor:
        params = dict(zip(self.names, leaves))
        if self.options is None:
            return x @ self.kind.matrix(params, self.O, self.I)
        return self.kind.apply(params, x, self.O, self.I, **self.options)


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All of them complex if one is."""
    if not any(t.is_complex() for t in tensors):
        return tensors
    return tuple(t.to(t.dtype.to_complex()) for t in tensors)
