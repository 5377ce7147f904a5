"""Maps side by side: W = W_0 + W_1 + ..., each of the same sizes [in, out].

x [..., in]; params {"0": params of the first map, "1": ...}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from linmaps import trees
from linmaps.checks import Params
from linmaps.composed.composite import OfSeveral, times, times_transpose
from linmaps.numerics import lapack
from linmaps.numerics.eigen import eigh


@trees.static
@dataclass(frozen=True, init=False, repr=False)
class Sum(OfSeveral):
    """A sum of maps of the same sizes, `W = W_0 + W_1 + ...`: `apply` is the sum of theirs.

    Params are {"0": params of the first map, "1": ...}.  The sum promises nothing by itself, so `violation` is 0.  `eig` is
    real and ascending if that of all parts is.  Output variances at init add up.

    ValueError for fewer than two maps, maps of different sizes, or a map with a bias.

    >>> import torch, linmaps
    >>> spec = linmaps.Sum(linmaps.Identity(3), linmaps.Scale(linmaps.Linear(3), 0.1))
    >>> spec.apply({"0": {}, "1": {"map": {"W": torch.ones(3, 3)}}}, torch.ones(3))
    tensor([1.3000, 1.3000, 1.3000])
    """

    name: ClassVar[str] = "sum"
    promise: ClassVar[str] = "none: a sum"

    def _sizes(self) -> tuple[int, int]:
        first = self.maps[0]
        for i, part in enumerate(self.maps[1:], 1):
            if (part.in_features, part.out_features) != (first.in_features, first.out_features):
                raise ValueError(
                    f"Sum: part 0 is {first._title} and part {i} is {part._title}; expected maps of the same sizes"
                )
        return first.in_features, first.out_features

    def _weight(self, params: Params) -> Tensor:
        first, *rest = self._matrices(params)
        return sum(rest, first)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        first, *rest = (times(part, params[key], x) for key, part in self._parts.items())
        return sum(rest, first)

    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        first, *rest = (times_transpose(part, params[key], x) for key, part in self._parts.items())
        return sum(rest, first)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        # a map says that it is symmetric by its real eigenvalues
        if any(part._eig(params[key], False)[0].is_complex() for key, part in self._parts.items()):
            return super()._eig(params, vectors)
        W = self._weight(params)
        return eigh(W) if vectors else (lapack.eigvalsh(W), None)
