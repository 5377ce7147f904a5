"""Functions and products tried: forward and reverse mode agree, and several vectors at once with each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.checks import agreement, finiteness
from fisher.checks.reverse_mode import reverse
from fisher.derivatives.forward import jvp
from fisher.derivatives.plain import plainly
from fisher.derivatives.untransformed import Missing
from fisher.trials import once
from linmaps import trees
from linmaps.checks import values

FEW = 32  # examples that show whether two derivatives are one


def forward(f: Callable[..., Tensor], params: Any, x: Any, name: str) -> None:
    """Raise a ValueError unless <u, J v> = <J'u, v> for generic u and v, on some of the examples; once for inputs of a kind.

    >>> forward(lambda p, x: x * p, torch.ones(()), torch.ones(3), "f")
    """
    kind = once.kind_of(params, x, "forward")
    if once.is_tried(f, kind):
        return
    x = trees.map(lambda t: t[:FEW], x)
    v = trees.map(agreement.generic, params)
    try:
        Jv = jvp(lambda p: f(p, x), (params,), (v,))[1]
    except Missing:  # products will say so, others need none
        return
    u = agreement.generic(Jv)
    pulled = reverse(lambda p: plainly(f)(p, x), params)[1](u)[0]
    tol = agreement.tolerance_of(plainly(f), params, x)
    if not adjoint((u * Jv).sum(), trees.dot(pulled, v), trees.norm(u) * trees.norm(Jv), tol):
        raise ValueError(f"{name}: {MODES}")
    once.found_sound(f, kind)


def symmetric(F: Any, name: str, finite: bool = True) -> None:
    """Raise a ValueError unless w'F v = v'F w for generic v and w: torch's forward and reverse mode agree, and are finite; and
    unless products with both at once are those with each."""
    v, w = (trees.map(lambda t, k=k: torch.cos(k + agreement.generic(t)), F.params) for k in (1.0, 2.0))
    try:
        Fv, Fw = F.mv(v), F.mv(w)
    except Missing:  # products will say so, others need none
        return
    if finite:
        finiteness.finite(Fv, name, NO_DERIVATIVE)
    scale = trees.norm(w) * trees.norm(Fv)
    if adjoint(trees.dot(w, Fv), trees.dot(v, Fw), scale):
        together(F, v, w, Fw, name)
        return
    if not adjoint(trees.dot(w, Fv), trees.dot(v, Fw), scale, agreement.tolerance_of(F.mv, v)):  # f in half precision
        raise ValueError(f"{name}: {MODES}")


def together(F: Any, v: Any, w: Any, Fw: Any, name: str) -> None:
    """Raise a ValueError unless F w among several products is F w alone."""
    try:
        both = vmap(F.mv)(trees.stack([v, w]))
    except RuntimeError:  # f has no batching rule: who needs many products takes them one by one
        return
    gap, size = (trees.norm(t) for t in (trees.sub(trees.unstack(both)[1], Fw), Fw))
    if not adjoint(gap, torch.zeros_like(gap), size, agreement.tolerance_of(F.mv, v)):
        raise ValueError(
            f"{name}: products with several vectors at once are not those with each, expected them to be; a torch call or an "
            "autograd.Function in the function has a wrong rule for torch.func.vmap: write it by other calls"
        )


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
