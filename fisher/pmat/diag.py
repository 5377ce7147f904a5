"""PMatDiag: the diagonal alone, a tree like params."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.pmat.base import PMat, Regul, check_regul
from linmaps import trees
from linmaps.linalg import positive_root
from linmaps.trees import Layout


@trees.record(static=("layout",))
class PMatDiag(PMat):
    """The exact diagonal of F: memory d, every method O(d).

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.tensor([[1.0, 2.0]]), fisher.PMatDiag, "gaussian")
    >>> F.get_diag()["w"].T, F.solve({"w": torch.ones(2, 1)}, regul=1.0)["w"].T
    (tensor([[1., 4.]]), tensor([[0.5000, 0.2000]]))
    """

    diag: Any
    layout: Layout

    __repr__ = PMat.__repr__

    def mv(self, v: Any) -> Any:
        self.check_vector(v)
        self.check_vector(self.diag, "diag (of a stacked ensemble? use torch.func.vmap)")
        return trees.map(torch.mul, self.diag, v)

    def solve(self, v: Any, regul: Regul = 1e-8) -> Any:
        return self.inverse(regul).mv(v)

    def inverse(self, regul: Regul = 1e-8) -> PMatDiag:
        """(F + regul I)^-1, diagonal."""
        check_regul(regul)
        return PMatDiag(trees.map(lambda t: 1 / (t + regul), self.diag), self.layout)

    def get_diag(self) -> Any:
        return self.diag

    def to_torch(self) -> Tensor:
        return torch.diag(trees.ravel(self.diag)[0])

    def frobenius_norm(self) -> Tensor:
        """sqrt of the sum of squared entries."""
        return positive_root(trees.dot(self.diag, self.diag))

    def scaled(self, alpha: Regul) -> PMatDiag:
        return PMatDiag(trees.scale(alpha, self.diag), self.layout)

    def plus(self, other: PMatDiag) -> PMatDiag:
        return PMatDiag(trees.add(self.diag, other.diag), self.layout)
