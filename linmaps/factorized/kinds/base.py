"""What a kind of factorization must tell: ranks, leaves, W, products with rows, one layer of several, a decomposition.

O, I out and in shapes; L layers, a leading mode of the tensor where L > 1; r ranks, as `ranks` gives them.  A bond is an
index that is summed over between leaves, with as many values as its rank.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from linmaps.factorized.tensors.multilinear import taken
from linmaps.factorized.tensors.plan import Cost, Way, product
from linmaps.numerics import lapack
from linmaps.numerics.draws import normal

Leaves = Mapping[str, Tensor]
Shape = tuple[int, ...]
Places = Sequence[range]  # of each mode, which of its places
Side = Literal["in", "out"]


@dataclass(frozen=True)
class Fitting:
    """How a given matrix is decomposed.

    n_sweeps: of the kinds that iterate, None for their default.  sketch: matrices for a randomized decomposition, of n_power
    power iterations.  start: factors for alternating least squares.
    """

    n_sweeps: int | None = None
    sketch: Sequence[Tensor] | None = None
    start: Sequence[Tensor] | None = None
    n_power: int = 1


class Kind(abc.ABC):
    """Stateless: what depends on the sizes is computed from them at each call, from plain numbers."""

    name: str
    joint = "all but the first factor"  # what several layers share
    layered: tuple[str, int]  # the leaf with the layers' axis, and that axis; of several leaves the first
    paired = False  # whether it needs as many out modes as in modes

    @abc.abstractmethod
    def ranks(self, rank: Any, L: int, O: Shape, I: Shape, compat: bool = False) -> Any:
        """The ranks for what a user asks for: "same", a fraction, an int, a tuple."""

    @abc.abstractmethod
    def shapes(self, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]: ...

    @abc.abstractmethod
    def terms(self, r: Any) -> float:
        """How many products of one entry of each leaf an entry of the tensor sums."""

    @abc.abstractmethod
    def inner(self, a: Leaves, b: Leaves) -> Tensor:
        """The inner product of two tensors of the same modes, conjugating the first; one layer, or several together."""

    @abc.abstractmethod
    def matrix(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        """W [in, out] of a single layer."""

    @abc.abstractmethod
    def ways(self, r: Any, O: Shape, I: Shape, B: int) -> dict[str, Way]:
        """Ways to multiply B rows, the last one by forming W; r of a single layer."""

    @abc.abstractmethod
    def apply(self, params: Leaves, x: Tensor, O: Shape, I: Shape, **options: Any) -> Tensor:
        """`x W` of a single layer from its leaves."""

    @abc.abstractmethod
    def rows(self, params: Leaves, index: tuple[Tensor, ...], O: Shape, I: Shape) -> Tensor:
        """Rows [n, out] of W of a single layer, for n multi-indices, one tensor [n] for each in mode."""

    def single(self, r: Any) -> Any:
        """Ranks of one of several layers."""
        return r

    @abc.abstractmethod
    def select(self, params: Leaves, layer: int | Tensor) -> dict[str, Tensor]:
        """Leaves of one of several layers."""

    @abc.abstractmethod
    def bonds(self, r: Any) -> dict[str, int]:
        """Name and rank of each bond."""

    @abc.abstractmethod
    def scale_bonds(self, params: Leaves, factors: Leaves) -> dict[str, Tensor]:
        """Each value of a bond times a factor."""

    @abc.abstractmethod
    def keep(self, params: Leaves, r: Any, kept: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Ranks and leaves with only some values of some bonds, given as indices."""

    @abc.abstractmethod
    def cut(self, params: Leaves, L: int, O: Shape, I: Shape, outs: Places, ins: Places) -> dict[str, Tensor]:
        """Leaves of the tensor at some places of each mode, for as many layers; ranks stay."""

    @abc.abstractmethod
    def insert(
        self, params: Leaves, r: Any, L: int, O: Shape, I: Shape, size: int, side: Side, at: int
    ) -> tuple[Any, dict[str, Tensor]]:
        """Ranks and leaves with one mode more, before mode `at` of O or I: the tensor in its middle, zeros elsewhere.

        A paired kind gets a mode of size 1 on the other side, at the same place.
        """

    @abc.abstractmethod
    def decompose(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape, how: Fitting) -> dict[str, Tensor]:
        """Leaves whose matrix, or matrices, are near W [(L,) in, out]."""

    def sketches(
        self,
        generator: torch.Generator,
        r: Any,
        L: int,
        O: Shape,
        I: Shape,
        *,
        oversampling: int,
        dtype: torch.dtype,
    ) -> list[Tensor]:
        """Gaussian matrices for a randomized decomposition; none where there is no such."""
        return []

    @abc.abstractmethod
    def unfoldings(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape) -> list[tuple[Tensor, int]]:
        """Matrices made of the entries of W [(L,) in, out], and the bound that the kind sets on the rank of each."""

    def singular_values(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        """Those of W of a single layer."""
        return lapack.svdvals(self.matrix(params, O, I))

    # --- the same for all kinds --------------------------------------------------------------------------------------

    def squared_norm(self, params: Leaves) -> Tensor:
        return self.inner(params, params).real

    def scaled(self, params: Leaves, factor: Tensor | float) -> dict[str, Tensor]:
        """The tensor times a factor, or each layer times its own, [L]."""
        leaf, axis = self.layered
        if isinstance(factor, Tensor) and factor.ndim:
            factor = factor.reshape(-1, *(1,) * (params[leaf].ndim - axis - 1))
        return {**params, leaf: params[leaf] * factor}

    def subset(self, params: Leaves, layers: Tensor) -> dict[str, Tensor]:
        """Leaves of some of several layers, [K] of them."""
        leaf, axis = self.layered
        return {**params, leaf: params[leaf].index_select(axis, layers)}

    def init(
        self, generator: torch.Generator, r: Any, L: int, O: Shape, I: Shape, std: float, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Normal leaves, scaled so that the mean square over the entries of each layer's W is that of a standard deviation."""
        shapes = self.shapes(r, L, O, I)
        sigma = (std / math.sqrt(self.terms(r))) ** (1 / len(shapes))
        params = {k: sigma * normal(generator, s, dtype) for k, s in shapes.items()}
        norms = [self.squared_norm(self.select(params, l) if L > 1 else params).sqrt() for l in range(L)]
        target = std * math.sqrt(math.prod(O) * math.prod(I))
        return self.scaled(params, target / (norms[0] if L == 1 else torch.stack(norms)))


def modes(L: int, *shapes: Shape) -> Shape:
    """Sizes of the tensor's modes."""
    return sum(shapes, (L,) if L > 1 else ())


def tensor(W: Tensor, L: int, O: Shape, I: Shape) -> Tensor:
    """The tensor [(L,) O, I] of W [(L,) in, out]."""
    return W.mT.reshape(modes(L, O, I))


def listed(params: Leaves, prefix: str) -> list[Tensor]:
    """The leaves prefix0, prefix1, ... in the order of their numbers."""
    return [params[f"{prefix}{k}"] for k in range(sum(k[0] == prefix and k[1:].isdigit() for k in params))]


def named(prefix: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{k}": t for k, t in enumerate(tensors)}


def dense_product(O: Shape, I: Shape, B: int) -> Cost:
    """x W for a W that is there."""
    return product(B, math.prod(I), math.prod(O))


def cut_each(params: Leaves, prefix: str, first: int, places: Places) -> dict[str, Tensor]:
    """Leaves prefix0, ... of which those from `first` on, one for each mode, are cut along axis 1 of cores and 0 of factors."""
    axis = 1 if prefix == "A" else 0
    return {**params, **{(k := f"{prefix}{first + j}"): taken(params[k], axis, p) for j, p in enumerate(places)}}


def before(items: Sequence[Any], k: int, new: Any) -> list[Any]:
    """The items with a new one before item k."""
    return [*items[:k], new, *items[k:]]
