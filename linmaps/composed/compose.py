"""Maps made of one map: transpose, multiple, bias."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base import Map
from linmaps.checks import Params
from linmaps.composed.composite import Composite, times, times_inverse, times_transpose
from linmaps.numerics.numeric import led


@dataclass(frozen=True)
class _OfOne(Composite):
    """A map made of one, with params {"map": params of it}; by default it has the same matrix."""

    map: Map

    @property
    def _parts(self) -> dict[str, Map]:
        return {"map": self.map}

    def _sizes(self) -> tuple[int, int]:
        return self.map.in_features, self.map.out_features

    def _weight(self, params: Params) -> Tensor:
        return self._matrices(params)[0]

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return times(self.map, params["map"], x)

    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        return times_transpose(self.map, params["map"], x)

    def _violation(self, W: Tensor) -> Tensor:
        return self.map._violation(W)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        return self._each(params, lambda part, p: part._eig(p, vectors))[0]

    def _singular_values(self, params: Params) -> Tensor:
        return self._each(params, lambda part, p: part._singular_values(p))[0]

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return times_inverse(self.map, params["map"], y)

    def _inverse(self, params: Params) -> Tensor:
        return self._each(params, lambda part, p: part._inverse(p))[0]

    def _logabsdet(self, params: Params) -> Tensor:
        return self._each(params, lambda part, p: part._logabsdet(p))[0]

    def _from_matrix(self, W: Tensor) -> Params:
        return {"map": self.map._from_matrix(W)}


@trees.static
@dataclass(frozen=True)
class Transpose(_OfOne):
    """The transpose `W'` [out, in] of a map's matrix W [in, out].

    Params are {"map": params of the map}.  `apply` goes block by block and factor by factor through maps made of maps,
    and multiplies by the transposed matrix of any other.  Eigenvalues, singular values and determinant are those of the
    map.  Outputs have in / out times the map's output variance at init, with the sizes of the map.  `violation(V)` is
    the map's of V'; from_matrix is the map's.

    ValueError for a map with a bias.

    >>> import torch, linmaps
    >>> spec = linmaps.Transpose(linmaps.RightStochastic(3, 2))
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0)))
    >>> W.shape, torch.allclose(W.sum(0), torch.ones(3))
    (torch.Size([2, 3]), True)
    """

    name: ClassVar[str] = "transpose"
    promise: ClassVar[str] = "that of the map, of W'"

    def _sizes(self) -> tuple[int, int]:
        return self.map.out_features, self.map.in_features

    def _weight(self, params: Params) -> Tensor:
        return super()._weight(params).mT

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return super()._apply_t(params, x)

    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        return super()._apply(params, x)

    def _violation(self, W: Tensor) -> Tensor:
        return super()._violation(W.mT)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        values, right = super()._eig(params, vectors)
        # real eigenvalues are how a map says that it is symmetric, and then its vectors are right and left ones
        return Map._eig(self, params, True) if vectors and values.is_complex() else (values, right)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        inverse = self._inverse(led(params, y))
        dtype = torch.promote_types(y.dtype, inverse.dtype)
        return y.to(dtype) @ inverse.to(dtype)

    def _inverse(self, params: Params) -> Tensor:
        return super()._inverse(params).mT

    def _from_matrix(self, W: Tensor) -> Params:
        return super()._from_matrix(W.mT)


@trees.static
@dataclass(frozen=True)
class Scale(_OfOne):
    """A fixed multiple of a map, `factor W`.

    Params are {"map": params of the map}.  Outputs have factor^2 times the map's output variance at init;
    `violation(V)` is |factor| times the map's of V / factor; from_matrix is the map's, of V / factor.

    ValueError for a factor that is 0 or not finite, or a map with a bias; TypeError for a factor that is no number.

    >>> import torch, linmaps
    >>> spec = linmaps.Scale(linmaps.Orthogonal(4), 0.9)
    >>> spec.singular_values(spec.init(torch.Generator().manual_seed(0)))
    tensor([0.9000, 0.9000, 0.9000, 0.9000])
    """

    name: ClassVar[str] = "scale"
    promise: ClassVar[str] = "that of the map, of W / factor"

    factor: float

    def __post_init__(self) -> None:
        number = isinstance(self.factor, (int, float)) and not isinstance(self.factor, bool)
        self._expect(number, "factor", "a number; a trainable one belongs into params", error=TypeError)
        self._expect(math.isfinite(self.factor) and self.factor != 0, "factor", "a finite number other than 0")
        super().__post_init__()

    def _weight(self, params: Params) -> Tensor:
        return self.factor * super()._weight(params)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return self.factor * super()._apply(params, x)

    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        return self.factor * super()._apply_t(params, x)

    def _violation(self, W: Tensor) -> Tensor:
        return abs(self.factor) * super()._violation(W / self.factor)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        values, right = super()._eig(params, vectors)
        if self.factor < 0 and not values.is_complex():  # ascending again
            values, right = values.flip(0), None if right is None else right.flip(1)
        return self.factor * values, right

    def _singular_values(self, params: Params) -> Tensor:
        return abs(self.factor) * super()._singular_values(params)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return super()._solve(params, y / self.factor)

    def _inverse(self, params: Params) -> Tensor:
        return super()._inverse(params) / self.factor

    def _logabsdet(self, params: Params) -> Tensor:
        return super()._logabsdet(params) + self.in_features * math.log(abs(self.factor))

    def _from_matrix(self, W: Tensor) -> Params:
        return super()._from_matrix(W / self.factor)


@trees.static
@dataclass(frozen=True)
class Affine(_OfOne):
    """A map with a bias, `x @ W + b`: for maps made of maps, whose parts have none.

    Params are {"map": params of the map, "bias": [out]}.  Everything but `apply` and `solve` is the map's; the bias
    adds 1 / (3 in) to the output variance at init.

    ValueError for a map that has a bias already.

    >>> import torch, linmaps
    >>> spec = linmaps.Affine(linmaps.Scale(linmaps.Identity(2), 3.0))
    >>> spec.apply({"map": {"map": {}}, "bias": torch.tensor([10.0, 20.0])}, torch.ones(2))
    tensor([13., 23.])
    """

    name: ClassVar[str] = "affine"
    promise: ClassVar[str] = "that of the map"

    bias: bool = field(init=False, repr=False, default=True)
