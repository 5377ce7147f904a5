"""Phase space: rows x = (q, p) of n = 2 m numbers, and J = [[0, I], [-I, 0]] [n, n] in blocks of m rows and columns."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from linmaps.base import Map


class Even(Map):
    """A square map of an even number n = 2 m of features."""

    square: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.in_features
        self._expect(n % 2 == 0, "in_features", f"an even number, for q and p of equal size; use {n - 1} or {n + 1}")

    @property
    def _m(self) -> int:
        return self.in_features // 2

    @classmethod
    def _of_size(cls, rows: int, columns: int, **options: Any) -> Self:
        return cls(max(2, rows - rows % 2), **options)


def times_J(W: Tensor) -> Tensor:
    """`J @ W` for W [n, k]."""
    top, bottom = W.chunk(2)
    return torch.cat([bottom, -top])
