"""PMatDense: the whole matrix `[d, d]`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fisher.pmat.base import PMat, Regul, check_regul
from linmaps import trees
from linmaps.linalg import damped, inv, positive_root, solve
from linmaps.trees import Layout


@trees.record(static=("layout",))
class PMatDense(PMat):
    """The matrix itself: memory d^2, mv d^2, solve by one QR, about 8/3 d^3.  It may be indefinite (a difference, a Hessian).

    >>> import torch, fisher
    >>> F = fisher.fim(lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}, torch.eye(2), fisher.PMatDense, "gaussian")
    >>> F, F.mv({"w": torch.ones(2, 1)})["w"].T
    (PMatDense(d = 2, 4 numbers stored, float32, cpu), tensor([[0.5000, 0.5000]]))
    """

    matrix: Tensor
    layout: Layout

    __repr__ = PMat.__repr__

    def _vector(self, v: Any) -> Tensor:
        self.check_single(2, self.matrix)
        self.check_vector(v)
        return trees.ravel(v)[0]

    def mv(self, v: Any) -> Any:
        return self.layout.unravel(self.matrix @ self._vector(v))

    def solve(self, v: Any, regul: Regul = 1e-8) -> Any:
        check_regul(regul)
        return self.layout.unravel(solve(damped(self.matrix, regul), self._vector(v)))

    def inverse(self, regul: Regul = 1e-8) -> PMatDense:
        """(F + regul I)^-1, dense."""
        check_regul(regul)
        self.check_single(2, self.matrix)
        return PMatDense(inv(damped(self.matrix, regul)), self.layout)

    def get_diag(self) -> Any:
        self.check_single(2, self.matrix)
        return self.layout.unravel(self.matrix.diagonal())

    def to_torch(self) -> Tensor:
        return self.matrix

    def frobenius_norm(self) -> Tensor:
        """sqrt of the sum of squared entries."""
        return positive_root((self.matrix**2).sum())

    def scaled(self, alpha: Regul) -> PMatDense:
        return PMatDense(alpha * self.matrix, self.layout)

    def plus(self, other: PMatDense) -> PMatDense:
        return PMatDense(self.matrix + other.matrix, self.layout)
