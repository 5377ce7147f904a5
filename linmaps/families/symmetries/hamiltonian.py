"""Hamiltonian matrices of phase space, W [n, n] with J W symmetric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.symmetries.phase_space import Even, times_J
from linmaps.numerics import lapack
from linmaps.numerics.draws import uniform
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.packing import symmetric


@register
@dataclass(frozen=True)
class Hamiltonian(Even):
    """A Hamiltonian matrix, `W = -J S` with S symmetric, J = [[0, I], [-I, 0]]: J W is symmetric, and exp(W t) symplectic.

    The leaf "upper" [n (n + 1) / 2] is the upper triangle of S row by row.  Eigenvalues come in pairs +-lambda, and x exp(W
    t) neither grows nor decays on the whole.  init: U(-1/sqrt(n), 1/sqrt(n)), which gives outputs of variance 1/3 for
    inputs of unit variance.  `violation(W)` is the Frobenius norm of J W - (J W)'; `from_matrix` takes the nearest W.

    ValueError for an odd number of features.

    >>> import torch, linmaps
    >>> linmaps.Hamiltonian(2).effective_W({"upper": torch.tensor([1.0, 2.0, 3.0])})
    tensor([[-2., -3.],
            [ 1.,  2.]])
    """

    name: ClassVar[str] = "hamiltonian"
    promise: ClassVar[str] = "J W = (J W)'"
    at_zero: ClassVar[str] = "0"
    time: ClassVar[str] = "continuous"

    def _shapes(self) -> dict[str, Shape]:
        return {"upper": (self.in_features * (self.in_features + 1) // 2,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"upper": uniform(generator, self._shapes()["upper"], self.in_features**-0.5, dtype)}

    def _symmetric(self, params: Params) -> Tensor:
        return symmetric(params["upper"], self.in_features)

    def _weight(self, params: Params) -> Tensor:
        return -times_J(self._symmetric(params))

    def _singular_values(self, params: Params) -> Tensor:
        return lapack.eigvalsh(self._symmetric(params)).abs().sort(descending=True).values

    def _violation(self, W: Tensor) -> Tensor:
        S = times_J(W)
        return frobenius(S - S.mT)

    def _from_matrix(self, W: Tensor) -> Params:
        S = times_J(W)
        rows, columns = torch.triu_indices(len(W), len(W), device=W.device)
        return {"upper": ((S + S.mT) / 2)[rows, columns]}
