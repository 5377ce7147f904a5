"""Inverses of R' diag(w) R + r I for rows R `[n, d]` by K = R R': Woodbury's formula where it loses little, else eigenvectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.pmat.contract.damping import Scalar
from fisher.pmat.whole.rows import combination, gram, products
from linmaps import trees
from linmaps.checks import values
from linmaps.numerics.eigen import constant_eigh, cutoff, denoised
from linmaps.numerics.linalg import damped


def constant_inverse(rows: Any, weights: Tensor | None, regul: Scalar, dtype: torch.dtype) -> Callable[[Any], Any]:
    """v -> (R' diag(w) R + regul I)^-1 v, constant in R, w and regul; K is decomposed in this dtype."""
    rows = trees.map(lambda t: t.detach(), rows)
    r = regul.detach() if isinstance(regul, Tensor) else regul
    K = gram(rows, dtype)
    large = torch.as_tensor(r > 128 * torch.finfo(K.dtype).eps * K.diagonal().sum())  # Woodbury loses little
    known = values(large)
    if weights is None and known is not None and bool(known.all()):
        return _improved(rows, r, _cholesky_inverse(damped(K, r)))  # eigenvectors would give the same, later
    s, U = constant_eigh(K)
    s = denoised(s, cutoff(len(s), s.dtype)).clamp_min(0.0)
    used = s > 0
    T = U * torch.where(used, torch.where(used, s, 1.0).rsqrt(), 0.0)
    if weights is not None:
        half = U * s.sqrt()
        s, P = constant_eigh(half.mT @ (weights.detach()[:, None] * half))
        s = denoised(s, cutoff(len(s), s.dtype))
        T = T @ P
    inside = lambda v: products(rows, v) @ T
    back = lambda c: combination(rows, c @ T.mT)

    def inverse(v: Any) -> Any:
        c = inside(v)
        outside = trees.sub(v, back(c))
        outside = trees.sub(outside, back(inside(outside)))  # once more: little of the span may be left in it
        return trees.map(lambda x, y: x + y / r, back(c / (s + r)), outside)

    if weights is not None:
        return inverse
    spectrum = s + r
    woodbury = _improved(rows, r, lambda c: (c @ U / spectrum) @ U.mT)
    return lambda v: trees.map(lambda x, y: torch.where(large, x, y), woodbury(v), inverse(v))


def _improved(rows: Any, r: Any, inverse: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """v -> (R'R + r I)^-1 v by Woodbury, (v - R'(R R' + r I)^-1 R v) / r, and once more on what is left of v."""

    def woodbury(v: Any) -> Any:
        return trees.scale(1 / r, trees.sub(v, combination(rows, inverse(products(rows, v)))))

    def better(v: Any) -> Any:
        x = woodbury(v)
        rest = trees.sub(v, trees.axpy(r, x, combination(rows, products(rows, x))))
        return trees.add(x, woodbury(rest))

    return better


def _cholesky_inverse(m: Tensor) -> Callable[[Tensor], Tensor]:
    """c -> m^-1 c of a positive definite m."""
    L = torch.linalg.cholesky_ex(m).L

    def inverse(c: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(L, c[:, None], upper=False)
        return torch.linalg.solve_triangular(L.mT, half, upper=True)[:, 0]

    return inverse
