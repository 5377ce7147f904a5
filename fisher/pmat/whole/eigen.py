"""PMatEigen: a matrix in its eigenbasis, block by block."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fisher.pmat.contract.blocks import InEigenbasis
from fisher.pmat.contract.cuts import Cut
from fisher.pmat.contract.damping import Regul, Scalar
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions.eigenblocks import BasisBlock
from fisher.pmat.whole.eye import PMatEye
from linmaps import trees
from linmaps.trees import Layout
from linmaps.trees.shapes import identical


def raveled(v: Any, space: Layout) -> Tensor:
    """The vector `[d]` of a tree; as trees.ravel, also over an empty axis of a map."""
    return torch.cat([t.reshape(n) for t, n in zip(trees.leaves(v), space.sizes)])


@trees.static
@dataclasses.dataclass(frozen=True)
class Whole:
    """All of parameter space as one block, in the form of a `LayerCollection`."""

    space: Layout

    def views(self, v: Any) -> dict[str, Tensor]:
        return {"": raveled(v, self.space)}

    def tree(self, views: dict[str, Tensor]) -> Any:
        return self.space.unravel(views[""])


@trees.record(static=("layers",))
class PMatEigen(InEigenbasis):
    """F = U diag(values) U': what `eigendecomposition` of PMatDense, PMatBlockDiag, PMatQuasiDiag and PMatSum gives.

    `values[name]` `[n]`, `vectors[name]` `[n, n]` (ones `[n]`: the identity), by layer (by "" for the whole).  solve,
    inverse, pow, logdet, sample for any regul in the same basis, without another factorization.  `get_eigenvalues()`,
    `project_to_diag(v)` = U'v and `project_from_diag(u)` = U u are tensors `[d]` for the whole, dicts by layer else.  Its
    derivatives are right where eigenvalues differ; where they repeat, differentiate the methods of the matrix itself.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.tensor([[1.0, 2.0]]), fisher.PMatDense, "gaussian")
    >>> E = F.eigendecomposition()
    >>> E.get_eigenvalues(), E.solve({"w": torch.tensor([[1.0], [2.0]])}, regul=1.0)["w"].T
    (tensor([0., 5.]), tensor([[0.1667, 0.3333]]))
    """

    values: dict[str, Tensor]
    vectors: dict[str, Tensor]
    layers: Any

    __repr__ = PMat.__repr__

    def _blocks(self) -> dict[str, Any]:
        for values in self.values.values():
            self.check_single(1, values)
        return {name: BasisBlock(D, self.vectors[name]) for name, D in self.values.items()}

    def coordinates(self, parts: dict[str, Tensor]) -> Any:
        return parts[""] if isinstance(self.layers, Whole) else parts

    def parts(self, coordinates: Any) -> dict[str, Tensor]:
        return {"": coordinates} if isinstance(self.layers, Whole) else coordinates

    def _inverse(self, regul: Regul) -> PMatEigen:
        return self._pow(-1, regul)

    def _pinv(self, cut: Cut) -> PMatEigen:
        return self._with({name: block.pinv(cut).D for name, block in self._blocks().items()})

    def _pow(self, p: float, regul: Regul) -> PMatEigen:
        blocks = self._blocks()
        own = self._shares(regul, blocks)
        return self._with({name: block.pow(p, own[name]).D for name, block in blocks.items()})

    def scaled(self, alpha: Scalar) -> PMatEigen:
        return self._with({name: alpha * D for name, D in self.values.items()})

    def _plus(self, other: PMat) -> PMat | None:
        if isinstance(other, PMatEye):
            return self._with({name: D + other.alpha for name, D in self.values.items()})
        if isinstance(other, PMatEigen) and other.layers == self.layers and identical(self.vectors, other.vectors):
            return self._with({name: D + other.values[name] for name, D in self.values.items()})
        return None

    def _with(self, values: dict[str, Tensor]) -> PMatEigen:
        return PMatEigen(values, self.vectors, self.layers)
