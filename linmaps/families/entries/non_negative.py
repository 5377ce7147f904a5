"""Matrices W [in, out] without negative entries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.entries.positive import METHODS, Positive, draw, floor, raised, steady
from linmaps.numerics.numeric import frobenius


@register
@dataclass(frozen=True)
class NonNegative(Map):
    """Entries that are never negative, `W = phi(params["W"]) >= 0`.

    method: phi of a free leaf "W" [in, out]:

    * softplus: `softplus(w) / sqrt(in)`, smooth and never dead (the default).
    * square: `w^2`; a zero entry stays zero.
    * exp: `exp(w)`; steps are relative to the entry.
    * relu: `max(w, 0)`, the one with exact zeros.  An entry below 0 has no gradient: call `project` after each optimizer
      step, which is projected gradient descent, and no entry dies, since the derivative at 0 is taken as 1.

    init: entries from U(1/20, 1) / sqrt(in), so that inputs of unit variance and mean 0 give outputs of variance .35;
    a mean m of the inputs is multiplied by about sqrt(in) / 2, so that what such layers have in common grows with each.

    deep: init for layers that follow upon non-negative ones (or a ReLU): entries from U(1/20, 1) s, about 1.9 / in, with s such
    that features keep their mean square from layer to layer.  A layer with entries of mean mu and mean square q takes mean
    squares v and mean products c of two features to v' = in q v + in (in - 1) mu^2 c and c' = in mu^2 v + in (in - 1) mu^2 c; s
    makes the largest eigenvalue of this 1.  The first layer, on inputs of mean 0, is to be one without it.

    `violation(W)` is the norm of the negative entries.  `from_matrix` cuts them.

    >>> import torch, linmaps
    >>> spec = linmaps.NonNegative(3, 2, method="exp")
    >>> bool((spec.effective_W({"W": torch.full((3, 2), -5.0)}) > 0).all())
    True
    """

    name: ClassVar[str] = "non_negative"
    promise: ClassVar[str] = "W >= 0"
    at_zero: ClassVar[str] = "uniform (relu, square: 0)"

    method: Positive = field(default="softplus", kw_only=True)
    deep: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.method in METHODS, "method", f"one of {tuple(METHODS)}")
        self._expect(isinstance(self.deep, bool), "deep", "a bool", error=TypeError)

    @property
    def _size(self) -> float:
        return steady(self.in_features) if self.deep else self.in_features**-0.5

    def _shapes(self) -> dict[str, Shape]:
        return {"W": (self.in_features, self.out_features)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        W = draw(generator, self._shapes()["W"], self._size, dtype)
        return {"W": raised(W, self.method, self._size)}

    def _weight(self, params: Params) -> Tensor:
        return METHODS[self.method][0](params["W"], self._size)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W.clamp(max=0))

    def _project(self, params: Params) -> dict[str, Any]:
        return {**params, "W": params["W"].clamp(min=0)} if self.method == "relu" else dict(params)

    def _from_matrix(self, W: Tensor) -> Params:
        return {"W": raised(W.clamp(min=floor(self.method, self._size)), self.method, self._size)}
