"""Gram matrices W [n, n] = A'A + eps I, whose smallest eigenvalue is known from below.  A [k, n]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.symmetries.symmetric import SymmetricMap
from linmaps.numerics import lapack
from linmaps.numerics.draws import normal
from linmaps.numerics.eigen import eigh
from linmaps.numerics.numeric import frobenius


def init_scale(k: int, n: int, eps: float) -> float:
    """Standard deviation of the entries of A [k, n] at which rows of A'A + eps I have E |row|^2 = 1/3, if eps lets them.

    With s its square, E |row|^2 = k (k + n + 1) s^2 + 2 eps k s + eps^2.
    """
    a, b, c = k * (k + n + 1), 2 * eps * k, eps**2 - 1 / 3
    s = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    return math.sqrt(max(s, 1e-2 / a**0.5))


def root(G: Tensor, k: int, eps: float) -> Tensor:
    """A [k, n] with A'A + eps I the nearest such matrix to the symmetric part of G [n, n], to rounding.

    A row of A that is 0 has no gradient, so eigenvalues exceed eps by the rounding of the largest at least, or, where none is
    above eps, by that of 1 or less.
    """
    values, vectors = eigh((G + G.mT) / 2)
    top = values.detach().amax()
    size = torch.where(top > eps, top, values.detach().abs().amax().clamp(max=1))
    least = 4 * torch.finfo(values.dtype).eps * torch.where(size > 0, size, 1.0)
    return (vectors * torch.maximum(values - eps, least).sqrt()).mT.flip(0)[:k]


def symmetric_product(A: Tensor) -> Tensor:
    """A'A, symmetric bit by bit, which a matrix product need not be."""
    G = A.mT @ A
    return (G + G.mT) * 0.5


@register
@dataclass(frozen=True)
class PSD(SymmetricMap):
    """Positive semi-definite, `W = A'A + eps I`: symmetric bit by bit, with eigenvalues >= eps.

    The leaf "A" is [rank, n]; rank is n unless given, and bounds the rank of W - eps I.  eps > 0 makes W positive
    definite.  init: normal entries of A such that outputs have variance 1/3 for inputs of unit variance, as far as eps
    allows.  `eig` is real and ascending.  `violation(W)` is the norm of W - W' and of what the eigenvalues lack to eps (for
    a lower rank, also exceed it by beyond the `rank` largest); `from_matrix` takes the nearest one.

    ValueError for rank outside 1..n or eps < 0.

    >>> import torch, linmaps
    >>> linmaps.PSD(2, rank=1, eps=0.5).effective_W({"A": torch.tensor([[1.0, 2.0]])})
    tensor([[1.5000, 2.0000],
            [2.0000, 4.5000]])
    """

    name: ClassVar[str] = "psd"
    promise: ClassVar[str] = "W = W' >= eps"
    at_zero: ClassVar[str] = "eps I"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False

    rank: int | None = field(default=None, kw_only=True)
    eps: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("eps", 0)
        if self.rank is not None:
            self._expect_int("rank", 1, self.in_features)

    @property
    def _rank(self) -> int:
        return self.in_features if self.rank is None else self.rank

    def _shapes(self) -> dict[str, Shape]:
        return {"A": (self._rank, self.in_features)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        scale = init_scale(self._rank, self.in_features, self.eps)
        return {"A": scale * normal(generator, self._shapes()["A"], dtype)}

    def _weight(self, params: Params) -> Tensor:
        G = symmetric_product(params["A"])
        return torch.diagonal_scatter(G, G.diagonal() + self.eps) if self.eps else G

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        n, k, rows = self.in_features, self._rank, x.numel() // self.in_features
        if k * n * n + rows * n * n < 2 * rows * n * k:
            return x @ self._weight(params)
        y = (x @ params["A"].mT) @ params["A"]
        return y + self.eps * x if self.eps else y

    def _violation(self, W: Tensor) -> Tensor:
        values = lapack.eigvalsh((W + W.mT) / 2) - self.eps
        null = values[: self.in_features - self._rank]
        return frobenius(W - W.mT, values.clamp(max=0), null.clamp(min=0))

    def _from_matrix(self, W: Tensor) -> Params:
        return {"A": root(W, self._rank, self.eps)}
