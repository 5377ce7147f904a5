"""Diagonally dominant matrices W [n, n]: nonsingular, with eigenvalues right of a margin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.draws import uniform
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.packing import unweave, weave
from linmaps.numerics.ranges import MARGIN, relu


@register
@dataclass(frozen=True)
class DiagonallyDominant(Map):
    """A strictly diagonally dominant matrix with a positive diagonal, `W_ii = margin + softplus("diagonal"[i]) + sum_j
    |W_ij|`, j != i.

    Hence W is nonsingular, |W^-1| <= 1 / margin in the norm of the largest row sum, and its eigenvalues have real part
    >= margin.  Leaves "diagonal" [n] and "off" [n, n - 1], the other entries row by row.

    init: "diagonal" constant, "off" uniform, with the same share of a row's dominance, so that inputs of unit variance
    give outputs of variance 1/3; a margin above about 1/2 fixes the scale itself, at about margin^2.  `violation(W)` is
    the norm of what each diagonal entry lacks.  `from_matrix` raises the diagonal entries that need it, to 1e-6 above what
    they must be at least, and keeps the others.

    ValueError for a margin that is not a finite positive number.

    >>> import torch, linmaps
    >>> spec = linmaps.DiagonallyDominant(2, margin=1.0)
    >>> params, distance = spec.from_matrix(torch.tensor([[5.0, -3.0], [0.0, 2.0]]))
    >>> spec.effective_W(params)
    tensor([[ 5., -3.],
            [ 0.,  2.]])
    """

    name: ClassVar[str] = "diagonally_dominant"
    promise: ClassVar[str] = "W_ii >= margin + sum of |W_ij|, j != i"
    at_zero: ClassVar[str] = "(margin + log 2) I"
    square: ClassVar[bool] = True

    margin: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("margin")
        self._expect(self.margin > 0, "margin", "a positive number, since 0 does not keep W from being singular")

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        return {"diagonal": (n,), "off": (n, n - 1)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n, m = self.in_features, self.margin
        if n == 1:
            share = 3**-0.5 - m
        else:
            # entries U(-b, b) with b = 2 share / (n - 1) put (m + 2 share)^2 + n' b^2 / 12 on the diagonal, n' b^2 / 3
            # beside it, where n' = n - 1
            a = 4 + 5 / 3 / (n - 1)
            share = (math.sqrt(max(0.0, 4 * m * m - a * (m * m - 1 / 3))) - 2 * m) / a
        share = max(share, m / 20)
        diagonal = torch.full((n,), math.log(math.expm1(share)), dtype=dtype, device=generator.device)
        return {"diagonal": diagonal, "off": uniform(generator, (n, n - 1), 2 * share / max(1, n - 1), dtype)}

    def _weight(self, params: Params) -> Tensor:
        off = params["off"]
        return weave(self.margin + torch.nn.functional.softplus(params["diagonal"]) + off.abs().sum(1), off)

    def _violation(self, W: Tensor) -> Tensor:
        d, off = unweave(W)
        return frobenius(relu(self.margin + off.abs().sum(1) - d))

    def _from_matrix(self, W: Tensor) -> Params:
        d, off = unweave(W)
        excess = (d - self.margin - off.abs().sum(1)).clamp(min=MARGIN)
        return {"diagonal": excess + torch.log(-torch.expm1(-excess)), "off": off}
