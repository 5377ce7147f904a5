"""Tensor trains: of the modes one after the other, and of matrices."""

from __future__ import annotations

import functools
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
from linmaps.factorized.tensors.multilinear import amid, taken
from linmaps.factorized.tensors.plan import Cost, Way, cheapest, product, step
from linmaps.factorized.tensors.randomized import randomized_tt, tt_sketches
from linmaps.factorized.tensors.trains import tt_svd
from linmaps.numerics.numeric import eye_like


class _Train(Kind):
    """Cores "A0".., bonds "r1".. between them."""

    def terms(self, r: Any) -> float:
        return float(math.prod(r))

    def bonds(self, r: Any) -> dict[str, int]:
        return {f"r{k}": r[k] for k in range(1, len(r) - 1)}

    def scale_bonds(self, params: Leaves, factors: Leaves) -> dict[str, Tensor]:
        leaves = dict(params)
        for bond, w in factors.items():
            core = f"A{int(bond[1:]) - 1}"
            leaves[core] = leaves[core] * w
        return leaves

    def keep(self, params: Leaves, r: Any, kept: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        leaves, r = dict(params), list(r)
        for bond, index in kept.items():
            k = int(bond[1:])
            leaves[f"A{k - 1}"] = leaves[f"A{k - 1}"].index_select(-1, index)
            leaves[f"A{k}"] = leaves[f"A{k}"].index_select(0, index)
            r[k] = len(index)
        return tuple(r), leaves

    @staticmethod
    def _cores(T: Tensor, r: Any, how: Fitting) -> list[Tensor]:
        return tt_svd(T, r) if how.sketch is None else randomized_tt(T, r, how.sketch, n_power=how.n_power)


class TT(_Train):
    """ "A0".. [r_{k-1}, s_k, r_k].  Layers share all but the first core."""

    name, joint, layered = "tt", "all but the first core", ("A0", 1)

    def ranks(self, rank: Any, L: int, O: Shape, I: Shape, compat: bool = False) -> Any:
        return (tltorch_ranks if compat else ranks).tt_rank(rank, modes(L, O, I))

    def shapes(self, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]:
        return {f"A{k}": (r[k], s, r[k + 1]) for k, s in enumerate(modes(L, O, I))}

    def inner(self, a: Leaves, b: Leaves) -> Tensor:
        return norms.tt_inner(listed(a, "A"), listed(b, "A"))

    def _split(self, params: Leaves, O: Shape) -> tuple[list[Tensor], list[Tensor]]:
        cores = listed(params, "A")
        return cores[: len(O)], cores[len(O) :]

    def matrix(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        return chains.tt_matrix(*self._split(params, O))

    def ways(self, r: Any, O: Shape, I: Shape, B: int) -> dict[str, Way]:
        p = len(O)

        def join(a: int, b: int, offset: int, sizes: Sequence[int]) -> Cost:
            cost, s = Cost(), sizes[a]
            for k in range(a + 1, b):
                left, here = r[offset + a] * s, sizes[k] * r[offset + k + 1]
                cost, s = cost + product(left, r[offset + k], here), s * sizes[k]
            return cost

        def take(a: int, b: int) -> Cost:
            n, k = B * math.prod(I[:a]), math.prod(I[a:b]) * r[p + b]
            return join(a, b, p, I) + product(n, k, r[p + a])

        def give(a: int, b: int) -> Cost:
            return join(a, b, 0, O) + step(B, r[a] * math.prod(O[a:b]), r[b], math.prod(O[b:]))

        into, in_groups = cheapest(len(I), take)
        out, out_groups = cheapest(p, give)
        formed = join(0, p, 0, O) + join(0, len(I), p, I) + product(math.prod(I), r[p], math.prod(O))
        return {
            "cores": Way({"in_groups": in_groups, "out_groups": out_groups}, into + out),
            "dense": Way(None, formed + dense_product(O, I, B)),
        }

    def apply(self, params: Leaves, x: Tensor, O: Shape, I: Shape, **options: Any) -> Tensor:
        return chains.tt_apply(x, *self._split(params, O), **options)

    def rows(self, params: Leaves, index: tuple[Tensor, ...], O: Shape, I: Shape) -> Tensor:
        outs, ins = self._split(params, O)
        n, chosen = len(index[0]), [A.movedim(1, 0)[i] for A, i in zip(ins, index)]  # each [n, r, r']
        z = functools.reduce(lambda z, A: A @ z, reversed(chosen))
        P = chains.joined(outs)
        return z.reshape(n, ins[0].shape[0]) @ P.reshape(P.shape[1:]).mT

    def single(self, r: Any) -> Any:
        return (1, *r[2:])

    def select(self, params: Leaves, layer: int | Tensor) -> dict[str, Tensor]:
        first, second, *others = listed(params, "A")
        (s, q), row = second.shape[1:], first[0, layer]
        merged = (row @ second.reshape(second.shape[0], s * q)).reshape(1, s, q)
        return named("A", [merged, *others])

    def cut(self, params: Leaves, L: int, O: Shape, I: Shape, outs: Places, ins: Places) -> dict[str, Tensor]:
        return cut_each(params, "A", int(L > 1), (*outs, *ins))

    def insert(
        self, params: Leaves, r: Any, L: int, O: Shape, I: Shape, size: int, side: Side, at: int
    ) -> tuple[Any, dict[str, Tensor]]:
        k, cores = (L > 1) + at + (len(O) if side == "in" else 0), listed(params, "A")
        new = amid(eye_like(cores[0], r[k]), 1, size)
        return tuple(before(r, k, r[k])), named("A", before(cores, k, new))

    def sketches(
        self, generator: torch.Generator, r: Any, L: int, O: Shape, I: Shape, *, oversampling: int, dtype: torch.dtype
    ) -> list[Tensor]:
        return tt_sketches(generator, modes(L, O, I), r, oversampling=oversampling, dtype=dtype)

    def decompose(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape, how: Fitting) -> dict[str, Tensor]:
        return named("A", self._cores(tensor(W, L, O, I), r, how))

    def unfoldings(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape) -> list[tuple[Tensor, int]]:
        T = tensor(W, L, O, I)
        return [(T.reshape(math.prod(T.shape[:k]), -1), r[k]) for k in range(1, T.ndim)]


class BlockTT(_Train):
    """A train of matrices: "A0".. [r_{k-1}, (L,) o_k, i_k, r_k], as many out as in modes.  Layers share nothing."""

    name, joint, layered, paired = "blocktt", "nothing", ("A0", 1), True

    def ranks(self, rank: Any, L: int, O: Shape, I: Shape, compat: bool = False) -> Any:
        return (tltorch_ranks if compat else ranks).tt_rank(rank, [o * i for o, i in zip(O, I)])

    def shapes(self, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]:
        layers = (L,) if L > 1 else ()
        return {f"A{k}": (r[k], *layers, o, i, r[k + 1]) for k, (o, i) in enumerate(zip(O, I))}

    def inner(self, a: Leaves, b: Leaves) -> Tensor:
        left, right = listed(a, "A"), listed(b, "A")
        if left[0].ndim == 4:
            return norms.tt_inner(left, right)
        pairs = [[core.movedim(1, 0) for core in cores] for cores in (left, right)]
        return torch.func.vmap(norms.tt_inner)(*pairs).sum()

    def matrix(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        return chains.blocktt_matrix(listed(params, "A"))

    def ways(self, r: Any, O: Shape, I: Shape, B: int) -> dict[str, Way]:
        sizes = [o * i for o, i in zip(O, I)]

        def join(a: int, b: int) -> Cost:
            forward, cost = sizes[a] <= sizes[b - 1], Cost()
            for k in range(a + 1, b) if forward else range(b - 1, a, -1):
                left, right = (a, k + 1) if forward else (k - 1, b)
                n, m = r[left] * math.prod(sizes[left:k]), math.prod(sizes[k:right]) * r[right]
                cost = cost + product(n, r[k], m) + Cost(0, 2 * n * m, 1)
            return cost

        def first_to_last(a: int, b: int) -> Cost:
            n, m, k = B * math.prod(O[:a]), math.prod(O[a:b]) * r[b], r[a] * math.prod(I[a:b])
            return join(a, b) + step(n, m, k, math.prod(I[b:]))

        def last_to_first(a: int, b: int) -> Cost:
            n, m, k = B * math.prod(I[:a]), r[a] * math.prod(O[a:b]), math.prod(I[a:b]) * r[b]
            return join(a, b) + step(n, m, k, math.prod(O[b:]))

        ways = {}
        for name, forward, cost in (("last to first", False, last_to_first), ("first to last", True, first_to_last)):
            total, groups = cheapest(len(O), cost, whole=False)
            ways[name] = Way({"groups": groups, "forward": forward}, total)
        return ways | {"dense": Way(None, join(0, len(O)) + dense_product(O, I, B))}

    def apply(self, params: Leaves, x: Tensor, O: Shape, I: Shape, **options: Any) -> Tensor:
        return chains.blocktt_apply(x, listed(params, "A"), **options)

    def rows(self, params: Leaves, index: tuple[Tensor, ...], O: Shape, I: Shape) -> Tensor:
        first, *others = [A.movedim(2, 0)[i] for A, i in zip(listed(params, "A"), index)]  # each [n, r, o, r']
        z, n = first[:, 0], len(index[0])
        for A in others:
            r, o, after = A.shape[1:]
            z = (z @ A.reshape(n, r, o * after)).reshape(n, z.shape[1] * o, after)
        return z[:, :, 0]

    def select(self, params: Leaves, layer: int | Tensor) -> dict[str, Tensor]:
        return named("A", [core[:, layer] for core in listed(params, "A")])

    def subset(self, params: Leaves, layers: Tensor) -> dict[str, Tensor]:
        return {k: core.index_select(1, layers) for k, core in params.items()}

    def cut(self, params: Leaves, L: int, O: Shape, I: Shape, outs: Places, ins: Places) -> dict[str, Tensor]:
        axis = 2 if L > 1 else 1
        cores = [taken(A, axis, o) for A, o in zip(listed(params, "A"), outs)]
        return named("A", [taken(A, axis + 1, i) for A, i in zip(cores, ins)])

    def insert(
        self, params: Leaves, r: Any, L: int, O: Shape, I: Shape, size: int, side: Side, at: int
    ) -> tuple[Any, dict[str, Tensor]]:
        cores = listed(params, "A")
        new = amid(eye_like(cores[0], r[at]), 1, size)  # [r, size, r]
        new = new.unsqueeze(1 if side == "in" else 2)
        new = new if L == 1 else torch.stack([new] * L, dim=1)
        return tuple(before(r, at, r[at])), named("A", before(cores, at, new))

    def sketches(
        self, generator: torch.Generator, r: Any, L: int, O: Shape, I: Shape, *, oversampling: int, dtype: torch.dtype
    ) -> list[Tensor]:
        return tt_sketches(generator, [o * i for o, i in zip(O, I)], r, oversampling=oversampling, dtype=dtype)

    def decompose(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape, how: Fitting) -> dict[str, Tensor]:
        if L > 1:
            single = lambda one: self.decompose(one, r, 1, O, I, how)
            return {k: core.movedim(0, 1) for k, core in torch.func.vmap(single)(W).items()}
        T = self._interleaved(W, L, O, I)
        cores = self._cores(T.reshape([o * i for o, i in zip(O, I)]), r, how)
        shapes = self.shapes(r, 1, O, I)
        return {name: core.reshape(shapes[name]) for name, core in zip(shapes, cores)}

    def _interleaved(self, W: Tensor, L: int, O: Shape, I: Shape) -> Tensor:
        d = len(O)
        T = tensor(W, 1, O, I) if W.ndim == 2 else W.mT.reshape(W.shape[0], *O, *I)
        lead = W.ndim - 2
        return T.permute(*range(lead), *(lead + k + half * d for k in range(d) for half in (0, 1)))

    def unfoldings(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape) -> list[tuple[Tensor, int]]:
        sizes = [o * i for o, i in zip(O, I)]
        found = []
        for one in W.reshape(L, *W.shape[-2:]):
            T = self._interleaved(one, 1, O, I).reshape(sizes)
            found += [(T.reshape(math.prod(sizes[:k]), -1), r[k]) for k in range(1, len(sizes))]
        return found
