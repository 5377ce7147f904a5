"""Matrices of bounded rank, W [in, out] = U V."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics import lapack
from linmaps.numerics.draws import generic, normal
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.singular import product_svdvals


@register
@dataclass(frozen=True)
class LowRank(Map):
    """A matrix of bounded rank, `W = U V` with leaves "U" [in, rank] and "V" [rank, out].

    rank is half of min(in, out), at least 1, unless given.  `apply` goes through the rank when that is cheaper.  init: normal
    U of variance 1/in and V of variance 1/(3 rank), so that inputs of unit variance give outputs of variance 1/3.
    `singular_values` are computed at size rank.  `violation(W)` is the distance to the nearest matrix of that rank, which
    `from_matrix` takes (truncated SVD, Eckart and Young 1936), its singular values shared evenly between U and V.  Where W has
    a lower rank, the other columns of U are generic and rows of V are 0, so that they can still learn.

    ValueError for a rank outside 1..min(in, out).

    >>> import torch, linmaps
    >>> spec = linmaps.LowRank(100, 80, 5)
    >>> spec.n_params, torch.linalg.matrix_rank(spec.effective_W(spec.init(torch.Generator().manual_seed(0)))).item()
    (900, 5)
    """

    name: ClassVar[str] = "low_rank"
    promise: ClassVar[str] = "rank W <= rank"
    at_zero: ClassVar[str] = "0"
    half_ready: ClassVar[bool] = False

    rank: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if vars(self)["rank"] is None:
            object.__setattr__(self, "rank", max(1, min(self.in_features, self.out_features) // 2))
        self._expect_int("rank", 1, min(self.in_features, self.out_features))

    def _shapes(self) -> dict[str, Shape]:
        return {"U": (self.in_features, self.rank), "V": (self.rank, self.out_features)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        shapes = self._shapes()
        U = self.in_features**-0.5 * normal(generator, shapes["U"], dtype)
        return {"U": U, "V": (3 * self.rank) ** -0.5 * normal(generator, shapes["V"], dtype)}

    def _weight(self, params: Params) -> Tensor:
        return params["U"] @ params["V"]

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        n, m, k, rows = self.in_features, self.out_features, self.rank, x.numel() // self.in_features
        if k * n * m + rows * n * m < rows * k * (n + m):
            return x @ self._weight(params)
        return (x @ params["U"]) @ params["V"]

    def _singular_values(self, params: Params) -> Tensor:
        return product_svdvals(params["U"], params["V"])

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(lapack.svdvals(W)[self.rank :])

    def _from_matrix(self, W: Tensor) -> Params:
        U, s, V = lapack.svd(W)
        U, largest, s, V = U[:, : self.rank], s[0], s[: self.rank], V[: self.rank]
        none = s <= max(W.shape) * torch.finfo(s.dtype).eps * largest
        share = torch.where(none, torch.where(largest > 0, largest, 1.0), s).sqrt()
        U = torch.where(none, torch.nn.functional.normalize(generic(U, *U.shape), dim=0), U)
        return {"U": U * share, "V": torch.where(none, 0.0, share)[:, None] * V}
