"""The kinds of factorization: leaves, their law at init, W, products with rows, one layer of several.

O, I out and in shapes; L layers, a leading mode where L > 1 (R ranks as `ranks` gives them).  Leaves of CP: "weights" [R],
"U0".. [s_k, R]; of Tucker: "core", "U0"..; of trains: "A0"... [r_{k-1}, s_k, r_k], or [r_{k-1}, (L,) o_k, i_k, r_k].
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from linmaps.factorized import contract, norms, ranks
from linmaps.numeric import normal

Leaves = Mapping[str, Tensor]
Shape = tuple[int, ...]


class Kind(abc.ABC):
    """Stateless: what depends on the sizes is computed from them at each call, from plain numbers."""

    name: str
    joint = "a leading mode"  # what several layers share

    @abc.abstractmethod
    def ranks(self, rank: Any, L: int, O: Shape, I: Shape) -> Any: ...

    @abc.abstractmethod
    def shapes(self, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]: ...

    @abc.abstractmethod
    def terms(self, r: Any) -> float:
        """How many products of one entry of each leaf an entry of the tensor sums."""

    @abc.abstractmethod
    def squared_norm(self, params: Leaves) -> Tensor: ...

    @abc.abstractmethod
    def matrix(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        """W [in, out] of a single layer."""

    @abc.abstractmethod
    def apply(self, params: Leaves, x: Tensor, O: Shape, I: Shape) -> Tensor: ...

    @abc.abstractmethod
    def select(self, params: Leaves, r: Any, layer: Any) -> tuple[Any, dict[str, Tensor]]:
        """Ranks and leaves of one of several layers."""

    def scaled(self, params: Leaves, factor: Tensor | float) -> dict[str, Tensor]:
        """The tensor times a factor: the first leaf is."""
        first, *others = params
        return {first: params[first] * factor, **{k: params[k] for k in others}}

    def init(
        self, generator: torch.Generator, r: Any, L: int, O: Shape, I: Shape, std: float, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Normal leaves, whose tensor has entries of that standard deviation, exactly so in the mean over its entries."""
        shapes = self.shapes(r, L, O, I)
        sigma = (std / math.sqrt(self.terms(r))) ** (1 / len(shapes))
        params = {k: sigma * normal(generator, s, dtype) for k, s in shapes.items()}
        size = L * math.prod(O) * math.prod(I)
        return self.scaled(params, std * math.sqrt(size) / self.squared_norm(params).sqrt())


def _modes(L: int, *shapes: Shape) -> Shape:
    return sum(shapes, (L,) if L > 1 else ())


def _factors(params: Leaves, prefix: str) -> list[Tensor]:
    return [
        t
        for k, t in sorted(params.items(), key=lambda item: (len(item[0]), item[0]))
        if k[0] == prefix and k[1:].isdigit()
    ]


