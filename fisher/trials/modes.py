"""Results tried: forward and reverse mode agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.checks import agreement, finiteness
from linmaps import trees
from linmaps.checks import values


def symmetric(F: Any, name: str, finite: bool = True) -> None:
    """Raise a ValueError unless w'F v = v'F w for generic v and w: torch's forward and reverse mode agree, and are finite."""
    v, w = (trees.map(lambda t, k=k: torch.cos(k + agreement.generic(t)), F.params) for k in (1.0, 2.0))
    try:
        Fv, Fw = F.mv(v), F.mv(w)
    except NotImplementedError:  # torch has no forward mode of some call: products will say so, others need none
        return
    if finite:
        finiteness.finite(Fv, name, NO_DERIVATIVE)
    scale = trees.norm(w) * trees.norm(Fv)
    if adjoint(trees.dot(w, Fv), trees.dot(v, Fw), scale):
        return
    if not adjoint(trees.dot(w, Fv), trees.dot(v, Fw), scale, agreement.tolerance_of(F.mv, v)):  # f in half precision
        raise ValueError(f"{name}: {MODES}")


def adjoint(one: Tensor, other: Tensor, scale: Tensor, tol: float | None = None) -> bool:
    """Whether two ways to one inner product agree to tol, half of the digits by default."""
    a, b, s = values(one), values(other), values(scale)
    if a is None or b is None or s is None:
        return True
    gap = (a - b).abs()
    return bool((~(gap + s).isfinite() | (gap <= (agreement.tolerance([a.dtype]) if tol is None else tol) * s)).all())


OVERFLOWS = (
    "it overflows at these params and data, or torch has no such derivative there (sqrt and norm at 0, svd, det and eigh where "
    "values repeat)"
)
NO_DERIVATIVE = f"{OVERFLOWS}; pass check_finite=False to have it as it is"
MODES = (
    "products by torch's forward mode and by its reverse mode differ, expected one derivative; a torch call or an "
    "autograd.Function in the function has a wrong forward (jvp) or second derivative: write it by other calls"
)
