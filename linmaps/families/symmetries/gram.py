"""Gram matrices A'A + eps I, whose smallest eigenvalue is known from below.  W [in, out], A [k, in]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.symmetries.symmetric import SymmetricMap
from linmaps.numerics import lapack
from linmaps.numerics.draws import normal, uniform
from linmaps.numerics.eigen import eigh
from linmaps.numerics.numeric import eye_like, frobenius


def init_scale(k: int, n: int, eps: float) -> float:
    """Standard deviation of the entries of A [k, n] at which rows of A'A + eps I have E |row|^2 = 1/3, if eps lets them.

    With s its square, E |row|^2 = k (k + n + 1) s^2 + 2 eps k s + eps^2.
    """
    a, b, c = k * (k + n + 1), 2 * eps * k, eps**2 - 1 / 3
    s = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    return math.sqrt(max(s, 1e-2 / a**0.5))


def root(G: Tensor, k: int, eps: float) -> Tensor:
    """A [k, n] with A'A + eps I the nearest such matrix to the symmetric part of G [n, n], to rounding.

    A row of A that is 0 has no gradient, so eigenvalues exceed eps by the rounding of the largest at least.
    """
    values, vectors = eigh((G + G.mT) / 2)
    size = values.detach().abs().amax()
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


@register
@dataclass(frozen=True)
class TrivialNullSpace(Map):
    """Injective with a margin, `W = [G1'G1 + epsilon I, G2']`: no smaller singular value than epsilon, so `x W = 0` only
    for x = 0.

    Leaves "G1" [rank, in] and "G2" [out - in, in], for out >= in; rank is (in + 1) // 2 unless given.  The symmetric block
    makes it a part of all injective maps; `Spectral` with sigma_min > 0 is all of them.  init: normal entries of G1 and
    uniform ones of G2 such that outputs have variance 1/3 for inputs of unit variance, as far as epsilon allows.
    `violation(W)` is what the smallest singular value lacks to epsilon; `from_matrix` takes the nearest of these matrices.

    ValueError for out < in, rank outside 1..in, or epsilon <= 0.

    Source: Richards, Berkenkamp and Krause, arXiv:1808.00924, equation 2.

    >>> import torch, linmaps
    >>> spec = linmaps.TrivialNullSpace(3, 5, epsilon=0.2)
    >>> s = spec.singular_values(spec.init(torch.Generator().manual_seed(0)))
    >>> bool(s.min() >= 0.2)
    True
    """

    name: ClassVar[str] = "trivial_null_space"
    promise: ClassVar[str] = "smallest singular value >= epsilon"
    half_ready: ClassVar[bool] = False

    rank: int | None = field(default=None, kw_only=True)
    epsilon: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("epsilon", 0, above=True)
        fits = self.out_features >= self.in_features
        self._expect(
            fits, "out_features", f"at least in_features={self.in_features}; use Transpose for the other direction"
        )
        if self.rank is not None:
            self._expect_int("rank", 1, self.in_features)

    @classmethod
    def _of_size(cls, rows: int, columns: int, **options: object) -> Map:
        return cls(min(rows, columns), columns, **options)  # type: ignore[arg-type]

    @property
    def _rank(self) -> int:
        return (self.in_features + 1) // 2 if self.rank is None else self.rank

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        shapes: dict[str, Shape] = {"G1": (self._rank, n)}
        return shapes | ({"G2": (self.out_features - n, n)} if self.out_features > n else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        shapes, n = self._shapes(), self.in_features
        params = {"G1": init_scale(self._rank, n, self.epsilon) * normal(generator, shapes["G1"], dtype)}
        return params | ({"G2": uniform(generator, shapes["G2"], n**-0.5, dtype)} if "G2" in shapes else {})

    def _weight(self, params: Params) -> Tensor:
        A = params["G1"]
        G = torch.addmm(self.epsilon * eye_like(A, self.in_features), A.mT, A)
        return torch.cat([G, params["G2"].mT], dim=1) if "G2" in params else G

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius((self.epsilon - lapack.svdvals(W)).clamp(min=0))

    def _from_matrix(self, W: Tensor) -> Params:
        n = self.in_features
        params = {"G1": root(W[:, :n], self._rank, self.epsilon)}
        return params | ({"G2": W[:, n:].mT.contiguous()} if self.out_features > n else {})
