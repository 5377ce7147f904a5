"""A Fisher matrix on the entries of W `[(L,) in, out]`: products and solves; Kronecker factors A `[in, in]`, B `[out, out]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fisher.pmat.contract.pmat import PMat
from linmaps import trees
from linmaps.numerics.dtypes import working
from linmaps.numerics.linalg import damped, inv


@dataclasses.dataclass(frozen=True)
class Curvature:
    """F V and F^-1 V for V of W's shape; roots: lower triangular (K, H) with F = K K' (x) H H', where F is such a product."""

    mv: Callable[[Tensor], Tensor]
    solve: Callable[[Tensor], Tensor]
    roots: tuple[Tensor, Tensor] | None = None


def curvature_of(fisher: Any, W: Tensor, ridge: float | Tensor) -> Curvature | None:
    """What `fisher` says; None without one.

    Raises ValueError or TypeError for what is neither a pair of factors nor a PMat with one leaf of W's shape.
    """
    if fisher is None:
        return None
    if isinstance(fisher, PMat):
        layout = fisher.layout
        if layout.shapes != (tuple(W.shape),):
            raise ValueError(
                f"fisher: a {type(fisher).__name__} over leaves {layout.shapes}, expected one leaf {tuple(W.shape)}; "
                "make it of a function of W itself, f(p, x) = x @ p['W'], or give a pair of Kronecker factors (A, B)"
            )
        mean = trees.leaves(fisher.get_diag())[0].mean()
        through = lambda fn: lambda V: trees.leaves(fn(layout.unflatten([V])))[0]
        return Curvature(
            through(lambda v: trees.add(fisher.mv(v), trees.scale(ridge * mean, v))),
            through(lambda v: fisher.solve(v, ridge * mean)),
        )
    if not (isinstance(fisher, Sequence) and len(fisher) == 2 and all(isinstance(t, Tensor) for t in fisher)):
        raise TypeError(f"fisher: got {type(fisher).__name__}, expected a PMat or a pair of tensors (A, B), or None")
    A, B = (_factor(t, n, name, ridge, extra) for t, n, name, extra in zip(fisher, W.shape[-2:], "AB", (1, 0)))
    K, H = torch.linalg.cholesky_ex(A).L, torch.linalg.cholesky_ex(B).L

    left, right = inv(A), inv(B)
    return Curvature(lambda V: A @ V @ B, lambda V: left @ V @ right, (K, H))


def _factor(t: Tensor, n: int, name: str, ridge: float | Tensor, extra: int) -> Tensor:
    t = working(torch.diag(t) if t.ndim == 1 else t)
    if t.shape not in ((n, n), (n + extra, n + extra)):
        also = f" or {(n + 1, n + 1)}, the last coordinate that of a bias," if extra else ""
        raise ValueError(f"fisher: {name} has shape {tuple(t.shape)}, expected {(n, n)}{also} for this W [in, out]")
    t = t[:n, :n]
    return damped((t + t.mT) / 2, ridge * t.diagonal().mean())
