"""The options sigma_min and sigma_max that maps with bounds share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from linmaps.base import Map
from linmaps.numerics import lapack
from linmaps.numerics.numeric import frobenius


def check_bounds(spec: Map, *, signed: bool = False) -> None:
    """ValueError unless the options sigma_min and sigma_max are finite numbers with 0 <= sigma_min <= sigma_max > 0.

    signed: they may be negative and zero, as those of eigenvalues.
    """
    for key in ("sigma_min", "sigma_max"):
        spec._expect_number(key, None if signed else 0)
    low, high = getattr(spec, "sigma_min", 0.0), getattr(spec, "sigma_max", 0.0)
    spec._expect(low <= high, "sigma_min", f"at most sigma_max={high}; exchange the bounds")
    spec._expect(signed or high > 0, "sigma_max", "a positive number, since 0 leaves only the zero matrix")


def outside(spec: Any, values: Tensor) -> tuple[Tensor, Tensor]:
    """What values exceed sigma_max by, and what they lack to sigma_min."""
    return (values - spec.sigma_max).clamp(min=0), (spec.sigma_min - values).clamp(min=0)


def symmetric_violation(spec: Any, W: Tensor) -> Tensor:
    """How far W [n, n] is from symmetric with eigenvalues between the bounds."""
    return frobenius(W - W.mT, *outside(spec, lapack.eigvalsh((W + W.mT) / 2)))
