"""Symmetric matrices W [n, n] with bounded eigenvalues, by products of reflections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.interval import check_bounds, symmetric_violation
from linmaps.families.singular_values.orthogonal import check_reflectors
from linmaps.numerics.draws import middle
from linmaps.numerics.eigen import eigh
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.ranges import between, unbetween


@register
@dataclass(frozen=True)
class SymmetricSpectral(Map):
    """Symmetric with bounded eigenvalues, `W = Q diag(lam) Q'`, `lam = low + (high - low) sigmoid(p)`.

    low and high are sigma_min and sigma_max, which may be negative.  Q [n, n] is a product of reflections as in
    `Orthogonal`, along e_i + V[i] for the leaf "V" [n_reflectors, n]; by default n - 1, which reach every such matrix.  The
    leaf "p" [n] is absent when the bounds are equal.  W == W.T bit by bit.

    init: Q Haar, lam uniform over the middle nine tenths of the bounds.  The bounds fix the scale: inputs of unit variance
    give outputs of mean variance sum(lam^2) / n.  `eig` is lam in order, with the columns of Q.  `violation(W)` is the norm
    of W - W' and of what the eigenvalues exceed the bounds by; `from_matrix` clips those of the symmetric part.

    ValueError for bounds out of order or not finite, reflectors outside 1..n.

    >>> import torch, linmaps
    >>> spec = linmaps.SymmetricSpectral(3, sigma_min=-0.5, sigma_max=0.5)
    >>> lam = spec.eig(spec.init(torch.Generator().manual_seed(0)))
    >>> bool((lam >= -0.5).all() and (lam <= 0.5).all() and (lam.diff() >= 0).all())
    True
    """

    name: ClassVar[str] = "symmetric_spectral"
    promise: ClassVar[str] = "W = W', sigma_min <= eigenvalues <= sigma_max"
    at_zero: ClassVar[str] = "m I"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False

    sigma_min: float = 0.1
    sigma_max: float = 1.0
    n_reflectors: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, signed=True)
        if self.n_reflectors is not None:
            check_reflectors(self, "n_reflectors", self.in_features)

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        shapes: dict[str, Shape] = {"V": (n - 1 if self.n_reflectors is None else self.n_reflectors, n)}
        return shapes | ({"p": (n,)} if self.sigma_min < self.sigma_max else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        k, n = self._shapes()["V"]
        params = {"V": householder.haar(generator, n, k, dtype)}
        if self.sigma_min < self.sigma_max:
            params["p"] = middle(generator, (n,), dtype)
        return params

    def _factors(self, params: Params) -> tuple[Tensor, Tensor]:
        """Eigenvalues [n] and eigenvectors [n, n], in no order."""
        Q = householder.frame(householder.offset(params["V"]), self.in_features)
        if self.sigma_min == self.sigma_max:
            return Q.new_full((self.in_features,), self.sigma_max), Q
        return between(self.sigma_min, self.sigma_max, params["p"]), Q

    def _weight(self, params: Params) -> Tensor:
        lam, Q = self._factors(params)
        W = (Q * lam) @ Q.mT
        return (W + W.mT) / 2

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        n, rows = self.in_features, x.numel() // self.in_features
        whole, once, per_row = householder.costs(n, len(params["V"]), n)
        if whole + n**3 + rows * n * n < 2 * (once + rows * per_row):
            return x @ self._weight(params)
        return self._twice(params, x, lambda z, lam: z * lam)

    def _twice(self, params: Params, x: Tensor, between_frames: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        n, V = self.in_features, householder.offset(params["V"])
        lam = between(self.sigma_min, self.sigma_max, params["p"]) if "p" in params else self.sigma_max * x.new_ones(n)
        return householder.times_frame_t(between_frames(householder.times_frame(x, V, n), lam), V, n)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return self._twice(params, y, lambda z, lam: z / lam)

    def _logabsdet(self, params: Params) -> Tensor:
        return self._factors(params)[0].abs().log().sum()

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        lam, Q = self._factors(params)
        values, order = lam.sort()
        return values, torch.take_along_dim(Q, order[None, :], dim=1) if vectors else None

    def _singular_values(self, params: Params) -> Tensor:
        return self._factors(params)[0].abs().sort(descending=True).values

    def _violation(self, W: Tensor) -> Tensor:
        return symmetric_violation(self, W)

    def _from_matrix(self, W: Tensor) -> Params:
        k, n = self._shapes()["V"]
        if k < n - 1:
            return super()._from_matrix(W)
        lam, Q = eigh((W + W.mT) / 2)
        params = {"V": householder.from_frame(householder.flip_last(Q, householder.wrong_component(Q, (-1) ** k)), k)}
        if self.sigma_min < self.sigma_max:
            params["p"] = unbetween(self.sigma_min, self.sigma_max, lam)
        return params
