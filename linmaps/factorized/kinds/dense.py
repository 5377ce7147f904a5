"""No factorization: a free matrix, beside which the others are measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from linmaps.factorized.kinds.base import Fitting, Kind, Leaves, Places, Shape, Side, dense_product
from linmaps.factorized.tensors.multilinear import amid, taken
from linmaps.factorized.tensors.plan import Way


class Dense(Kind):
    """ "W" [(L,) in, out]; layers share nothing."""

    name, joint, layered = "dense", "nothing", ("W", 0)

    def ranks(self, rank: Any, L: int, O: Shape, I: Shape, compat: bool = False) -> Any:
        return None

    def shapes(self, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]:
        return {"W": ((L,) if L > 1 else ()) + (math.prod(I), math.prod(O))}

    def terms(self, r: Any) -> float:
        return 1.0

    def inner(self, a: Leaves, b: Leaves) -> Tensor:
        return (a["W"].conj() * b["W"]).sum()

    def matrix(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        return params["W"]

    def ways(self, r: Any, O: Shape, I: Shape, B: int) -> dict[str, Way]:
        return {"dense": Way(None, dense_product(O, I, B))}

    def apply(self, params: Leaves, x: Tensor, O: Shape, I: Shape, **options: Any) -> Tensor:
        return x @ params["W"]

    def rows(self, params: Leaves, index: tuple[Tensor, ...], O: Shape, I: Shape) -> Tensor:
        return params["W"].reshape(*I, math.prod(O))[index]

    def select(self, params: Leaves, layer: int | Tensor) -> dict[str, Tensor]:
        return {"W": params["W"][layer]}

    def bonds(self, r: Any) -> dict[str, int]:
        return {}

    def scale_bonds(self, params: Leaves, factors: Leaves) -> dict[str, Tensor]:
        return dict(params)

    def keep(self, params: Leaves, r: Any, kept: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        return r, dict(params)

    def cut(self, params: Leaves, L: int, O: Shape, I: Shape, outs: Places, ins: Places) -> dict[str, Tensor]:
        W, lead = params["W"], params["W"].ndim - 2
        T = W.reshape(*W.shape[:lead], *I, *O)
        for axis, places in enumerate((*ins, *outs), lead):
            T = taken(T, axis, places)
        return {"W": T.reshape(*W.shape[:lead], math.prod(map(len, ins)), math.prod(map(len, outs)))}

    def insert(
        self, params: Leaves, r: Any, L: int, O: Shape, I: Shape, size: int, side: Side, at: int
    ) -> tuple[Any, dict[str, Tensor]]:
        W = params["W"]
        lead, (n, m) = W.shape[:-2], W.shape[-2:]
        T = amid(W.reshape(*lead, *I, *O), len(lead) + at + (len(I) if side == "out" else 0), size)
        return r, {"W": T.reshape(*lead, *((n * size, m) if side == "in" else (n, m * size)))}

    def decompose(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape, how: Fitting) -> dict[str, Tensor]:
        return {"W": W.clone()}

    def unfoldings(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape) -> list[tuple[Tensor, int]]:
        return []
