"""PMatQuasiDiag: the diagonal, and the covariance of each weight with the bias of its output unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.collector.collection import LayerCollection
from fisher.pmat.contract.blocks import Layerwise
from fisher.pmat.contract.cuts import LSTSQ, Cut
from fisher.pmat.contract.damping import Regul, Scalar
from fisher.pmat.contract.limits import check_dense
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions.exact import DiagonalBlock, exact_pinv, exact_power
from fisher.pmat.layered.arrowhead import ArrowheadBlock
from fisher.pmat.layered.blockdiag import PMatBlockDiag, added
from fisher.pmat.whole.diag import PMatDiag
from fisher.pmat.whole.eigen import PMatEigen
from fisher.pmat.whole.eye import PMatEye
from linmaps import trees


@trees.record(static=("layers",))
class PMatQuasiDiag(Layerwise):
    """An arrowhead matrix per output unit: memory 2 d; mv, solve, logdet, sample O(d) by the Schur complement.

    `diag` a tree like params, `cross[name]` `[O, I]` the covariance of each weight with its unit's bias, for the layers that
    have both.  It need not be positive semi-definite: det is in absolute value, and sample raises where F + regul I is not
    positive definite.  inverse, pinv, pow are matrices of another form: a PMatBlockDiag, for layers up to 32,768
    parameters; norm(2), norm(-2) and kind="lstsq" make the matrix of each unit, O I^2 numbers.

    Source: Ollivier (2015), Riemannian metrics for neural networks I, section 2.3.

    >>> import torch, fisher
    >>> f = lambda p, x: torch.nn.functional.linear(x, p["weight"], p["bias"])
    >>> p = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    >>> layers = fisher.LayerCollection.from_function(f, p, torch.eye(2))
    >>> F = PMatQuasiDiag(
    ...     {"weight": torch.ones(1, 2), "bias": torch.ones(1)}, {layers.names()[0]: torch.ones(1, 2) / 2}, layers
    ... )
    >>> F.mv(p)["weight"], F.mv(p)["bias"]
    (tensor([[1.5000, 1.5000]]), tensor([2.]))
    """

    diag: Any
    cross: dict[str, Tensor]
    layers: LayerCollection
    kinds: ClassVar[dict[str, tuple[str, ...]] | None] = {"default": (), "lstsq": LSTSQ}

    __repr__ = PMat.__repr__
    linear = True

    def _about(self) -> str:
        return f"{len(self.cross)} layers with a bias, "

    def _blocks(self) -> dict[str, Any]:
        self.check_vector(self.diag, "diag (of a stacked ensemble? use torch.func.vmap)")
        views = self.layers.views(self.diag)
        return {
            name: ArrowheadBlock(view, self.cross[name]) if name in self.cross else DiagonalBlock(view)
            for name, view in views.items()
        }

    def _inverse(self, regul: Regul) -> PMatBlockDiag:
        return self._by_units("inverse", lambda m, r: exact_power(m, -1, r), regul)

    def _pinv(self, cut: Cut) -> PMatBlockDiag:
        return self._by_units("pinv", lambda m, _: exact_pinv(m, cut))

    def _pow(self, p: float, regul: Regul) -> PMatBlockDiag:
        return self._by_units("pow", lambda m, r: exact_power(m, p, r), regul)

    def eigendecomposition(self, *, group: Any = None) -> PMatEigen:
        """F = U diag(values) U', by layers; group: a process group over whose ranks they are split."""
        return self._by_units("eigendecomposition", lambda m, _: m).eigendecomposition(group=group)

    def get_diag(self) -> Any:
        return self.diag

    def scaled(self, alpha: Scalar) -> PMatQuasiDiag:
        cross = {name: alpha * t for name, t in self.cross.items()}
        return PMatQuasiDiag(trees.map(lambda t: alpha * t, self.diag), cross, self.layers)

    def _by_units(self, method: str, fn: Callable[[Tensor, Any], Tensor], regul: Regul = 0.0) -> PMatBlockDiag:
        """fn of the matrix of each unit, and of each diagonal `[n]`, and of their own of regul."""
        found, blocks = {}, self._blocks()
        own = self._shares(regul, blocks)
        for name, block in blocks.items():
            n = block.diag().numel()
            check_dense(
                n, f"PMatQuasiDiag.{method}: {name} has {n:,} parameters", "use F.solve(v, regul)", dtype=self.dtype
            )
            r = own[name]
            if isinstance(block, ArrowheadBlock):
                several = (r,) if isinstance(r, Tensor) and r.ndim else ()
                each = block.each(fn, *several) if several else block.each(lambda m, r=r: fn(m, r))
                found[name] = block.spread(each)
            else:
                found[name] = torch.diag(fn(block.entries.flatten(), r))
        return PMatBlockDiag(found, self.layers)

    def _plus(self, other: PMat) -> PMat | None:
        if isinstance(other, PMatQuasiDiag) and other.layers == self.layers:
            cross = {name: t + other.cross[name] for name, t in self.cross.items()}
            return PMatQuasiDiag(trees.add(self.diag, other.diag), cross, self.layers)
        if isinstance(other, PMatDiag):
            return PMatQuasiDiag(trees.add(self.diag, other.diag), self.cross, self.layers)
        if isinstance(other, PMatEye):
            return PMatQuasiDiag(trees.map(lambda t: t + other.alpha, self.diag), self.cross, self.layers)
        return added(self, other) if isinstance(other, PMatBlockDiag) else None
