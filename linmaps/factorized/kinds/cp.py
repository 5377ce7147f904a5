"""A sum of R products of vectors (canonical polyadic)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from linmaps.factorized.kinds.base import (
    Fitting,
    Kind,
    Leaves,
    Places,
    Shape,
    Side,
    before,
    cut_each,
    dense_product,
    listed,
    modes,
    named,
    tensor,
)
from linmaps.factorized.tensors import chains, norms, ranks, tltorch_ranks
from linmaps.factorized.tensors.compressed import compressed_cp, cp_sketches
from linmaps.factorized.tensors.cp import cp_als
from linmaps.factorized.tensors.multilinear import amid, khatri_rao
from linmaps.factorized.tensors.plan import Cost, Way, least, product


class CP(Kind):
    """ "weights" [R] and "U0".. [s_k, R].  Layers share all but the first factor."""

    name, layered = "cp", ("U0", 0)

    def ranks(self, rank: Any, L: int, O: Shape, I: Shape, compat: bool = False) -> Any:
        return (tltorch_ranks if compat else ranks).cp_rank(rank, modes(L, O, I))

    def shapes(self, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]:
        return {"weights": (r,)} | {f"U{k}": (s, r) for k, s in enumerate(modes(L, O, I))}

    def terms(self, r: Any) -> float:
        return float(r)

    def inner(self, a: Leaves, b: Leaves) -> Tensor:
        return norms.cp_inner(a["weights"], listed(a, "U"), b["weights"], listed(b, "U"))

    def _split(self, params: Leaves, O: Shape) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        factors = listed(params, "U")
        return params["weights"], factors[: len(O)], factors[len(O) :]

    def matrix(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        return chains.cp_matrix(*self._split(params, O))

    def ways(self, r: Any, O: Shape, I: Shape, B: int) -> dict[str, Way]:
        def formed(sizes: Shape) -> Cost:
            return Cost(r * math.prod(sizes), 2 * r * math.prod(sizes), 1) if len(sizes) > 1 else Cost()

        def side(sizes: Shape, head: int) -> Cost:
            rows, rest = B * math.prod(sizes[:head]), math.prod(sizes[head:])
            by_entry = formed(sizes[:head]) + Cost(rows * r, 3 * rows * r, 2) if head else Cost()
            return formed(sizes[head:]) + product(rows, rest, r) + by_entry

        heads, cost = [], Cost()
        for sizes in (I, O):
            costs = [side(sizes, head) for head in range(len(sizes))]
            heads.append(least([c.time for c in costs]))
            cost = cost + costs[heads[-1]]
        formation = formed(I) + formed(O) + product(math.prod(I), r, math.prod(O))
        return {
            "Khatri-Rao": Way({"in_head": heads[0], "out_head": heads[1]}, cost),
            "dense": Way(None, formation + dense_product(O, I, B)),
        }

    def apply(self, params: Leaves, x: Tensor, O: Shape, I: Shape, **options: Any) -> Tensor:
        return chains.cp_apply(x, *self._split(params, O), **options)

    def rows(self, params: Leaves, index: tuple[Tensor, ...], O: Shape, I: Shape) -> Tensor:
        weights, outs, ins = self._split(params, O)
        for U, i in zip(ins, index):
            weights = weights * U[i]
        return weights @ khatri_rao(outs).mT

    def select(self, params: Leaves, layer: int | Tensor) -> dict[str, Tensor]:
        first, *others = listed(params, "U")
        return {"weights": params["weights"] * first[layer]} | named("U", others)

    def bonds(self, r: Any) -> dict[str, int]:
        return {"r": r}

    def scale_bonds(self, params: Leaves, factors: Leaves) -> dict[str, Tensor]:
        return {**params, "weights": params["weights"] * factors["r"]} if "r" in factors else dict(params)

    def keep(self, params: Leaves, r: Any, kept: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        if "r" not in kept:
            return r, dict(params)
        return len(kept["r"]), {k: t.index_select(-1, kept["r"]) for k, t in params.items()}

    def cut(self, params: Leaves, L: int, O: Shape, I: Shape, outs: Places, ins: Places) -> dict[str, Tensor]:
        return cut_each(params, "U", int(L > 1), (*outs, *ins))

    def insert(
        self, params: Leaves, r: Any, L: int, O: Shape, I: Shape, size: int, side: Side, at: int
    ) -> tuple[Any, dict[str, Tensor]]:
        k = (L > 1) + at + (len(O) if side == "in" else 0)
        new = amid(torch.ones_like(params["weights"]), 0, size)
        return r, {"weights": params["weights"]} | named("U", before(listed(params, "U"), k, new))

    def decompose(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape, how: Fitting) -> dict[str, Tensor]:
        T, sweeps = tensor(W, L, O, I), {} if how.n_sweeps is None else {"n_sweeps": how.n_sweeps}
        start = r if how.start is None else how.start
        if how.sketch is None:
            weights, factors = cp_als(T, start, **sweeps)
        else:
            weights, factors = compressed_cp(T, start, how.sketch, n_power=how.n_power, **sweeps)
        return {"weights": weights} | named("U", factors)

    def sketches(
        self, generator: torch.Generator, r: Any, L: int, O: Shape, I: Shape, *, oversampling: int, dtype: torch.dtype
    ) -> list[Tensor]:
        return cp_sketches(generator, modes(L, O, I), r, oversampling=oversampling, dtype=dtype)

    def unfoldings(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape) -> list[tuple[Tensor, int]]:
        T = tensor(W, L, O, I)
        alone = [T.movedim(k, 0).reshape(s, -1) for k, s in enumerate(T.shape)]
        in_order = [T.reshape(math.prod(T.shape[:k]), -1) for k in range(2, T.ndim - 1)]
        return [(M, r) for M in [*alone, *in_order]]
