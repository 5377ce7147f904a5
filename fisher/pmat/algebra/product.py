"""Products of two matrices, where a representation holds them."""

from __future__ import annotations

from torch import Tensor

from fisher.pmat.algebra.addition import add, same_space
from fisher.pmat.algebra.sums import PMatSum
from fisher.pmat.contract.handing import hands_over
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.layered.blockdiag import PMatBlockDiag, block_matrices, times
from fisher.pmat.layered.kfac import PMatKFAC
from fisher.pmat.whole.dense import PMatDense
from fisher.pmat.whole.diag import PMatDiag
from fisher.pmat.whole.eye import PMatEye
from linmaps import trees


@hands_over("multiply")
def multiply(F: PMat, G: PMat) -> PMat:
    """F G: closed for PMatDense, PMatDiag, PMatBlockDiag, PMatKFAC, and PMatEye with anything; sums distribute.

    >>> import torch
    >>> from linmaps.trees import Layout
    >>> params = {"w": torch.ones(2)}
    >>> F, G = (
    ...     PMatDiag({"w": torch.tensor([1.0, 2.0])}, Layout.of(params)),
    ...     PMatEye(torch.tensor(3.0), Layout.of(params)),
    ... )
    >>> multiply(F, G).get_diag()
    {'w': tensor([3., 6.])}
    """
    if not isinstance(G, PMat):
        raise TypeError(f"{type(F).__name__}.mm: got {type(G).__name__}, expected a PMat")
    same_space(F, G, "@")
    if isinstance(F, PMatEye):
        return G.scaled(F.alpha)
    if isinstance(G, PMatEye):
        return F.scaled(G.alpha)
    if isinstance(F, PMatSum):
        return _sum([multiply(term, G) for term in F.terms])
    if isinstance(G, PMatSum):
        return _sum([multiply(F, term) for term in G.terms])
    if isinstance(F, PMatDiag) and isinstance(G, PMatDiag):
        return PMatDiag(trees.map(lambda s, t: s * t, F.diag, G.diag), F.layout)
    if isinstance(F, PMatKFAC) and isinstance(G, PMatKFAC) and F.layers == G.layers:
        return _factored(F, G)
    for H in (F, G):
        if isinstance(H, PMatBlockDiag):
            left, right = block_matrices(F, H.layers), block_matrices(G, H.layers)
            if left is not None and right is not None:
                return PMatBlockDiag({n: times(b, right[n]) for n, b in left.items()}, H.layers, False)
    if isinstance(F, PMatDense) or isinstance(G, PMatDense):
        return PMatDense(F.to_torch() @ G.to_torch(), F.layout, False)
    raise ValueError(
        f"{type(F).__name__} @ {type(G).__name__}: no representation holds this product; use F.to_torch() @ G.to_torch()"
    )


def _factored(F: PMatKFAC, G: PMatKFAC) -> PMatKFAC:
    """(G (x) A) (G' (x) A') = G G' (x) A A'."""
    factors = {}
    for layer in F.layers:
        if layer.kronecker:
            (A, H), (B, K) = F.factors[layer.name], G.factors[layer.name]
            factors[layer.name] = (_times(A, B, layer.grouped), _times(H, K, layer.grouped))
    return PMatKFAC(factors, {n: _exact(m, G.exact[n]) for n, m in F.exact.items()}, F.layers, False, False)


def _exact(a: Tensor, b: Tensor) -> Tensor:
    """The product of two exact blocks: matrices, diagonals, or scalars that stand for multiples of I."""
    return a * b if 0 in (a.ndim, b.ndim) else _times(a, b, False)


def _times(A: Tensor, B: Tensor, grouped: bool) -> Tensor:
    """A B, either of which may be the diagonal of a diagonal matrix."""
    thin = 1 + grouped
    if A.ndim == B.ndim:
        return A * B if A.ndim == thin else A @ B
    return A[..., :, None] * B if A.ndim == thin else A * B[..., None, :]


def _sum(parts: list[PMat]) -> PMat:
    total = parts[0]
    for part in parts[1:]:
        total = add(total, part)
    return total
