"""Symmetric matrices W [n, n] as an eigen-decomposition with a free factor, softly orthogonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.interval import check_bounds, symmetric_violation
from linmaps.families.singular_values.svd import distance
from linmaps.families.symmetries.symmetric import SymmetricMap
from linmaps.numerics.draws import middle
from linmaps.numerics.eigen import eigh
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.ranges import between, unbetween


@register
@dataclass(frozen=True)
class SymmetricSVD(SymmetricMap):
    """Symmetric with softly bounded eigenvalues: `W = Q diag(lam) Q'`, `lam = low + (high - low) sigmoid(p)`, Q free.

    low and high are sigma_min and sigma_max, which may be negative.  Leaves "Q" [n, n] and "p" [n] (absent when the bounds
    are equal).  W == W.T bit by bit at any params; the eigenvalues are lam where the penalty `|Q'Q - I|^2` is 0.  Cheaper
    than `SymmetricSpectral`, which keeps the bounds without a penalty.  init: Q Haar, lam uniform over the middle nine tenths
    of the bounds, so that inputs of unit variance give outputs of mean variance sum(lam^2) / n.  `violation(W)` is the
    norm of W - W' and of what the eigenvalues exceed the bounds by; `from_matrix` clips those of the symmetric part.

    ValueError for bounds out of order or not finite.

    >>> import torch, linmaps
    >>> spec = linmaps.SymmetricSVD(3)
    >>> W = spec.effective_W({"Q": torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), "p": torch.ones(3)})
    >>> torch.equal(W, W.T)
    True
    """

    name: ClassVar[str] = "symmetric_svd"
    promise: ClassVar[str] = "W = W'; sigma_min <= eigenvalues <= sigma_max where the penalty is 0"
    at_zero: ClassVar[str] = "0"
    square: ClassVar[bool] = True
    hard: ClassVar[bool] = False
    half_ready: ClassVar[bool] = False

    sigma_min: float = 0.1
    sigma_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, signed=True)

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        return {"Q": (n, n)} | ({"p": (n,)} if self.sigma_min < self.sigma_max else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n = self.in_features
        params = {"Q": householder.haar_frame(generator, n, n, dtype)}
        if self.sigma_min < self.sigma_max:
            params["p"] = middle(generator, (n,), dtype)
        return params

    def _weight(self, params: Params) -> Tensor:
        lam = between(self.sigma_min, self.sigma_max, params["p"]) if "p" in params else self.sigma_max
        W = (params["Q"] * lam) @ params["Q"].mT
        return (W + W.mT) / 2

    def _reg_error(self, params: Params) -> Tensor:
        return distance(params["Q"])

    def _violation(self, W: Tensor) -> Tensor:
        return symmetric_violation(self, W)

    def _from_matrix(self, W: Tensor) -> Params:
        lam, Q = eigh((W + W.mT) / 2)
        return {"Q": Q} | ({"p": unbetween(self.sigma_min, self.sigma_max, lam)} if "p" in self._shapes() else {})
