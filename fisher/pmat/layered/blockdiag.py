"""PMatBlockDiag: one exact block per layer.

A block is a matrix `[n, n]` over the layer's flattened view, or a scalar c (c times the identity).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.collector.collection import LayerCollection
from fisher.pmat.contract.blocks import Layerwise
from fisher.pmat.contract.cuts import Cut
from fisher.pmat.contract.damping import Regul, Scalar
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions import exact
from fisher.pmat.decompositions.eigenblocks import in_bases
from fisher.pmat.whole.diag import PMatDiag
from fisher.pmat.whole.eigen import PMatEigen
from fisher.pmat.whole.eye import PMatEye
from linmaps import trees


@trees.record(static=("layers", "symmetric"))
class PMatBlockDiag(Layerwise):
    """The exact diagonal blocks of F, a layer each (weight and bias jointly): memory and mv sum of n^2, solve sum of n^3.

    `blocks[name]` `[n, n]` over the layer's flattened view: `[W | b]` row by row where the layer is factored, the leaf
    elsewhere; a scalar (0) for a leaf that f does not use.  Kinds of solve as of PMatDense; inverse, pinv and pow are
    block-diagonal again.

    >>> import torch, fisher
    >>> f = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"]
    >>> p, x = {"w": torch.ones(2, 1), "v": torch.ones(1, 1)}, torch.eye(2)
    >>> layers = fisher.LayerCollection.from_function(f, p, x)
    >>> F = PMatBlockDiag({"w": torch.eye(2), "v": torch.ones(1, 1)}, layers)
    >>> F.solve(p, regul=1.0)["w"].T, F.trace()
    (tensor([[0.5000, 0.5000]]), tensor(3.))
    """

    blocks: dict[str, Tensor]
    layers: LayerCollection
    symmetric: bool = True
    general: ClassVar[bool] = True

    __repr__ = PMat.__repr__
    linear = True

    def _about(self) -> str:
        return f"{len(self.blocks)} blocks, "

    def _blocks(self) -> dict[str, Any]:
        for block in self.blocks.values():
            self.check_single(2 if block.ndim else 0, block)
        shapes = self.shapes()
        return {name: exact.exact_block(block, shapes[name], self.symmetric) for name, block in self.blocks.items()}

    def _inverse(self, regul: Regul) -> PMatBlockDiag:
        return self._powered(-1, regul)

    def _pinv(self, cut: Cut) -> PMatBlockDiag:
        self.spectral("pinv")
        return self._mapped(lambda block: exact.exact_pinv(block, cut))

    def _pow(self, p: float, regul: Regul) -> PMatBlockDiag:
        self.spectral("pow")
        return self._powered(p, regul)

    def _powered(self, p: float, regul: Regul) -> PMatBlockDiag:
        own = self._shares(regul, self._blocks())
        found = {name: exact.exact_power(block, p, own[name]) for name, block in self.blocks.items()}
        full = {
            name: torch.diag(t) if t.ndim == 1 else t for name, t in found.items()
        }  # of a scalar block and a diagonal
        return dataclasses.replace(self, blocks=full)

    def eigendecomposition(self, *, group: Any = None) -> PMatEigen:
        """F = U diag(values) U', by blocks; group: a process group over whose ranks they are split."""
        sizes = {name: block.diag().numel() for name, block in self.spectral("eigendecomposition").items()}
        found = in_bases(self.blocks, sizes, group)
        return PMatEigen({n: b.D for n, b in found.items()}, {n: b.U for n, b in found.items()}, self.layers)

    def scaled(self, alpha: Scalar) -> PMatBlockDiag:
        return self._mapped(lambda block: alpha * block)

    def matrices(self) -> dict[str, Tensor]:
        return self.blocks

    def _mapped(self, fn: Callable[[Tensor], Tensor]) -> PMatBlockDiag:
        return dataclasses.replace(self, blocks={name: fn(block) for name, block in self.blocks.items()})

    def _at_hand(self) -> list[Tensor]:
        return list(self.blocks.values())

    def _plus(self, other: PMat) -> PMat | None:
        return added(self, other)


def added(F: Layerwise, G: PMat) -> PMatBlockDiag | None:
    """F + G by dense blocks; None where G has no such blocks."""
    found = block_matrices(G, F.layers)
    if found is None:
        return None
    total = {name: exact.exact_sum(block, found[name]) for name, block in F.matrices().items()}
    return PMatBlockDiag(total, F.layers, F.symmetric and getattr(G, "symmetric", True))


def block_matrices(F: PMat, layers: LayerCollection) -> dict[str, Tensor] | None:
    """The dense blocks by layer (scalars for multiples of the identity), None where F is no direct sum over layers."""
    if isinstance(F, Layerwise):
        return F.matrices() if F.layers == layers else None
    if isinstance(F, PMatEye):
        return {layer.name: F.alpha for layer in layers}
    if isinstance(F, PMatDiag):
        return {name: exact.DiagonalBlock(view).dense() for name, view in layers.views(F.diag).items()}
    return None


def times(a: Tensor, b: Tensor) -> Tensor:
    """The product of two blocks, matrices or scalars."""
    return a @ b if a.ndim and b.ndim else a * b
