"""PMatSum: a sum of matrices whose sum has no common representation (two KFACs, a KFAC and a diagonal)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.pmat.base import PMat, Regul, check_regul
from fisher.pmat.blocks import Blockwise
from fisher.pmat.dense import PMatDense
from fisher.pmat.diag import PMatDiag
from linmaps import trees
from linmaps.linalg import damped, inv, positive_root, solve
from linmaps.trees import Layout


@trees.record()
class PMatSum(PMat):
    """F_1 + F_2 + ...: mv, trace and diagonal by linearity; solve, inverse and norm through dense blocks.

    Where all terms are blockwise over the same layers, blocks are as large as a layer; else one block of d.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.eye(2), fisher.PMatKFAC, "gaussian")
    >>> F + F
    PMatSum(2 terms, d = 2, 10 numbers stored, float32, cpu)
    """

    terms: tuple[Any, ...]

    __repr__ = PMat.__repr__

    def _about(self) -> str:
        return f"{len(self.terms)} terms, "

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return self.terms[0].layout

    def _sum(self, parts: list[Any]) -> Any:
        total = parts[0]
        for part in parts[1:]:
            total = trees.add(total, part)
        return total

    def mv(self, v: Any) -> Any:
        return self._sum([F.mv(v) for F in self.terms])

    def get_diag(self) -> Any:
        return self._sum([F.get_diag() for F in self.terms])

    def to_torch(self) -> Tensor:
        return self._sum([F.to_torch() for F in self.terms])

    def scaled(self, alpha: Regul) -> PMatSum:
        return PMatSum(tuple(F.scaled(alpha) for F in self.terms))

    def dense_blocks(self) -> list[tuple[list[int], Tensor]]:
        """`(positions in the flat order, block)`."""
        first = self.terms[0]
        if all(isinstance(F, Blockwise) and F.layers == first.layers for F in self.terms):
            lists = [F.dense_blocks() for F in self.terms]
            return [(same[0][0], self._sum([block for _, block in same])) for same in zip(*lists)]
        return [(list(range(self.layout.numel)), self.to_torch())]

    def solve(self, v: Any, regul: Regul = 1e-8) -> Any:
        check_regul(regul)
        self.check_vector(v)
        vector = trees.ravel(v)[0]
        out = torch.zeros_like(vector)
        for index, block in self.dense_blocks():
            where = torch.tensor(index, device=vector.device)
            out = out.index_copy(0, where, solve(damped(block, regul), vector[where]))
        return self.layout.unravel(out)

    def inverse(self, regul: Regul = 1e-8) -> PMatDense:
        """(F + regul I)^-1, dense."""
        check_regul(regul)
        return PMatDense(inv(damped(self.to_torch(), regul)), self.layout)

    def frobenius_norm(self) -> Tensor:
        """sqrt of the sum of squared entries."""
        squares = [(block**2).sum() for _, block in self.dense_blocks()]
        return positive_root(sum(squares[1:], squares[0]))


def add(F: PMat, G: Any) -> PMat:
    """F + G: in their own representation where it is closed under sums, dense with a dense one, else a PMatSum."""
    if not isinstance(G, PMat):
        raise TypeError(f"{type(F).__name__} + {type(G).__name__}: expected a PMat on the right")
    if F.layout != G.layout:
        raise ValueError(
            f"{type(F).__name__} + {type(G).__name__}: layouts differ, got leaves {[trees.path_str(p) for p in G.layout.paths]} "
            f"{G.layout.shapes}, expected {[trees.path_str(p) for p in F.layout.paths]} {F.layout.shapes}; "
            "add matrices of the same params"
        )
    for closed in (PMatDense, PMatDiag):
        if isinstance(F, closed) and isinstance(G, closed):
            return F.plus(G)  # type: ignore[arg-type]
    if isinstance(F, PMatDense) or isinstance(G, PMatDense):
        return PMatDense(F.to_torch() + G.to_torch(), F.layout)
    terms = [t for H in (F, G) for t in (H.terms if isinstance(H, PMatSum) else (H,))]
    return PMatSum(tuple(terms))
