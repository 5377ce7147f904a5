"""Matrices with bounded singular values, by their singular value decomposition.  r = min(in, out)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps import householder
from linmaps.base import Map, Params, Shape
from linmaps.numeric import frobenius
from linmaps.orthogonal import check_det, check_reflectors, sign
from linmaps.registry import register


def check_bounds(spec: Map) -> None:
    """ValueError unless the options sigma_min and sigma_max are finite numbers with 0 <= sigma_min <= sigma_max > 0."""
    for key in ("sigma_min", "sigma_max"):
        value = getattr(spec, key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        spec._expect(number, key, "a number", error=TypeError)
        spec._expect(math.isfinite(value) and value >= 0, key, "a finite number >= 0")
    low, high = getattr(spec, "sigma_min", 0.0), getattr(spec, "sigma_max", 0.0)
    spec._expect(low <= high, "sigma_min", f"at most sigma_max={high}; exchange the bounds")
    spec._expect(high > 0, "sigma_max", "a positive number, since 0 leaves only the zero matrix")


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
    Frobenius distance to the nearest matrix that keeps the promise.

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
    half_ready: ClassVar[bool] = False

    sigma_min: float = field(default=0.1, kw_only=True)
    sigma_max: float = field(default=1.0, kw_only=True)
    n_U_reflectors: int | None = field(default=None, kw_only=True)
    n_V_reflectors: int | None = field(default=None, kw_only=True)
    det: int | None = field(default=None, kw_only=True)

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
            u = torch.rand((self._r,), generator=generator, dtype=dtype, device=generator.device)
            params["p"] = torch.logit(0.05 + 0.9 * u)
        return params

    def _sigma(self, params: Params) -> Tensor:
        """Singular values [r] in the order of the columns of Q1 and Q2."""
        if self.sigma_min == self.sigma_max:
            return self._like(params).new_full((self._r,), self.sigma_max)
        return self.sigma_min + (self.sigma_max - self.sigma_min) * params["p"].sigmoid()

    @property
    def _dets(self) -> tuple[int | None, int | None]:
        """Determinants of Q1 and Q2; a rectangular map needs none, since a column of either may change its sign."""
        return (sign(self), 1) if self.in_features == self.out_features else (None, None)

    def _weight(self, params: Params) -> Tensor:
        d1, d2 = self._dets
        left = householder.frame(householder.offset(params["U"]), self._r, det=d1) * self._sigma(params)
        return left @ householder.frame(householder.offset(params["V"]), self._r, det=d2).mT

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        (d1, d2), r, rows = self._dets, self._r, x.numel() // self.in_features
        form: float = self.in_features * r * self.out_features + rows * self.in_features * self.out_features
        direct = 0.0
        for n, k in ((self.in_features, len(params["U"])), (self.out_features, len(params["V"]))):
            whole, once, per_row = householder.costs(n, k, r)
            form, direct = form + whole, direct + once + rows * per_row
        if form < direct:
            return x @ self._weight(params)
        y = householder.times_frame(x, householder.offset(params["U"]), r, det=d1) * self._sigma(params)
        return householder.times_frame_t(y, householder.offset(params["V"]), r, det=d2)

    def _singular_values(self, params: Params) -> Tensor:
        return self._sigma(params).sort(descending=True).values

    def _violation(self, W: Tensor) -> Tensor:
        s = torch.linalg.svdvals(W)
        # with the wrong sign of the determinant, the smallest one is negative as seen from the promised component
        wrong = householder.wrong_component(W, self.det) & (torch.arange(self._r, device=W.device) == self._r - 1)
        s = torch.where(wrong, -s, s)
        return frobenius((s - self.sigma_max).clamp(min=0), (self.sigma_min - s).clamp(min=0))
