"""Singular value decompositions with free factors, softly orthogonal; bounds given or learned.  W [in, out], r = min(in, out)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.interval import check_bounds, outside
from linmaps.numerics import lapack
from linmaps.numerics.draws import middle
from linmaps.numerics.numeric import eye_like, frobenius
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.ranges import between, unbetween


def distance(columns: Tensor) -> Tensor:
    """Squared Frobenius norm of Q'Q - I for columns Q [n, r]."""
    return (columns.mT @ columns - eye_like(columns, columns.shape[1])).square().sum()


@register
@dataclass(frozen=True)
class SVD(Map):
    """Bounded singular values by a soft constraint: `W = U diag(s) V`, `s = low + (high - low) sigmoid(p)`, U and V free.

    low and high are sigma_min and sigma_max.  Leaves "U" [in, r], "p" [r] (absent when the bounds are equal), "V" [r, out].  The
    penalty is the squared distance from orthogonality, smooth and 0 exactly where the singular values are s:

        reg_error = |U'U - I|^2 + |V V' - I|^2.

    Cheaper than `Spectral`, which keeps the bounds without a penalty.  init: U, V Haar, s uniform over the middle nine
    tenths of the bounds, so that inputs of unit variance give outputs of mean variance sum(s^2) / out.
    `singular_values` are those of W as it is.  `violation(W)` is the norm of what they exceed the bounds by; `from_matrix`
    clips them.

    ValueError for bounds that are negative or out of order.

    >>> import torch, linmaps
    >>> spec = linmaps.SVD(4, 3)
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> bool(spec.reg_error(params) < 1e-9), bool(spec.reg_error({**params, "U": 2 * params["U"]}) > 1)
    (True, True)
    """

    name: ClassVar[str] = "svd"
    promise: ClassVar[str] = "sigma_min <= singular values <= sigma_max where the penalty is 0"
    at_zero: ClassVar[str] = "0"
    hard: ClassVar[bool] = False
    half_ready: ClassVar[bool] = False

    sigma_min: float = 0.1
    sigma_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)

    @property
    def _r(self) -> int:
        return min(self.in_features, self.out_features)

    def _shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"U": (self.in_features, self._r), "V": (self._r, self.out_features)}
        return shapes | ({"p": (self._r,)} if self.sigma_min < self.sigma_max else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        r = self._r
        params = {
            "U": householder.haar_frame(generator, self.in_features, r, dtype),
            "V": householder.haar_frame(generator, self.out_features, r, dtype).mT,
        }
        if self.sigma_min < self.sigma_max:
            params["p"] = middle(generator, (r,), dtype)
        return params

    def _sigma(self, params: Params) -> Tensor:
        if self.sigma_min == self.sigma_max:
            return params["U"].new_full((self._r,), self.sigma_max)
        return between(self.sigma_min, self.sigma_max, params["p"])

    def _weight(self, params: Params) -> Tensor:
        return (params["U"] * self._sigma(params)) @ params["V"]

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        n, m, r, rows = self.in_features, self.out_features, self._r, x.numel() // self.in_features
        if n * r * m + rows * n * m < rows * r * (n + m):
            return x @ self._weight(params)
        return ((x @ params["U"]) * self._sigma(params)) @ params["V"]

    def _reg_error(self, params: Params) -> Tensor:
        return distance(params["U"]) + distance(params["V"].mT)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(*outside(self, lapack.svdvals(W)))

    def _from_matrix(self, W: Tensor) -> Params:
        U, s, V = lapack.svd(W)
        return {"U": U, "V": V} | ({"p": unbetween(self.sigma_min, self.sigma_max, s)} if "p" in self._shapes() else {})


@register
@dataclass(frozen=True)
class SVDLearnBounds(SVD):
    """As `SVD`, softly, with bounds that are learned: positive and ordered at any params.

        sigma_max = exp(params["high"]),    sigma_min = sigma_max sigmoid(params["ratio"]),

    with leaves "high" and "ratio" of shape () beside "U", "p" and "V".  sigma_min and sigma_max of the spec are where
    they start; `bounds(params)` says where they are.  Any matrix of full rank is within some bounds, so that
    `violation` is 0; where the penalty is 0, its singular values are within `bounds(params)`.

    ValueError unless 0 < sigma_min < sigma_max.

    >>> import torch, linmaps
    >>> spec = linmaps.SVDLearnBounds(3, sigma_min=0.5, sigma_max=2.0)
    >>> low, high = spec.bounds(spec.init(torch.Generator().manual_seed(0)))
    >>> round(low.item(), 4), round(high.item(), 4)
    (0.5, 2.0)
    """

    name: ClassVar[str] = "svd_learn_bounds"
    promise: ClassVar[str] = "singular values within learned bounds where the penalty is 0"
    at_zero: ClassVar[str] = "0"

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = 0 < self.sigma_min < self.sigma_max
        self._expect(
            fine, "sigma_min", f"a number between 0 and sigma_max={self.sigma_max}, since their logs are learned"
        )

    def _shapes(self) -> dict[str, Shape]:
        return super()._shapes() | {"high": (), "ratio": ()}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        params = super()._init(generator, dtype)
        return params | self._start(params["U"])

    def _start(self, like: Tensor) -> dict[str, Tensor]:
        ratio = self.sigma_min / self.sigma_max
        return {
            "high": like.new_full((), math.log(self.sigma_max)),
            "ratio": like.new_full((), math.log(ratio / (1 - ratio))),
        }

    def bounds(self, params: Params) -> tuple[Tensor, Tensor]:
        """(sigma_min, sigma_max) as learned, scalars with 0 < sigma_min < sigma_max.

        >>> import torch, linmaps
        >>> spec = linmaps.SVDLearnBounds(2)
        >>> params = spec.init(torch.Generator().manual_seed(0)) | {
        ...     "high": torch.tensor(0.0),
        ...     "ratio": torch.tensor(0.0),
        ... }
        >>> spec.bounds(params)
        (tensor(0.5000), tensor(1.))
        """
        self._check(params)
        high = params["high"].exp()
        return high * params["ratio"].sigmoid(), high

    def _sigma(self, params: Params) -> Tensor:
        high = params["high"].exp()
        return torch.lerp(high * params["ratio"].sigmoid(), high, params["p"].sigmoid())

    def _violation(self, W: Tensor) -> Tensor:
        return W.new_zeros(())

    def _from_matrix(self, W: Tensor) -> Params:
        return {**super()._from_matrix(W), **self._start(W)}
