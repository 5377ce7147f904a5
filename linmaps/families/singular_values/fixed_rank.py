"""Matrices W [in, out] of one rank, with a margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from linmaps.base.registry import register
from linmaps.families.singular_values.factors import Factors


@register
@dataclass(frozen=True)
class FixedRank(Factors):
    """Exactly `rank` singular values, each at least sigma_min, `W = Q1[:, :rank] diag(s) Q2[:, :rank]'` with

        s = sigma_min + sqrt(1 + q^2) - 1,    q = 1 + p,

    for the leaf "p" [rank]; the others are 0.  Q1 [in, in] and Q2 [out, out] are products of reflections as in
    `Orthogonal`, along e_i + U[i] for the leaf "U" and e_i + V[i] for the leaf "V"; every matrix of that rank is reached,
    singular values of sigma_min included.  A square map of full rank covers the matrices of positive determinant, as its
    s cannot pass 0.

    rank is half of min(in, out), at least 1, unless given.  `apply` goes through the rank when that is cheaper.  init: Q1, Q2
    Haar, s uniform over the middle nine tenths of an interval above sigma_min such that inputs of unit variance give
    outputs of variance 1/3, as far as sigma_min allows.  `violation(W)` is the Frobenius distance to the nearest matrix
    that keeps the promise, which `from_matrix` takes: the `rank` largest singular values, those below sigma_min raised to
    it, in any direction where they are 0.  Promises are kept to the rounding of the largest singular value.

    ValueError for a rank outside 1..min(in, out), or sigma_min that is not positive.

    Source: Lezcano-Casado, arXiv:1909.09501.

    >>> import torch, linmaps
    >>> spec = linmaps.FixedRank(5, 4, 2, sigma_min=0.5)
    >>> s = torch.linalg.svdvals(spec.effective_W(spec.init(torch.Generator().manual_seed(0))))
    >>> bool((s[:2] >= 0.5).all()), bool((s[2:] < 1e-6).all())
    (True, True)
    """

    name: ClassVar[str] = "fixed_rank"
    promise: ClassVar[str] = "rank W = rank, its singular values >= sigma_min"
    at_zero: ClassVar[str] = "c diag(+-1), cut"

    rank: int = None  # type: ignore[assignment]
    sigma_min: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if vars(self)["rank"] is None:
            object.__setattr__(self, "rank", max(1, min(self.in_features, self.out_features) // 2))
        self._expect_int("rank", 1, min(self.in_features, self.out_features))
        self._expect_number("sigma_min", 0, above=True)

    @property
    def _k(self) -> int:
        return self.rank

    @property
    def _bounds(self) -> tuple[float, float | None]:
        return self.sigma_min, None
