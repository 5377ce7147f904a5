"""What a method makes, in its signature: `F.inverse()` is what `_inverse` of F's own class gives, and so for the others.

A representation says it once, where it computes it; the public method of all of them has it from there.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from fisher.pmat.contract.cuts import Cut, Over
from fisher.pmat.contract.damping import Regul, Scalar

M = TypeVar("M", covariant=True)


class Inverted(Protocol[M]):
    """Has an inverse, an M."""

    def _inverse(self, regul: Regul) -> M: ...


class Powered(Protocol[M]):
    """Has powers."""

    def _pow(self, p: float, regul: Regul) -> M: ...


class Pseudoinverted(Protocol[M]):
    """Has a pseudo-inverse."""

    def _pinv(self, cut: Cut) -> M: ...

    def _cut_off(self, rtol: float | None, atol: float, over: Over) -> Cut: ...


class Scaled(Protocol[M]):
    """Has multiples."""

    def scaled(self, alpha: Scalar) -> M: ...
