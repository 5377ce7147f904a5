"""Matrices with a bounded norm.  W [in, out]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.interval import check_bounds
from linmaps.numerics import lapack
from linmaps.numerics.draws import uniform
from linmaps.numerics.numeric import eye_like, frobenius
from linmaps.numerics.ranges import between, unbetween

Norm = Literal[1, 2, "inf", "fro"]
NORMS = get_args(Norm)


@register
@dataclass(frozen=True)
class BoundedNorm(Map):
    """A norm in [sigma_min, sigma_max], `W = t A / |A|`, `t = sigma_min + (sigma_max - sigma_min) sigmoid(params["t"])`.

    p says which norm of the [in, out] matrix, as `torch.linalg.matrix_norm` defines them: 2 (largest singular value), 1
    (largest column sum of absolute values, which bounds max |x W| / max |x|), "inf" (largest row sum, which bounds the
    sum; math.inf too), "fro" (root of the sum of squares).  Leaves "W" = A [in, out] and "t" of shape () (absent when the
    bounds are equal).  A = 0 (its largest entry below 1e-31 in float32, 1e-292 in float64) counts as the identity, with the
    derivative there, so that descent leaves it.  `effective_W` costs the norm: for p = 2 the singular values.

    soft: A itself is W, and a squared hinge on the norm is the penalty `reg_error`.

    init: A from U(-1/sqrt(in), 1/sqrt(in)), as torch.nn.Linear, and |W| = |A| if that is within the middle nine tenths of
    the bounds, else the nearest there: outputs have variance 1/3 for inputs of unit variance where the bounds allow it.
    `violation(W)` is what the norm exceeds the bounds by; `from_matrix` rescales.

    ValueError for another p, or bounds that are negative or out of order.

    >>> import torch, linmaps
    >>> spec = linmaps.BoundedNorm(2, p="fro", sigma_min=0.5, sigma_max=0.5)
    >>> spec.effective_W({"W": torch.tensor([[3.0, 0.0], [0.0, 4.0]])})
    tensor([[0.3000, 0.0000],
            [0.0000, 0.4000]])
    """

    name: ClassVar[str] = "bounded_norm"
    promise: ClassVar[str] = "sigma_min <= norm <= sigma_max (soft=True: where the penalty is 0)"
    at_zero: ClassVar[str] = "I, norm m (soft: 0)"
    half_ready: ClassVar[bool] = False

    sigma_min: float = 0.1
    sigma_max: float = 1.0
    p: Norm | float = field(default=2, kw_only=True)
    soft: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)
        if isinstance(self.p, float) and self.p == math.inf:
            object.__setattr__(self, "p", "inf")
        known = self.p in NORMS and not isinstance(self.p, bool)
        self._expect(known, "p", f"one of {NORMS}; these are the norms of the [in, out] matrix")
        self._expect(isinstance(self.soft, bool), "soft", "a bool", error=TypeError)

    @property
    def guaranteed(self) -> bool:
        return not self.soft

    def _norm(self, W: Tensor) -> Tensor:
        if self.p == "fro":
            return frobenius(W)
        if self.p == 2:
            return lapack.svdvals(W)[0]
        return torch.linalg.matrix_norm(W, math.inf if self.p == "inf" else self.p)

    def _shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"W": (self.in_features, self.out_features)}
        return shapes | ({"t": ()} if self.sigma_min < self.sigma_max and not self.soft else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        A = uniform(generator, self._shapes()["W"], self.in_features**-0.5, dtype)
        edge = (self.sigma_max - self.sigma_min) / 20
        norm = self._norm(A)
        t = norm.clamp(self.sigma_min + edge, self.sigma_max - edge)
        if self.soft:
            return {"W": A * (t / norm)}
        return {"W": A} | ({"t": unbetween(self.sigma_min, self.sigma_max, t)} if "t" in self._shapes() else {})

    def _weight(self, params: Params) -> Tensor:
        A = params["W"]
        if self.soft:
            return A
        largest, info = A.detach().abs().amax(), torch.finfo(A.dtype)
        none = largest < info.tiny / info.eps  # the derivative of its direction would be infinite
        A = A / torch.where(none, 1.0, largest) + none * eye_like(A, *A.shape)  # so that no square underflows
        t = between(self.sigma_min, self.sigma_max, params["t"]) if "t" in params else self.sigma_max
        return A * (t / self._norm(A))

    def _reg_error(self, params: Params) -> Tensor:
        return self._violation(params["W"]).square() if self.soft else super()._reg_error(params)

    def _violation(self, W: Tensor) -> Tensor:
        norm = self._norm(W)
        return (norm - self.sigma_max).clamp(min=0) + (self.sigma_min - norm).clamp(min=0)

    def _from_matrix(self, W: Tensor) -> Params:
        norm = self._norm(W)
        if self.soft:
            eye = eye_like(W, *W.shape)
            safe = torch.where(norm > 0, W / torch.where(norm > 0, norm, 1.0), eye / self._norm(eye))
            return {"W": safe * norm.clamp(self.sigma_min, self.sigma_max)}
        # a matrix of zeros counts as the identity, but has no gradient
        return {"W": torch.where(norm > 0, W, eye_like(W, *W.shape))} | (
            {"t": unbetween(self.sigma_min, self.sigma_max, norm)} if "t" in self._shapes() else {}
        )
