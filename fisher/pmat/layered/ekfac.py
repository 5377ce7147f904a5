"""PMatEKFAC: a diagonal in a Kronecker eigenbasis per layer.

U [I, I], W [O, O] orthogonal bases of the input and the output side, D [O, I] the eigenvalues, V = [W | b] [O, I].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.collector.blocks.uses import Layer
from fisher.collector.collection import LayerCollection
from fisher.likelihoods import Likelihood
from fisher.likelihoods.names import LikelihoodName
from fisher.pmat.contract.blocks import InEigenbasis
from fisher.pmat.contract.cuts import Cut
from fisher.pmat.contract.damping import Regul, Scalar
from fisher.pmat.contract.handing import handed
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions import exact
from fisher.pmat.decompositions.eigenblocks import BasisBlock, EigenBlock, in_basis
from fisher.pmat.layered.factored import layer_blocks, unstacked
from fisher.pmat.whole.eye import PMatEye
from linmaps import trees
from linmaps.trees.shapes import identical


@trees.record(static=("layers",))
class PMatEKFAC(InEigenbasis):
    """blockdiag((W (x) U) diag(D) (W (x) U)'): what `PMatKFAC.eigendecomposition`, `inverse`, `pow` give.

    `eigenvalues[name] = D`, `bases[name] = (U, W)`, `exact[name]` as in PMatKFAC.  mv, solve: four products per layer;
    inverse, pinv, pow stay in the bases.
    A 1-d U or W (ones) is the identity; grouped layers have an axis of groups in front of all three.  A layer that is seen
    through to derived weights has one basis, `bases[name] = (Q,)`, that of its dense block, and D `[n]`.
    F + G is a PMatEKFAC where both have the same bases (the same tensors: after `update_diag`, `inverse`, `pow`), else a
    PMatSum: to average over batches or time average PMatKFAC, then take `.eigendecomposition().update_diag(...)`.
    Derivatives through the bases are right where eigenvalues of a factor differ; else differentiate `PMatKFAC.solve`.

    Source: George et al. (2018), Fast approximate natural gradient descent in a Kronecker-factored eigenbasis.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.diag(torch.tensor([1.0, 2.0])), fisher.PMatKFAC, "gaussian")
    >>> F.inverse(regul=1.0).get_diag()["w"].T
    tensor([[0.6667, 0.3333]])
    """

    eigenvalues: dict[str, Tensor]
    bases: dict[str, tuple[Tensor, ...]]
    exact: dict[str, Tensor]
    layers: LayerCollection

    __repr__ = PMat.__repr__

    def _about(self) -> str:
        return f"{len(self.bases)} factored + {len(self.exact)} exact blocks, "

    def _blocks(self) -> dict[str, Any]:
        def factored(layer: Layer) -> Any:
            D = self.eigenvalues[layer.name]
            if layer.by_leaf:
                self.check_single(1, D)
                return BasisBlock(D, *self.bases[layer.name])
            U, W = self.bases[layer.name]
            self._check_factor(W, layer)
            self.check_single(2 + layer.grouped, D)
            return EigenBlock(D, U, W)

        return layer_blocks(self, factored)

    def eigenblocks(self) -> dict[str, Any]:
        """The exact blocks in their eigenbases too."""
        shapes = self.shapes()
        return {
            name: in_basis(self.exact[name], math.prod(shapes[name])) if name in self.exact else block
            for name, block in self._blocks().items()
        }

    def update_diag(
        self,
        f: Callable[..., Tensor],
        params: Any,
        data: Any,
        likelihood: LikelihoodName | Likelihood = "categorical",
        **options: Any,
    ) -> PMatEKFAC:
        """The same bases with new eigenvalues, the second moments in them at these params and data; options as of `fim`.

        `D[o, i] = 1/B sum over columns and b of ((W' (sum over s of g a') U)[o, i])^2`, one forward and one backward over
        the columns: much less than new bases.  Exact blocks are kept.
        """
        made: PMatEKFAC = handed("update_diag")(self, f, params, data, likelihood, **options)
        return made

    def _inverse(self, regul: Regul) -> PMatEKFAC:
        return self._pow(-1, regul)

    def _pinv(self, cut: Cut) -> PMatEKFAC:
        return self._with(lambda block, _: block.pinv(cut), lambda m, _: exact.exact_pinv(m, cut))

    def _pow(self, p: float, regul: Regul) -> PMatEKFAC:
        return self._with(lambda block, r: block.pow(p, r), lambda m, r: exact.exact_power(m, p, r), regul)

    def get_KFE(self, name: str, split_weight_bias: bool = True) -> Tensor:
        """The dense eigenbasis `[n, n]` of a layer, a column per eigenvalue (in the order of D, row by row).

        Its rows are the layer's parameters: the weights row by row, then the biases; with split_weight_bias=False the view
        `[W | b]` row by row, as in `get_block`.
        """
        blocks = self.eigenblocks()
        if name not in blocks:
            raise ValueError(f"get_KFE: got {name!r}, expected one of {sorted(blocks)}")
        basis = blocks[name].basis()
        if not split_weight_bias or name in self.exact or self.layers[name].bias is None:
            return basis
        shape = self.shapes()[name]
        rows = torch.arange(len(basis), device=basis.device).reshape(shape)
        return basis[torch.cat([rows[..., :-1].flatten(), rows[..., -1].flatten()])]

    def scaled(self, alpha: Scalar) -> PMatEKFAC:
        values = {name: alpha * D for name, D in self.eigenvalues.items()}
        return PMatEKFAC(values, self.bases, {name: alpha * m for name, m in self.exact.items()}, self.layers)

    def matrices(self) -> dict[str, Tensor]:
        return {
            name: exact.exact_dense(self.exact[name]) if name in self.exact else b.dense()
            for name, b in self._blocks().items()
        }

    def _with(self, factored: Any, each: Any, regul: Regul = 0.0) -> PMatEKFAC:
        """What two functions make of each factored and each exact block, and of its own of regul."""
        blocks = self._blocks()
        own = self._shares(regul, blocks)
        found = {name: factored(blocks[name], own[name]) for name in self.bases}
        values = {name: unstacked(b).D for name, b in found.items()}
        exact = {name: each(m, own[name]) for name, m in self.exact.items()}
        return PMatEKFAC(values, self.bases, exact, self.layers)

    def _plus(self, other: PMat) -> PMat | None:
        if isinstance(other, PMatEye):
            values = {name: D + other.alpha for name, D in self.eigenvalues.items()}
            parts = {name: exact.exact_sum(m, other.alpha) for name, m in self.exact.items()}
            return PMatEKFAC(values, self.bases, parts, self.layers)
        if isinstance(other, PMatEKFAC) and other.layers == self.layers and identical(self.bases, other.bases):
            values = {name: D + other.eigenvalues[name] for name, D in self.eigenvalues.items()}
            parts = {name: exact.exact_sum(m, other.exact[name]) for name, m in self.exact.items()}
            return PMatEKFAC(values, self.bases, parts, self.layers)
        return None
