"""PMatDense: the whole matrix `[d, d]`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from fisher.pmat.contract.blocks import Blockwise
from fisher.pmat.contract.cuts import Cut
from fisher.pmat.contract.damping import Regul, Scalar
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions.eigenblocks import in_bases
from fisher.pmat.decompositions.exact import ExactBlock, exact_pinv, exact_power
from fisher.pmat.whole.eigen import PMatEigen, Whole, raveled
from fisher.pmat.whole.eye import PMatEye
from linmaps import trees
from linmaps.numerics.linalg import damped
from linmaps.trees import Layout


@trees.record(static=("layout", "symmetric"))
class PMatDense(Blockwise):
    """The matrix itself: memory d^2, mv d^2, solve by one QR, about 8/3 d^3.  It may be indefinite (a difference, a Hessian).

    solve kinds: "default" (QR), "eigendecomposition" (where rounding in the null space must not swamp a small regul; for
    many values of regul keep `F.eigendecomposition()`), "lstsq" (pseudo-inverse).  inverse, pinv and pow are dense again.

    >>> import torch, fisher
    >>> F = fisher.fim(lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}, torch.eye(2), fisher.PMatDense, "gaussian")
    >>> F, F.mv({"w": torch.ones(2, 1)})["w"].T
    (PMatDense(d = 2, 4 numbers stored, float32, cpu), tensor([[0.5000, 0.5000]]))
    >>> (F**0.5).to_torch()
    tensor([[0.7071, 0.0000],
            [0.0000, 0.7071]])
    """

    matrix: Tensor
    layout: Layout
    symmetric: bool = True
    general: ClassVar[bool] = True

    __repr__ = PMat.__repr__

    if TYPE_CHECKING:  # with any other matrix

        def __add__(self, other: PMat) -> PMatDense: ...
        def __sub__(self, other: PMat) -> PMatDense: ...

    linear = True

    def _blocks(self) -> dict[str, Any]:
        self.check_single(2, self.matrix)
        return {"": ExactBlock(self.matrix, symmetric=self.symmetric)}

    def split(self, v: Any) -> dict[str, Tensor]:
        return {"": raveled(v, self.layout)}

    def join(self, views: dict[str, Tensor]) -> Any:
        return self.layout.unravel(views[""])

    def _inverse(self, regul: Regul) -> PMatDense:
        self.check_single(2, self.matrix)
        return dataclasses.replace(self, matrix=exact_power(self.matrix, -1, self._own(regul)))

    def _pinv(self, cut: Cut) -> PMatDense:
        self.spectral("pinv")
        return PMatDense(exact_pinv(self.matrix, cut), self.layout)

    def _pow(self, p: float, regul: Regul) -> PMatDense:
        self.spectral("pow")
        return PMatDense(exact_power(self.matrix, p, self._own(regul)), self.layout)

    def _own(self, regul: Regul) -> Scalar:
        return self._shares(regul, self._blocks())[""]

    def eigendecomposition(self, *, group: Any = None) -> PMatEigen:
        """F = U diag(values) U'; there solve, logdet, sample for any regul cost d^2.  group: decomposed at one rank for all."""
        self.spectral("eigendecomposition")
        found = in_bases({"": self.matrix}, {"": self.layout.numel}, group)[""]
        return PMatEigen({"": found.D}, {"": found.U}, Whole(self.layout))

    def get_block(self, name: str) -> Tensor:
        raise self._unsupported("get_block", "use PMatBlockDiag, or rows and columns of to_torch()")

    def to_torch(self) -> Tensor:
        return self.matrix

    def scaled(self, alpha: Scalar) -> PMatDense:
        return dataclasses.replace(self, matrix=alpha * self.matrix)

    def _at_hand(self) -> list[Tensor]:
        return [self.matrix]

    def _plus(self, other: PMat) -> PMatDense:
        total = damped(self.matrix, other.alpha) if isinstance(other, PMatEye) else self.matrix + other.to_torch()
        return PMatDense(total, self.layout, self.symmetric and getattr(other, "symmetric", True))
