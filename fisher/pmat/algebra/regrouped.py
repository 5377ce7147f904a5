"""A sum of matrices as its solvers take it: by layers, or as products alone."""

from __future__ import annotations

from typing import Any, ClassVar

from fisher.pmat.algebra.sumblocks import SumBlock
from fisher.pmat.contract.blocks import Layerwise
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions.exact import DiagonalBlock
from fisher.pmat.layered.factored import Stacked
from fisher.pmat.matrix_free.matrixfree import MatrixFree
from fisher.pmat.whole.diag import PMatDiag
from linmaps import trees
from linmaps.trees import Layout
from linmaps.trees.tree import Tree


@trees.record(static=("layers", "symmetric"))
class Layered(Layerwise):
    """A sum of direct sums over the same layers: a sum of blocks for each layer."""

    terms: tuple[Any, ...]
    layers: Any
    symmetric: bool
    general: ClassVar[bool] = True

    __repr__ = PMat.__repr__

    def _blocks(self) -> dict[str, Any]:
        parts = [self._of(F) for F in self.terms]
        return {name: self._sum([blocks[name] for blocks in parts]) for name in parts[0]}

    def _of(self, F: PMat) -> dict[str, Any]:
        if isinstance(F, Layerwise):
            return F._blocks()
        if isinstance(F, PMatDiag):
            return {name: DiagonalBlock(view) for name, view in self.split(F.get_diag()).items()}
        return {name: DiagonalBlock(F.alpha.expand(s)) for name, s in self.shapes().items()}  # type: ignore[attr-defined]

    def _sum(self, blocks: list[Any]) -> Any:
        if all(isinstance(b, Stacked) for b in blocks):
            return Stacked(SumBlock(tuple(b.block for b in blocks), self.symmetric))
        return SumBlock(tuple(blocks), self.symmetric)


@trees.record()
class Products(MatrixFree):
    """A sum of which only products are formed: what conjugate gradients need."""

    total: PMat

    __repr__ = PMat.__repr__

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return self.total.layout

    def mv(self, v: Tree) -> Tree:
        return self.total.mv(v)
