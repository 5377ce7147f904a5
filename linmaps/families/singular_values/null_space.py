"""Injective matrices W [in, out], whose left null space is trivial with a margin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.symmetries.gram import init_scale, root
from linmaps.numerics import lapack
from linmaps.numerics.draws import normal, uniform
from linmaps.numerics.numeric import eye_like, frobenius


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
    at_zero: ClassVar[str] = "epsilon I"
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
    def _of_size(cls, rows: int, columns: int, **options: object) -> Self:
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
