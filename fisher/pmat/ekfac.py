"""PMatEKFAC: a diagonal in a Kronecker eigenbasis per layer.

U [I, I], W [O, O] orthogonal bases of the input and the output side, D [O, I] the eigenvalues, V = [W | b] [O, I].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.layers import LayerCollection
from fisher.pmat.base import Regul, check_regul
from fisher.pmat.blocks import Blockwise, exact_inverse, exact_mv, exact_solve
from fisher.uses import Layer
from linmaps import trees
from linmaps.linalg import positive_root


@trees.record(static=("layers",))
class PMatEKFAC(Blockwise):
    """blockdiag((W (x) U) diag(D) (W (x) U)'): what `PMatKFAC.eigendecomposition` and `inverse` give.

    `eigenvalues[name] = D`, `bases[name] = (U, W)`, `exact[name]` as in PMatKFAC.  mv, solve: four products per layer.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.diag(torch.tensor([1.0, 2.0])), fisher.PMatKFAC, "gaussian")
    >>> F.inverse(regul=1.0).get_diag()["w"].T
    tensor([[0.6667, 0.3333]])
    """

    eigenvalues: dict[str, Tensor]
    bases: dict[str, tuple[Tensor, Tensor]]
    exact: dict[str, Tensor]
    layers: LayerCollection

    __repr__ = Blockwise.__repr__

    def _rotate(self, layer: Layer, V: Tensor, D: Tensor) -> Tensor:
        U, W = self.bases[layer.name]
        self.check_single(2, U)
        return W @ (D * (W.mT @ V @ U)) @ U.mT

    def mv(self, v: Any) -> Any:
        return self.apply(v, lambda layer, V: self._rotate(layer, V, self.eigenvalues[layer.name]), exact_mv)

    def solve(self, v: Any, regul: Regul = 1e-8) -> Any:
        check_regul(regul)
        return self.apply(
            v, lambda layer, V: self._rotate(layer, V, 1 / (self.eigenvalues[layer.name] + regul)), exact_solve(regul)
        )

    def inverse(self, regul: Regul = 1e-8) -> PMatEKFAC:
        """(F + regul I)^-1 in the same bases."""
        values = {name: 1 / (D + regul) for name, D in self.eigenvalues.items()}
        return PMatEKFAC(values, self.bases, self.exact_map(exact_inverse(regul)), self.layers)

    def block(self, layer: Layer) -> Tensor:
        U, W = self.bases[layer.name]
        D = self.eigenvalues[layer.name]
        return torch.einsum("ok,il,kl,pk,jl->oipj", W, U, D, W, U).reshape(D.numel(), D.numel())

    def block_diag(self, layer: Layer) -> Tensor:
        U, W = self.bases[layer.name]
        return (W**2) @ self.eigenvalues[layer.name] @ (U**2).mT

    def frobenius_norm(self) -> Tensor:
        """sqrt of the sum of squared entries."""
        return positive_root(self.squares(lambda layer: (self.eigenvalues[layer.name] ** 2).sum()))

    def scaled(self, alpha: Regul) -> PMatEKFAC:
        values = {name: alpha * D for name, D in self.eigenvalues.items()}
        return PMatEKFAC(values, self.bases, self.exact_map(lambda m: alpha * m), self.layers)
