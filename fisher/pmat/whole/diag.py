"""PMatDiag: the diagonal alone, a tree like params."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from fisher.pmat.contract.cuts import Cut
from fisher.pmat.contract.damping import Amounts, Regul, Scalar
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions import spectra
from fisher.pmat.decompositions.exact import DiagonalBlock
from fisher.pmat.decompositions.precise import singly
from fisher.pmat.whole.aligned import AxisAligned
from fisher.pmat.whole.eye import PMatEye
from linmaps import trees
from linmaps.trees import Layout


@trees.record(static=("layout",))
class PMatDiag(AxisAligned):
    """The exact diagonal of F: memory d, every method O(d).

    It is its own eigendecomposition: coordinates are trees like params.  pinv and kind="lstsq" drop exact zeros, or what
    is at most `rtol` times the largest entry of its leaf.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.tensor([[1.0, 2.0]]), fisher.PMatDiag, "gaussian")
    >>> F.get_diag()["w"].T, F.solve({"w": torch.ones(2, 1)}, regul=1.0)["w"].T
    (tensor([[1., 4.]]), tensor([[0.5000, 0.2000]]))
    """

    diag: Any
    layout: Layout

    __repr__ = PMat.__repr__

    if TYPE_CHECKING:

        @overload
        def __add__(self, other: PMatDiag | PMatEye) -> PMatDiag: ...
        @overload
        def __add__(self, other: PMat) -> PMat: ...
        def __add__(self, other: PMat) -> PMat: ...
        @overload
        def __sub__(self, other: PMatDiag | PMatEye) -> PMatDiag: ...
        @overload
        def __sub__(self, other: PMat) -> PMat: ...
        def __sub__(self, other: PMat) -> PMat: ...

    linear = True

    def _blocks(self) -> dict[str, Any]:
        self.check_vector(self.diag, "diag (of a stacked ensemble? use torch.func.vmap)")
        return {str(n): DiagonalBlock(t) for n, t in enumerate(trees.leaves(self.diag))}

    def _inverse(self, regul: Regul) -> PMatDiag:
        return self._pow(-1, regul)

    def _pinv(self, cut: Cut) -> PMatDiag:
        return self._mapped(lambda t: singly(spectra.pseudo)(t, *cut.of(0.0)))

    def _pow(self, p: float, regul: Regul) -> PMatDiag:
        if not isinstance(regul, Amounts):
            return self._mapped(lambda t: spectra.entrywise_power(t, p, regul))
        power = lambda t, r: spectra.entrywise_power(t, p, r)
        return PMatDiag(trees.map(power, self.diag, regul.tree(self._like())), self.layout)

    def get_block(self, name: str) -> Tensor:
        raise self._unsupported("get_block", "use PMatBlockDiag, or get_diag()")

    def get_diag(self) -> Any:
        return self.diag

    def to_torch(self) -> Tensor:
        return DiagonalBlock(trees.ravel(self.diag)[0]).dense()

    def scaled(self, alpha: Scalar) -> PMatDiag:
        return self._mapped(lambda t: alpha * t)

    def _mapped(self, fn: Any) -> PMatDiag:
        return PMatDiag(trees.map(fn, self.diag), self.layout)

    def _at_hand(self) -> list[Tensor]:
        return [t.flatten() for t in trees.leaves(self.diag)]

    def _plus(self, other: PMat) -> PMat | None:
        if isinstance(other, PMatDiag):
            return PMatDiag(trees.add(self.diag, other.diag), self.layout)
        if isinstance(other, PMatEye):
            return self._mapped(lambda t: t + other.alpha)
        return None
