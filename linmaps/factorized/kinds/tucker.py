"""A core and a factor for each mode (Tucker)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from linmaps.factorized.tensors.multilinear import amid
from linmaps.factorized.tensors.plan import Cost, Way, cheapest, product, step
from linmaps.factorized.tensors.randomized import randomized_hosvd, tucker_sketches
from linmaps.factorized.tensors.tucker import tucker_hosvd


class Tucker(Kind):
    """ "core" [r_1..r_N], "U0".. [s_k, r_k].  Layers share all but the first factor."""

    name, layered = "tucker", ("U0", 0)

    def ranks(self, rank: Any, L: int, O: Shape, I: Shape, compat: bool = False) -> Any:
        return (tltorch_ranks if compat else ranks).tucker_rank(rank, modes(L, O, I))

    def shapes(self, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]:
        return {"core": tuple(r)} | {f"U{k}": shape for k, shape in enumerate(zip(modes(L, O, I), r))}

    def terms(self, r: Any) -> float:
        return float(math.prod(r))

    def inner(self, a: Leaves, b: Leaves) -> Tensor:
        return norms.tucker_inner(a["core"], listed(a, "U"), b["core"], listed(b, "U"))

    def _split(self, params: Leaves, O: Shape) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        factors = listed(params, "U")
        return params["core"], factors[: len(O)], factors[len(O) :]

    def matrix(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        return chains.tucker_matrix(*self._split(params, O))

    def ways(self, r: Any, O: Shape, I: Shape, B: int) -> dict[str, Way]:
        p = len(O)
        outs, ins = r[:p], r[p:]

        def kronecker(a: int, b: int, sizes: Sequence[int], ranks: Sequence[int]) -> Cost:
            n = math.prod(sizes[a:b]) * math.prod(ranks[a:b])
            return Cost(n, 2 * n, b - a - 1)

        def project(a: int, b: int, B: int = B) -> Cost:
            n, done = B * math.prod(I[:a]), math.prod(ins[b:])
            return kronecker(a, b, I, ins) + step(n, math.prod(ins[a:b]), math.prod(I[a:b]), done)

        def expand(a: int, b: int, B: int = B, sizes: Sequence[int] = O, ranks: Sequence[int] = outs) -> Cost:
            n, rest = B * math.prod(sizes[:a]), math.prod(ranks[b:])
            return kronecker(a, b, sizes, ranks) + step(n, math.prod(sizes[a:b]), math.prod(ranks[a:b]), rest)

        into, in_groups = cheapest(len(I), project)
        out, out_groups = cheapest(p, expand)
        ways = {
            "modes": Way(
                {"in_groups": in_groups, "out_groups": out_groups},
                into + product(B, math.prod(ins), math.prod(outs)) + out,
            )
        }
        formed = sum((expand(k, k + 1, math.prod(outs), I, ins) for k in range(len(I))), Cost())
        formed = sum((expand(k, k + 1, math.prod(I)) for k in range(p)), formed)
        return ways | {"dense": Way(None, formed + dense_product(O, I, B))}

    def apply(self, params: Leaves, x: Tensor, O: Shape, I: Shape, **options: Any) -> Tensor:
        return chains.tucker_apply(x, *self._split(params, O), **options)

    def rows(self, params: Leaves, index: tuple[Tensor, ...], O: Shape, I: Shape) -> Tensor:
        core, outs, ins = self._split(params, O)
        z, n = chains.core_matrix(core, len(outs)).mT, len(index[0])
        z = z.reshape(1, *core.shape[len(outs) :], z.shape[1]).expand(n, *core.shape[len(outs) :], z.shape[1])
        for U, i in zip(ins, index):  # [n, ranks to come, ranks of outs]
            r = U.shape[1]
            z = (U[i][:, None] @ z.reshape(n, r, math.prod(z.shape[2:]))).reshape(n, *z.shape[2:])
        return chains.expand(z, outs)

    def single(self, r: Any) -> Any:
        return tuple(r[1:])

    def select(self, params: Leaves, layer: int | Tensor) -> dict[str, Tensor]:
        first, *others = listed(params, "U")
        core = params["core"]
        row = first[layer] @ core.reshape(core.shape[0], math.prod(core.shape[1:]))
        return {"core": row.reshape(core.shape[1:])} | named("U", others)

    def bonds(self, r: Any) -> dict[str, int]:
        return {f"r{k}": size for k, size in enumerate(r)}

    def scale_bonds(self, params: Leaves, factors: Leaves) -> dict[str, Tensor]:
        scaled = {f"U{k[1:]}": params[f"U{k[1:]}"] * w for k, w in factors.items()}
        return {**params, **scaled}

    def keep(self, params: Leaves, r: Any, kept: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        leaves, r = dict(params), list(r)
        for bond, index in kept.items():
            k = int(bond[1:])
            leaves["core"] = leaves["core"].index_select(k, index)
            leaves[f"U{k}"] = leaves[f"U{k}"].index_select(1, index)
            r[k] = len(index)
        return tuple(r), leaves

    def cut(self, params: Leaves, L: int, O: Shape, I: Shape, outs: Places, ins: Places) -> dict[str, Tensor]:
        return cut_each(params, "U", int(L > 1), (*outs, *ins))

    def insert(
        self, params: Leaves, r: Any, L: int, O: Shape, I: Shape, size: int, side: Side, at: int
    ) -> tuple[Any, dict[str, Tensor]]:
        k, core = (L > 1) + at + (len(O) if side == "in" else 0), params["core"]
        factors = before(listed(params, "U"), k, amid(core.new_ones(1), 0, size))
        return tuple(before(r, k, 1)), {"core": core.unsqueeze(k)} | named("U", factors)

    def decompose(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape, how: Fitting) -> dict[str, Tensor]:
        T, sweeps = tensor(W, L, O, I), {} if how.n_sweeps is None else {"n_sweeps": how.n_sweeps}
        if how.sketch is None:
            core, factors = tucker_hosvd(T, r, **sweeps)
        else:
            core, factors = randomized_hosvd(T, r, how.sketch, n_power=how.n_power, **sweeps)
        return {"core": core} | named("U", factors)

    def sketches(
        self, generator: torch.Generator, r: Any, L: int, O: Shape, I: Shape, *, oversampling: int, dtype: torch.dtype
    ) -> list[Tensor]:
        return tucker_sketches(generator, modes(L, O, I), r, oversampling=oversampling, dtype=dtype)

    def unfoldings(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape) -> list[tuple[Tensor, int]]:
        T = tensor(W, L, O, I)
        return [(torch.movedim(T, k, 0).reshape(s, -1), r[k]) for k, s in enumerate(T.shape)]
