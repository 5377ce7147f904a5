"""A matrix of low rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from linmaps.factorized.kinds.base import Fitting, Kind, Leaves, Places, Shape, Side, dense_product
from linmaps.factorized.tensors import ranks
from linmaps.factorized.tensors.multilinear import amid, taken
from linmaps.factorized.tensors.plan import Way, product
from linmaps.factorized.tensors.randomized import check_sketches, drawn, leading
from linmaps.numerics.singular import left, product_svdvals


class LowRank(Kind):
    """W = U V: "U" [in, R], which layers share, and "V" [(L,) R, out]."""

    name, joint, layered = "lowrank", "U", ("V", 0)

    def ranks(self, rank: Any, L: int, O: Shape, I: Shape, compat: bool = False) -> Any:
        cut = ranks.low_rank(rank, math.prod(I), L * math.prod(O))
        return rank if compat and isinstance(rank, int) else cut

    def shapes(self, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]:
        return {"U": (math.prod(I), r), "V": ((L,) if L > 1 else ()) + (r, math.prod(O))}

    def terms(self, r: Any) -> float:
        return float(r)

    def inner(self, a: Leaves, b: Leaves) -> Tensor:
        # <U V, P Q> = sum over the entries of (U' P) and (V Q')
        rights = (a["V"].conj() @ b["V"].mT).reshape(-1, a["V"].shape[-2], b["V"].shape[-2]).sum(0)
        return ((a["U"].mH @ b["U"]) * rights).sum()

    def matrix(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        return params["U"] @ params["V"]

    def singular_values(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        U, V = params["U"], params["V"]
        few = U.shape[1] <= min(len(U), V.shape[1])
        return product_svdvals(U, V) if few else super().singular_values(params, O, I)

    def ways(self, r: Any, O: Shape, I: Shape, B: int) -> dict[str, Way]:
        n, m = math.prod(I), math.prod(O)
        return {
            "two products": Way({}, product(B, n, r) + product(B, r, m)),
            "dense": Way(None, product(n, r, m) + dense_product(O, I, B)),
        }

    def apply(self, params: Leaves, x: Tensor, O: Shape, I: Shape, **options: Any) -> Tensor:
        return (x @ params["U"]) @ params["V"]

    def rows(self, params: Leaves, index: tuple[Tensor, ...], O: Shape, I: Shape) -> Tensor:
        return params["U"].reshape(*I, params["U"].shape[1])[index] @ params["V"]

    def select(self, params: Leaves, layer: int | Tensor) -> dict[str, Tensor]:
        return {"U": params["U"], "V": params["V"][layer]}

    def bonds(self, r: Any) -> dict[str, int]:
        return {"r": r}

    def scale_bonds(self, params: Leaves, factors: Leaves) -> dict[str, Tensor]:
        return {**params, "U": params["U"] * factors["r"]} if "r" in factors else dict(params)

    def keep(self, params: Leaves, r: Any, kept: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        if "r" not in kept:
            return r, dict(params)
        U, V = params["U"].index_select(1, kept["r"]), params["V"].index_select(-2, kept["r"])
        return len(kept["r"]), {"U": U, "V": V}

    def cut(self, params: Leaves, L: int, O: Shape, I: Shape, outs: Places, ins: Places) -> dict[str, Tensor]:
        U, V = params["U"], params["V"]
        rows, columns, lead = U.reshape(*I, U.shape[1]), V.reshape(*V.shape[:-1], *O), V.ndim - 1
        for axis, places in enumerate(ins):
            rows = taken(rows, axis, places)
        for axis, places in enumerate(outs, lead):
            columns = taken(columns, axis, places)
        n, m = math.prod(map(len, ins)), math.prod(map(len, outs))
        return {"U": rows.reshape(n, U.shape[1]), "V": columns.reshape(*V.shape[:-1], m)}

    def insert(
        self, params: Leaves, r: Any, L: int, O: Shape, I: Shape, size: int, side: Side, at: int
    ) -> tuple[Any, dict[str, Tensor]]:
        U, V = params["U"], params["V"]
        if side == "in":
            return r, {"U": amid(U.reshape(*I, U.shape[1]), at, size).reshape(len(U) * size, U.shape[1]), "V": V}
        columns = amid(V.reshape(*V.shape[:-1], *O), V.ndim - 1 + at, size)
        return r, {"U": U, "V": columns.reshape(*V.shape[:-1], V.shape[-1] * size)}

    def decompose(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape, how: Fitting) -> dict[str, Tensor]:
        n, m = W.shape[-2:]
        side_by_side = W if L == 1 else W.transpose(0, 1).reshape(n, L * m)
        if how.sketch is None:
            U = left(side_by_side)[:, :r]
        else:
            wanted = [(L * m, r, min(n, L * m))]
            check_sketches("lowrank", how.sketch, wanted, "linmaps.factorized.sketches(spec, generator)")
            U = leading(side_by_side, r, how.sketch[0], how.n_power)
        V = U.mH @ side_by_side  # has derivatives where singular values repeat, as products with them would not
        return {"U": U, "V": V if L == 1 else V.reshape(r, L, m).transpose(0, 1)}

    def sketches(
        self, generator: torch.Generator, r: Any, L: int, O: Shape, I: Shape, *, oversampling: int, dtype: torch.dtype
    ) -> list[Tensor]:
        n = L * math.prod(O)
        return drawn(generator, [(n, r, min(n, math.prod(I)))], oversampling, dtype)

    def unfoldings(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape) -> list[tuple[Tensor, int]]:
        return [(W if L == 1 else W.transpose(0, 1).reshape(W.shape[1], L * W.shape[2]), r)]
