"""Invertible matrices W [n, n] of positive determinant, with a margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from linmaps.base.registry import register
from linmaps.families.interval import check_bounds
from linmaps.families.singular_values.factors import Factors


@register
@dataclass(frozen=True)
class Invertible(Factors):
    """Invertible with a margin and det W > 0, `W = Q1 diag(s) Q2'` with Q1, Q2 rotations, no s below sigma_min.

    The leaf "p" [n] stands for s = sigma_min + sqrt(1 + (1 + p)^2) - 1, or with sigma_max for
    s = sigma_min + (sigma_max - sigma_min) sigmoid(p); it is absent where these bounds are equal.  Q1 and Q2 are products of
    reflections as in `Orthogonal`, along e_i + U[i] and e_i + V[i] for the leaves "U" and "V" [n - 1, n].  All matrices
    of positive determinant within the bounds are reached; `Transpose`, or a column of another sign, gives the others.

    `solve`, `inverse`, `logabsdet` and `singular_values` use the factors.  init: Q1, Q2 Haar, s uniform over the middle nine
    tenths of the bounds, or without sigma_max of an interval above sigma_min such that inputs of unit variance give
    outputs of variance 1/3, as far as sigma_min allows.  `violation(W)` is the Frobenius distance to the nearest matrix
    that keeps the promise, which `from_matrix` takes: it moves singular values to the bounds, and of a negative determinant
    the smallest to sigma_min.  Promises are kept to the rounding of the largest singular value.

    ValueError for sigma_min that is not positive, or above sigma_max.

    >>> import torch, linmaps
    >>> spec = linmaps.Invertible(3, sigma_min=0.5)
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0)))
    >>> bool(torch.linalg.det(W) > 0), bool(torch.linalg.svdvals(W).min() >= 0.5)
    (True, True)
    """

    name: ClassVar[str] = "invertible"
    promise: ClassVar[str] = "det W > 0, sigma_min <= singular values (<= sigma_max)"
    at_zero: ClassVar[str] = "c I (sigma_max: m I)"
    square: ClassVar[bool] = True
    det: ClassVar[int] = 1

    sigma_min: float = 0.1
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("sigma_min", 0, above=True)
        if self.sigma_max is not None:
            check_bounds(self)

    @property
    def _bounds(self) -> tuple[float, float | None]:
        return self.sigma_min, self.sigma_max
