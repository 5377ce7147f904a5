"""PMatEye: a multiple of the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from fisher.pmat.contract.cuts import Cut
from fisher.pmat.contract.damping import Amounts, Regul, Scalar, flat, uniform
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions import spectra
from fisher.pmat.decompositions.exact import DiagonalBlock
from fisher.pmat.decompositions.precise import singly
from fisher.pmat.whole.aligned import AxisAligned
from linmaps import trees
from linmaps.numerics.numeric import positive_root
from linmaps.trees import Layout


@trees.record(static=("layout",))
class PMatEye(AxisAligned):
    """alpha I: one number.

    It is its own eigendecomposition: coordinates are trees like params.

    >>> import torch, fisher
    >>> from linmaps.trees import Layout
    >>> params = {"w": torch.ones(2, 1)}
    >>> F = PMatEye(torch.tensor(3.0), Layout.of(params))
    >>> F.solve(params, regul=1.0)["w"].T, F.trace(), (F**2).alpha
    (tensor([[0.2500, 0.2500]]), tensor(6.), tensor(9.))
    """

    alpha: Tensor
    layout: Layout

    __repr__ = PMat.__repr__

    if TYPE_CHECKING:

        @overload
        def __add__(self, other: PMatEye) -> PMatEye: ...
        @overload
        def __add__(self, other: PMat) -> PMat: ...
        def __add__(self, other: PMat) -> PMat: ...
        @overload
        def __sub__(self, other: PMatEye) -> PMatEye: ...
        @overload
        def __sub__(self, other: PMat) -> PMat: ...
        def __sub__(self, other: PMat) -> PMat: ...

    linear = True

    def _blocks(self) -> dict[str, Any]:
        self.check_single(0, self.alpha)
        return {str(n): DiagonalBlock(self.alpha.expand(s)) for n, s in enumerate(self.layout.shapes)}

    def _inverse(self, regul: Regul) -> PMatEye:
        return self._pow(-1, regul)

    def _pinv(self, cut: Cut) -> PMatEye:
        return PMatEye(singly(spectra.pseudo)(self.alpha, *cut.of(0.0)), self.layout)

    def _pow(self, p: float, regul: Regul) -> PMatEye:
        if isinstance(regul, Amounts):
            regul = uniform(flat(regul, self.alpha))
            if regul is None:
                raise ValueError(
                    "regul: got several numbers, expected one: powers of alpha I + regul are no multiple of the identity; use "
                    "fisher.PMatDiag(F.get_diag(), F.layout)"
                )
        return PMatEye(spectra.entrywise_power(self.alpha, p, regul), self.layout)

    def get_block(self, name: str) -> Tensor:
        raise self._unsupported("get_block", "use PMatBlockDiag, or alpha")

    def trace(self) -> Tensor:
        return self.alpha * self.layout.numel

    def frobenius_norm(self) -> Tensor:
        return positive_root(self.alpha**2) * self.layout.numel**0.5

    def to_torch(self) -> Tensor:
        return DiagonalBlock(self.alpha.expand(self.layout.numel)).dense()

    def scaled(self, alpha: Scalar) -> PMatEye:
        return PMatEye(alpha * self.alpha, self.layout)

    def _plus(self, other: PMat) -> PMat | None:
        return PMatEye(self.alpha + other.alpha, self.layout) if isinstance(other, PMatEye) else None
