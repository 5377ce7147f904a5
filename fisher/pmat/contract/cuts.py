"""Which eigenvalues a pseudo-inverse drops."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from torch import Tensor

from linmaps import checks


@dataclasses.dataclass(frozen=True)
class Cut:
    """Those up to `rtol` times the largest of their block, and those up to `atol`."""

    rtol: float | None = None
    atol: float | Tensor = 0.0

    def of(self, default: float) -> tuple[float, float | Tensor]:
        """(rtol, atol); rtol None is the default, or 0 beside an atol."""
        if self.rtol is not None:
            return self.rtol, self.atol
        return (0.0 if isinstance(self.atol, Tensor) or self.atol else default), self.atol


NO_CUT = Cut()
Over = Literal["block", "matrix"]
LSTSQ = ("rtol", "atol", "over")  # options of the pseudo-inverse


def checked(rtol: float | None, atol: float, over: Over) -> Cut:
    """The cut of options that users give; ValueError for numbers below 0 or not finite, and for another `over`."""
    if rtol is not None:
        checks.number(rtol, "rtol", low=0, tensor=False)
    checks.number(atol, "atol", low=0, tensor=False)
    if over not in get_args(Over):
        raise ValueError(f"over: got {over!r}, expected 'block' or 'matrix'")
    return Cut(rtol, atol)
