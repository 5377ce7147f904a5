"""Matrices W [in, out] with bounded singular values, by products of reflections.  r = min(in, out)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.interval import check_bounds, outside
from linmaps.families.singular_values.orthogonal import check_det, check_reflectors, sign
from linmaps.numerics import lapack
from linmaps.numerics.draws import middle
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.ranges import between, unbetween


@register
@dataclass(frozen=True)
class Spectral(Map):
    """Bounded singular values, `W = Q1[:, :r] diag(s) Q2[:, :r]'`, `s = low + (high - low) sigmoid(p)`.

    low and high are sigma_min and sigma_max.

    Q1 [in, in] and Q2 [out, out] are products of reflections as in `Orthogonal`, along e_i + U[i] for the leaf "U"
    [n_U_reflectors, in] and e_i + V[i] for the leaf "V" [n_V_reflectors, out], so the singular values are s at any
    parameters; if W is square, every eigenvalue's modulus lies in the bounds too.  The leaf "p" [r] is absent when the
    bounds are equal.  By default there are as many reflectors as reach every matrix within the bounds; fewer are
    cheaper, and leave the rank full.

    det: 1 or -1, of square maps only: the sign of the determinant, which sigma_min > 0 keeps from changing.  None covers
    positive determinants and promises none.

    init: Q1, Q2 Haar, s uniform over the middle nine tenths of the bounds.  The bounds fix the scale: inputs of unit
    variance give outputs of mean variance sum(s^2) / out.  `singular_values` costs a sort.  `violation(W)` is the
    Frobenius distance to the nearest matrix that keeps the promise, which `from_matrix` takes: it clips the singular
    values.  `solve`, `inverse` and `logabsdet` use the factors.

    ValueError for bounds that are negative or out of order, reflectors outside 1..in (1..out), det with a rectangular
    map.

    Source: Zhang, Lei and Dhillon, arXiv:1803.09327.

    >>> import torch, linmaps
    >>> spec = linmaps.Spectral(3, 2, sigma_min=0.5, sigma_max=1.0)
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> s = torch.linalg.svdvals(spec.effective_W(params))
    >>> bool((s >= 0.5).all() and (s <= 1.0).all())
    True
    """

    name: ClassVar[str] = "spectral"
    promise: ClassVar[str] = "sigma_min <= singular values <= sigma_max"
    at_zero: ClassVar[str] = "diag(+-m)"
    half_ready: ClassVar[bool] = False

    sigma_min: float = field(default=0.1, kw_only=True)
    sigma_max: float = field(default=1.0, kw_only=True)
    n_U_reflectors: int | None = field(default=None, kw_only=True)
    n_V_reflectors: int | None = field(default=None, kw_only=True)
    det: Literal[1, -1] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)
        check_det(self)
        for key, n in (("n_U_reflectors", self.in_features), ("n_V_reflectors", self.out_features)):
            if getattr(self, key) is not None:
                check_reflectors(self, key, n)

    @property
    def _r(self) -> int:
        return min(self.in_features, self.out_features)

    def _count(self, given: int | None, n: int) -> int:
        return householder.default_reflectors(n, self._r) if given is None else given

    def _shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {
            "U": (self._count(self.n_U_reflectors, self.in_features), self.in_features),
            "V": (self._count(self.n_V_reflectors, self.out_features), self.out_features),
        }
        return shapes | ({"p": (self._r,)} if self.sigma_min < self.sigma_max else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        params = {}
        for key, (k, n) in ((key, shape) for key, shape in self._shapes().items() if key != "p"):
            params[key] = householder.haar(generator, n, k, dtype)
        if self.sigma_min < self.sigma_max:
            params["p"] = middle(generator, (self._r,), dtype)
        return params

    def _sigma(self, params: Params) -> Tensor:
        """Singular values [r] in the order of the columns of Q1 and Q2."""
        if self.sigma_min == self.sigma_max:
            return self._like(params).new_full((self._r,), self.sigma_max)
        return between(self.sigma_min, self.sigma_max, params["p"])

    @property
    def _dets(self) -> tuple[int | None, int | None]:
        """Determinants of Q1 and Q2; a rectangular map needs none, since a column of either may change its sign."""
        return (sign(self), 1) if self.in_features == self.out_features else (None, None)

    def _weight(self, params: Params) -> Tensor:
        d1, d2 = self._dets
        left = householder.frame(householder.offset(params["U"]), self._r, det=d1) * self._sigma(params)
        return householder.rows_times_frame_t(left, householder.offset(params["V"]), self._r, det=d2)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        (d1, d2), r, rows = self._dets, self._r, x.numel() // self.in_features
        whole, once, per_row = householder.costs(self.in_features, len(params["U"]), r)
        _, once2, per_row2 = householder.costs(self.out_features, len(params["V"]), r)
        form = whole + once2 + self.in_features * per_row2 + rows * self.in_features * self.out_features
        if form < once + once2 + rows * (per_row + per_row2):
            return x @ self._weight(params)
        y = householder.times_frame(x, householder.offset(params["U"]), r, det=d1) * self._sigma(params)
        return householder.times_frame_t(y, householder.offset(params["V"]), r, det=d2)

    def _singular_values(self, params: Params) -> Tensor:
        return self._sigma(params).sort(descending=True).values

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        d1, d2 = self._dets
        z = householder.times_frame(y, householder.offset(params["V"]), self._r, det=d2) / self._sigma(params)
        return householder.times_frame_t(z, householder.offset(params["U"]), self._r, det=d1)

    def _logabsdet(self, params: Params) -> Tensor:
        return self._sigma(params).log().sum()

    def _from_matrix(self, W: Tensor) -> Params:
        counts, sizes = [shape[0] for k, shape in self._shapes().items() if k != "p"], W.shape
        if any(k < householder.default_reflectors(n, self._r) for k, n in zip(counts, sizes)):
            return super()._from_matrix(W)
        U, s, Vh = lapack.svd(W)
        V = Vh.mT
        if self._square:
            wrong = householder.wrong_component(V, 1)
            U, V = householder.flip_last(U, wrong), householder.flip_last(V, wrong)
            wrong = householder.wrong_component(U, sign(self))  # the smallest one is negative, seen from there
            U, s = householder.flip_last(U, wrong), householder.flip_last(s[None], wrong)[0]
        else:
            # the side whose frame is square has a determinant, which changes with a pair of columns
            side, k = (U, counts[0]) if self.in_features == self._r else (V, counts[1])
            wrong = householder.wrong_component(side, (-1) ** k)
            U, V = householder.flip_last(U, wrong), householder.flip_last(V, wrong)
        params = {"U": householder.from_frame(U, counts[0]), "V": householder.from_frame(V, counts[1])}
        if self.sigma_min < self.sigma_max:
            params["p"] = unbetween(self.sigma_min, self.sigma_max, s)
        return params

    def _violation(self, W: Tensor) -> Tensor:
        s = lapack.svdvals(W)
        # with the wrong sign of the determinant, the smallest one is negative as seen from the promised component
        wrong = householder.wrong_component(W, self.det) & (torch.arange(self._r, device=W.device) == self._r - 1)
        s = torch.where(wrong, -s, s)
        return frobenius(*outside(self, s))