def _named(prefix: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{k}": t for k, t in enumerate(tensors)}


class Dense(Kind):
    """No factorization: "W" [(L,) in, out]."""

    name, joint = "dense", "nothing"

    def ranks(self, rank, L, O, I):
        return None

    def shapes(self, r, L, O, I):
        return {"W": ((L,) if L > 1 else ()) + (math.prod(I), math.prod(O))}

    def terms(self, r):
        return 1.0

    def squared_norm(self, params):
        return (params["W"] * params["W"].conj()).real.sum()

    def matrix(self, params, O, I):
        return params["W"]

    def apply(self, params, x, O, I):
        return x @ params["W"]

    def select(self, params, r, layer):
        return r, {"W": params["W"][layer]}


class LowRank(Kind):
    """W = U V: "U" [in, R], which layers share, and "V" [(L,) R, out]."""

    name, joint = "lowrank", "U"

    def ranks(self, rank, L, O, I):
        return ranks.low_rank(rank, math.prod(I), L * math.prod(O))

    def shapes(self, r, L, O, I):
        return {"U": (math.prod(I), r), "V": ((L,) if L > 1 else ()) + (r, math.prod(O))}

    def terms(self, r):
        return float(r)

    def squared_norm(self, params):
        R = torch.linalg.qr(params["U"]).R @ params["V"]
        return (R * R.conj()).real.sum()

    def matrix(self, params, O, I):
        return params["U"] @ params["V"]

    def apply(self, params, x, O, I):
        return (x @ params["U"]) @ params["V"]

    def select(self, params, r, layer):
        return r, {"U": params["U"], "V": params["V"][layer]}


class CP(Kind):
    """A sum of R products: "weights" [R] and "U0".. [s_k, R].  Layers share all but the first factor."""

    name = "cp"

    def ranks(self, rank, L, O, I):
        return ranks.cp_rank(rank, _modes(L, O, I))

    def shapes(self, r, L, O, I):
        return {"weights": (r,)} | {f"U{k}": (s, r) for k, s in enumerate(_modes(L, O, I))}

    def terms(self, r):
        return float(r)

    def squared_norm(self, params):
        return norms.cp_squared_norm(params["weights"], _factors(params, "U"))

    def _split(self, params, O):
        factors = _factors(params, "U")
        return params["weights"], factors[: len(O)], factors[len(O) :]

    def matrix(self, params, O, I):
        return contract.cp_matrix(*self._split(params, O))

    def apply(self, params, x, O, I):
        return contract.cp_apply(x, *self._split(params, O))

    def select(self, params, r, layer):
        first, *others = _factors(params, "U")
        return r, {"weights": params["weights"] * first[layer]} | _named("U", others)


class Tucker(Kind):
    """A core and a factor for each mode: "core" [r_1..r_N], "U0".. [s_k, r_k].  Layers share all but the first factor."""

    name = "tucker"

    def ranks(self, rank, L, O, I):
        return ranks.tucker_rank(rank, _modes(L, O, I))

    def shapes(self, r, L, O, I):
        return {"core": tuple(r)} | {f"U{k}": shape for k, shape in enumerate(zip(_modes(L, O, I), r))}

    def terms(self, r):
        return float(math.prod(r))

    def squared_norm(self, params):
        return norms.tucker_squared_norm(params["core"], _factors(params, "U"))

    def _split(self, params, O):
        factors = _factors(params, "U")
        return params["core"], factors[: len(O)], factors[len(O) :]

    def matrix(self, params, O, I):
        return contract.tucker_matrix(*self._split(params, O))

    def apply(self, params, x, O, I):
        return contract.tucker_apply(x, *self._split(params, O))

    def select(self, params, r, layer):
        first, *others = _factors(params, "U")
        return tuple(r[1:]), {"core": torch.tensordot(first[layer], params["core"], dims=1)} | _named("U", others)


class TT(Kind):
    """A tensor train: "A0".. [r_{k-1}, s_k, r_k].  Layers share all but the first core."""

    name = "tt"

    def ranks(self, rank, L, O, I):
        return ranks.tt_rank(rank, _modes(L, O, I))

    def shapes(self, r, L, O, I):
        return {f"A{k}": (r[k], s, r[k + 1]) for k, s in enumerate(_modes(L, O, I))}

    def terms(self, r):
        return float(math.prod(r))

    def squared_norm(self, params):
        return norms.tt_squared_norm(_factors(params, "A"))

    def _split(self, params, O):
        cores = _factors(params, "A")
        return cores[: len(O)], cores[len(O) :]

    def matrix(self, params, O, I):
        return contract.tt_matrix(*self._split(params, O))

    def apply(self, params, x, O, I):
        return contract.tt_apply(x, *self._split(params, O))

    def select(self, params, r, layer):
        first, second, *others = _factors(params, "A")
        merged = torch.tensordot(first[0, layer], second, dims=1)[None]
        return (1, *r[2:]), _named("A", [merged, *others])


class BlockTT(Kind):
    """A train of matrices: "A0".. [r_{k-1}, (L,) o_k, i_k, r_k], as many out as in modes.  Layers share nothing."""

    name, joint = "blocktt", "nothing"

    def ranks(self, rank, L, O, I):
        if len(O) != len(I):
            raise ValueError(
                f"blocktt: out_shape {O} and in_shape {I} have {len(O)} and {len(I)} modes, expected as many; pad with ones"
            )
        return ranks.tt_rank(rank, [o * i for o, i in zip(O, I)])

    def shapes(self, r, L, O, I):
        layers = (L,) if L > 1 else ()
        return {f"A{k}": (r[k], *layers, o, i, r[k + 1]) for k, (o, i) in enumerate(zip(O, I))}

    def terms(self, r):
        return float(math.prod(r))

    def squared_norm(self, params):
        cores = _factors(params, "A")
        if cores[0].ndim == 4:
            return norms.tt_squared_norm(cores)
        stacked = [core.movedim(1, 0) for core in cores]
        return torch.func.vmap(lambda *layer: norms.tt_squared_norm(layer))(*stacked).sum()

    def matrix(self, params, O, I):
        return contract.blocktt_matrix(_factors(params, "A"))

    def apply(self, params, x, O, I):
        return contract.blocktt_apply(x, _factors(params, "A"))

    def select(self, params, r, layer):
        return r, _named("A", [core[:, layer] for core in _factors(params, "A")])


KINDS: dict[str, Kind] = {kind.name: kind for kind in (Dense(), LowRank(), CP(), Tucker(), TT(), BlockTT())}
ALIASES = {"ttm": "blocktt"}
