"""Differences W [in, out] of two non-negative matrices whose overlap is penalised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.entries.positive import METHODS, SMALLEST, Positive, draw, floor, raised


@register
@dataclass(frozen=True)
class Split(Map):
    """A difference of non-negative matrices, `W = B - C`, with a soft penalty on their overlap.

    Leaves "B", "C" [in, out] and method as in `NonNegative`.  `reg_error` is `sum(B * C)`, zero where each entry of W
    has only one of the two.  Any matrix is such a difference, so that nothing is promised of W.  init: B and C from
    U(1/20, 1) sqrt(2 / in) or so, such that outputs have variance 1/3 for inputs of unit variance.  `from_matrix` takes
    the positive and the negative part.

    >>> import torch, linmaps
    >>> spec = linmaps.Split(1, 2, method="relu")
    >>> params = {"B": torch.tensor([[3.0, 0.0]]), "C": torch.tensor([[1.0, 2.0]])}
    >>> spec.effective_W(params), spec.reg_error(params)
    (tensor([[ 2., -2.]]), tensor(3.))
    """

    name: ClassVar[str] = "split"
    promise: ClassVar[str] = "W = B - C with B, C >= 0; their overlap is penalised"
    at_zero: ClassVar[str] = "0"
    hard: ClassVar[bool] = False

    method: Positive = field(default="softplus", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.method in METHODS, "method", f"one of {tuple(METHODS)}")

    @property
    def _size(self) -> float:
        return (2 / self.in_features) ** 0.5 / (1 - SMALLEST)  # so that var(B - C) = 1 / (3 in)

    def _shapes(self) -> dict[str, Shape]:
        shape = (self.in_features, self.out_features)
        return {"B": shape, "C": shape}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        shapes, size = self._shapes(), self._size
        return {k: raised(draw(generator, s, size, dtype), self.method, size) for k, s in shapes.items()}

    def parts(self, params: Params) -> tuple[Tensor, Tensor]:
        """B and C [in, out], both non-negative.

        >>> import torch, linmaps
        >>> linmaps.Split(1, method="square").parts({"B": torch.tensor([[3.0]]), "C": torch.tensor([[2.0]])})
        (tensor([[9.]]), tensor([[4.]]))
        """
        self._check(params)
        phi = METHODS[self.method][0]
        return phi(params["B"], self._size), phi(params["C"], self._size)

    def _weight(self, params: Params) -> Tensor:
        B, C = self.parts(params)
        return B - C

    def _reg_error(self, params: Params) -> Tensor:
        B, C = self.parts(params)
        return (B * C).sum()

    def _violation(self, W: Tensor) -> Tensor:
        return W.new_zeros(())

    def _project(self, params: Params) -> dict[str, Any]:
        if self.method != "relu":
            return dict(params)
        return {**params, "B": params["B"].clamp(min=0), "C": params["C"].clamp(min=0)}

    def _from_matrix(self, W: Tensor) -> Params:
        size, least = self._size, floor(self.method, self._size)
        return {k: raised(t.clamp(min=0) + least, self.method, size) for k, t in (("B", W), ("C", -W))}
