"""Diagonal matrices W [n, n]: each feature times a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.symmetries.symmetric import SymmetricMap
from linmaps.numerics.draws import uniform
from linmaps.numerics.numeric import eye_like, frobenius


@register
@dataclass(frozen=True)
class Diagonal(SymmetricMap):
    """A diagonal matrix, `x @ W = x * d`, with the leaf "diagonal" d [n].

    All methods but W itself and `inverse` work on n numbers.  init: U(-1, 1), so that inputs of unit variance give outputs
    of variance 1/3.  `eig` is real and ascending.  `violation(W)` is the norm of the entries beside the diagonal, which
    `from_matrix` drops.

    >>> import torch, linmaps
    >>> linmaps.Diagonal(2).apply({"diagonal": torch.tensor([2.0, 3.0])}, torch.tensor([[1.0, 1.0], [0.5, 0.0]]))
    tensor([[2., 3.],
            [1., 0.]])
    """

    name: ClassVar[str] = "diagonal"
    promise: ClassVar[str] = "W_ij = 0 for i != j"
    at_zero: ClassVar[str] = "0"
    square: ClassVar[bool] = True

    def _shapes(self) -> dict[str, Shape]:
        return {"diagonal": (self.in_features,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"diagonal": uniform(generator, (self.in_features,), 1.0, dtype)}

    def _weight(self, params: Params) -> Tensor:
        return torch.diag(params["diagonal"])

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return x * params["diagonal"]

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return y / params["diagonal"]

    def _inverse(self, params: Params) -> Tensor:
        return torch.diag(1 / params["diagonal"])

    def _logabsdet(self, params: Params) -> Tensor:
        return params["diagonal"].abs().log().sum()

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        values, order = params["diagonal"].sort()
        return values, eye_like(values, self.in_features)[:, order] if vectors else None

    def _singular_values(self, params: Params) -> Tensor:
        return params["diagonal"].abs().sort(descending=True).values

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W - torch.diag(W.diagonal()))

    def _from_matrix(self, W: Tensor) -> Params:
        return {"diagonal": W.diagonal().clone()}
