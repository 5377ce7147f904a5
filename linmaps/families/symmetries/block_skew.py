"""Matrices of phase space that are skew by two blocks, W [n, n] = [[0, A], [-A', 0]]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.symmetries.phase_space import Even
from linmaps.numerics import lapack
from linmaps.numerics.draws import uniform
from linmaps.numerics.linalg import inv, logabsdet, solve
from linmaps.numerics.numeric import frobenius


@register
@dataclass(frozen=True)
class BlockSkew(Even):
    """A skew-symmetric matrix of two blocks, `W = [[0, A], [-A', 0]]`: W == -W' bit by bit, q drives p and p drives q.

    The leaf "A" is [m, m].  Eigenvalues are +-i sigma for the singular values sigma of A, singular values sigma twice:
    both cost a decomposition of A, as `solve`, `inverse` and `logabsdet` do, and `apply` multiplies by A alone.  init:
    U(-1/sqrt(m), 1/sqrt(m)), which gives outputs of variance 1/3 for inputs of unit variance.  `violation(W)` is the
    Frobenius distance to the nearest such matrix, which `from_matrix` takes.

    ValueError for an odd number of features.

    Source: the antisymmetric blocks of Haber and Ruthotto, "Stable architectures for deep neural networks".

    >>> import torch, linmaps
    >>> linmaps.BlockSkew(2).effective_W({"A": torch.tensor([[3.0]])})
    tensor([[ 0.,  3.],
            [-3.,  0.]])
    """

    name: ClassVar[str] = "block_skew"
    promise: ClassVar[str] = "W = [[0, A], [-A', 0]]"
    at_zero: ClassVar[str] = "0"
    time: ClassVar[str] = "continuous"

    def _shapes(self) -> dict[str, Shape]:
        return {"A": (self._m, self._m)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"A": uniform(generator, (self._m, self._m), self._m**-0.5, dtype)}

    def _weight(self, params: Params) -> Tensor:
        return _crossed(params["A"], -params["A"].mT)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        q, p = x.chunk(2, dim=-1)
        return torch.cat([-p @ params["A"].mT, q @ params["A"]], dim=-1)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        if not vectors:
            s = lapack.svdvals(params["A"])
            return 1j * torch.cat([s, -s]), None
        U, s, Vh = lapack.svd(params["A"])
        u, v = U * 0.5**0.5, 1j * Vh.mT * 0.5**0.5
        return 1j * torch.cat([s, -s]), torch.cat([torch.cat([u, u], dim=1), torch.cat([v, -v], dim=1)])

    def _singular_values(self, params: Params) -> Tensor:
        return lapack.svdvals(params["A"]).repeat_interleave(2)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        m, A = self._m, params["A"]
        first, second = (half.reshape(-1, m).mT for half in y.chunk(2, dim=-1))
        q, p = solve(A.mT, second).mT, -solve(A, first).mT
        return torch.cat([q, p], dim=1).reshape(y.shape)

    def _inverse(self, params: Params) -> Tensor:
        inverse = inv(params["A"])
        return _crossed(-inverse.mT, inverse)

    def _logabsdet(self, params: Params) -> Tensor:
        return 2 * logabsdet(params["A"])

    def _violation(self, W: Tensor) -> Tensor:
        (a, b), (c, d) = (half.chunk(2, dim=1) for half in W.chunk(2))
        return frobenius(a, d, (b + c.mT) * 0.5**0.5)

    def _from_matrix(self, W: Tensor) -> Params:
        (_, b), (c, _) = (half.chunk(2, dim=1) for half in W.chunk(2))
        return {"A": (b - c.mT) / 2}


def _crossed(upper: Tensor, lower: Tensor) -> Tensor:
    zero = torch.zeros_like(upper)
    return torch.cat([torch.cat([zero, upper], dim=1), torch.cat([lower, zero], dim=1)])
