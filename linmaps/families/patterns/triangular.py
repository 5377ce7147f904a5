"""Triangular matrices W [n, n], lower or upper; with any, a positive or a unit diagonal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.draws import uniform
from linmaps.numerics.numeric import eye_like, frobenius, nan_where
from linmaps.numerics.packing import pack_upper, unpack_upper
from linmaps.numerics.ranges import MARGIN

Diagonals = Literal["free", "positive", "unit"]


@register
@dataclass(frozen=True)
class Triangular(Map):
    """A triangular matrix: zeros above the diagonal of W [in, out] (lower=False: below it).

    Leaves "off" [n (n - 1) / 2], the entries beside the diagonal, row by row (lower: column by column), and "diagonal" [n].

    diagonal:

    * free: the leaf itself.
    * positive: `softplus(params["diagonal"]) / log 2`, plus the smallest positive number, so that W has an inverse at any
      params; 1 where the leaf is 0.
    * unit: 1, without a leaf.

    `solve` and `inverse` go by substitution, n^2 / 2 multiplications for each row; `logabsdet` is the sum over the diagonal,
    and eigenvalues are its entries.

    init: off-diagonal entries from U(-1/sqrt(n - 1), 1/sqrt(n - 1)), diagonal entries positive, between 0.5 and 1.5 times
    their mean, such that inputs of unit variance give outputs of variance 1/3, of 1 for a positive diagonal, which lies about
    0.88, so that flows keep their size, and of 7/6 for a unit one; the condition of W stays small, where independent entries
    of one scale would make it grow exponentially with n.  `violation(W)` is the
    norm of what lies outside, negative diagonal entries (positive) or the diagonal's distance from 1 (unit) included.
    `from_matrix` takes the nearest matrix; positive entries are at least 1e-6.

    ValueError for an unknown diagonal; TypeError for a lower that is not a bool.

    >>> import torch, linmaps
    >>> spec = linmaps.Triangular(3, diagonal="unit")
    >>> spec.effective_W({"off": torch.tensor([2.0, 3.0, 4.0])})
    tensor([[1., 0., 0.],
            [2., 1., 0.],
            [3., 4., 1.]])
    """

    name: ClassVar[str] = "triangular"
    promise: ClassVar[str] = "W_ij = 0 for j > i (lower=False: j < i); the diagonal free, positive or 1"
    at_zero: ClassVar[str] = "0 (positive, unit: I)"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False

    lower: bool = field(default=True, kw_only=True)
    diagonal: Diagonals = field(default="free", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(isinstance(self.lower, bool), "lower", "a bool", error=TypeError)
        self._expect(self.diagonal in get_args(Diagonals), "diagonal", f"one of {get_args(Diagonals)}")

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        shapes: dict[str, Shape] = {"off": (n * (n - 1) // 2,)}
        return shapes if self.diagonal == "unit" else shapes | {"diagonal": (n,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n = self.in_features
        params = {"off": uniform(generator, self._shapes()["off"], max(n - 1, 1) ** -0.5, dtype)}
        if self.diagonal == "unit":
            return params
        square = (1 if self.diagonal == "positive" else 1 / 3) - (1 / 6 if n > 1 else 0)  # what "off" leaves
        mean = math.sqrt(square / (1 + 1 / 12))
        d = mean * (1 + uniform(generator, (n,), 0.5, dtype))
        return params | {"diagonal": self._raised(d)}

    def _entries(self, params: Params) -> Tensor:
        """The diagonal of W [n]."""
        if self.diagonal == "unit":
            return params["off"].new_ones(self.in_features)
        free: Tensor = params["diagonal"]
        return free if self.diagonal == "free" else softplus(free) / math.log(2) + torch.finfo(free.dtype).tiny

    def _raised(self, d: Tensor) -> Tensor:
        """The leaf of a diagonal, which positive ones lift to 1e-6."""
        if self.diagonal == "free":
            return d
        size = d.clamp(min=MARGIN) * math.log(2)
        return size + torch.log(-torch.expm1(-size))

    def _weight(self, params: Params) -> Tensor:
        return self._of(params["off"], self._entries(params))

    def _of(self, off: Tensor, diagonal: Tensor) -> Tensor:
        U = unpack_upper(off, self.in_features, diagonal=1) + torch.diag(diagonal)
        return U.mT if self.lower else U

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        W, rows = self._weight(params), y.reshape(-1, self.in_features)
        return torch.linalg.solve_triangular(W, rows, upper=not self.lower, left=False).reshape(y.shape)

    def _inverse(self, params: Params) -> Tensor:
        W = self._weight(params)
        return torch.linalg.solve_triangular(W, eye_like(W, self.in_features), upper=not self.lower)

    def _logabsdet(self, params: Params) -> Tensor:
        return self._entries(params).abs().log().sum()

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        if vectors:
            return super()._eig(params, vectors)
        values = nan_where([params["off"]], self._entries(params))
        return torch.complex(values, torch.zeros_like(values)), None

    def _parts(self, W: Tensor) -> tuple[Tensor, Tensor]:
        return pack_upper(W.mT if self.lower else W, diagonal=1), W.diagonal()

    def _violation(self, W: Tensor) -> Tensor:
        off, d = self._parts(W)
        outside = W - self._of(off, d)
        if self.diagonal == "free":
            return frobenius(outside)
        return frobenius(outside, d.clamp(max=0) if self.diagonal == "positive" else d - 1)

    def _from_matrix(self, W: Tensor) -> Params:
        off, d = self._parts(W)
        return {"off": off} if self.diagonal == "unit" else {"off": off, "diagonal": self._raised(d)}
