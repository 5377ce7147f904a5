"""A sum of R products of vectors (canonical polyadic)."""

from __future__ import annotations

import math
from typing import Any

from linmaps.factorized.kinds.base import Kind, Shape, dense_product, listed, modes, named, tensor
from linmaps.factorized.tensors import chains, norms, ranks, tltorch_ranks
from linmaps.factorized.tensors.cp import cp_als
from linmaps.factorized.tensors.multilinear import khatri_rao
from linmaps.factorized.tensors.plan import Cost, Way, least, product


class CP(Kind):
    """ "weights" [R] and "U0".. [s_k, R].  Layers share all but the first factor."""

    name, layered = "cp", ("U0", 0)

    def ranks(self, rank, L, O, I, compat=False):
        return (tltorch_ranks if compat else ranks).cp_rank(rank, modes(L, O, I))

    def shapes(self, r, L, O, I):
        return {"weights": (r,)} | {f"U{k}": (s, r) for k, s in enumerate(modes(L, O, I))}

    def terms(self, r):
        return float(r)

    def inner(self, a, b):
        return norms.cp_inner(a["weights"], listed(a, "U"), b["weights"], listed(b, "U"))

    def _split(self, params, O):
        factors = listed(params, "U")
        return params["weights"], factors[: len(O)], factors[len(O) :]

    def matrix(self, params, O, I):
        return chains.cp_matrix(*self._split(params, O))

    def ways(self, r, O, I, B):
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

    def apply(self, params, x, O, I, **options: Any):
        return chains.cp_apply(x, *self._split(params, O), **options)

    def rows(self, params, index, O, I):
        weights, outs, ins = self._split(params, O)
        for U, i in zip(ins, index):
            weights = weights * U[i]
        return weights @ khatri_rao(outs).mT

    def select(self, params, layer):
        first, *others = listed(params, "U")
        return {"weights": params["weights"] * first[layer]} | named("U", others)

    def bonds(self, r):
        return {"r": r}

    def scale_bonds(self, params, factors):
        return {**params, "weights": params["weights"] * factors["r"]} if "r" in factors else dict(params)

    def keep(self, params, r, kept):
        if "r" not in kept:
            return r, dict(params)
        return len(kept["r"]), {k: t.index_select(-1, kept["r"]) for k, t in params.items()}

    def decompose(self, W, r, L, O, I, how):
        T, sweeps = tensor(W, L, O, I), {} if how.n_sweeps is None else {"n_sweeps": how.n_sweeps}
        weights, factors = cp_als(T, r if how.start is None else how.start, **sweeps)
        return {"weights": weights} | named("U", factors)

    def unfoldings(self, W, r, L, O, I):
        T = tensor(W, L, O, I)
        alone = [T.movedim(k, 0).reshape(s, -1) for k, s in enumerate(T.shape)]
        in_order = [T.reshape(math.prod(T.shape[:k]), -1) for k in range(2, T.ndim - 1)]
        return [(M, r) for M in [*alone, *in_order]]
