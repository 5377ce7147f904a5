"""Matrices whose eigenvectors are the parameters themselves: a block per leaf, coordinates are trees like params."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor

from fisher.pmat.contract.blocks import Blockwise
from fisher.pmat.contract.damping import Amounts, Regul
from fisher.pmat.contract.inverses import Inverse, of_blocks
from fisher.pmat.decompositions.exact import DiagonalBlock
from linmaps import trees
from linmaps.trees.tree import Tree


class AxisAligned(Blockwise):
    """What PMatDiag and PMatEye have in common; a subclass has a `layout`."""

    def split(self, v: Any) -> dict[str, Tensor]:
        return {str(n): t for n, t in enumerate(trees.leaves(v))}

    def join(self, views: dict[str, Tensor]) -> Any:
        return self.layout.unflatten([views[str(n)] for n in range(len(views))])

    def _inverses(self, layers: Any, regul: Regul) -> dict[str, Inverse] | None:
        if layers.space != self.layout:
            return None
        blocks = {name: DiagonalBlock(t) for name, t in layers.views(Blockwise.get_diag(self)).items()}
        own = layers.views(regul.tree(self._like())) if isinstance(regul, Amounts) else dict.fromkeys(blocks, regul)
        return of_blocks(blocks, own)

    def eigendecomposition(self, *, group: Any = None) -> Self:
        """Itself."""
        return self

    def get_eigenvalues(self) -> Any:
        return self.get_diag()

    def project_to_diag(self, v: Tree) -> Tree:
        return self.check_vector(v)

    def project_from_diag(self, u: Tree) -> Tree:
        return self.check_vector(u, "u")
