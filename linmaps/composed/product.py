"""One map after the other: W = W_0 W_1 ..., never formed where products with x are enough.

x [..., in]; params {"0": params of the first map, "1": ...}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from linmaps import trees
from linmaps.checks import Params
from linmaps.composed.composite import OfSeveral, matrix, times, times_inverse, times_transpose


@trees.static
@dataclass(frozen=True, init=False, repr=False)
class Product(OfSeveral):
    """A product of maps, `W = W_0 W_1 ...`: `apply` is one after the other and never forms W.

    Params are {"0": params of the first map, "1": ...}.  `solve`, `inverse` and `logabsdet` go part by part if all are
    square.  The product promises nothing by itself, so `violation` is 0; what it inherits is for the caller to say (a
    product of orthogonal maps is orthogonal).  Output variances at init multiply, for parts that treat all directions
    alike.

    ValueError for fewer than two maps, maps that do not chain, or a map with a bias.

    >>> import torch, linmaps
    >>> spec = linmaps.Product(linmaps.Linear(6, 2), linmaps.Linear(2, 5))
    >>> int(torch.linalg.matrix_rank(spec.effective_W(spec.init(torch.Generator().manual_seed(0)))))
    2
    """

    name: ClassVar[str] = "product"
    promise: ClassVar[str] = "none: a product"

    def _sizes(self) -> tuple[int, int]:
        for i, (a, b) in enumerate(zip(self.maps, self.maps[1:])):
            if a.out_features != b.in_features:
                raise ValueError(
                    f"Product: part {i} is {a._title} and part {i + 1} is {b._title}: {a.out_features} outputs do not "
                    f"meet {b.in_features} inputs; each map takes what the one before gives"
                )
        return self.maps[0].in_features, self.maps[-1].out_features

    @property
    def _all_square(self) -> bool:
        return all(part._square for part in self.maps)

    def _weight(self, params: Params) -> Tensor:
        W = matrix(self.maps[0], params["0"], self._like(params))
        for i, part in enumerate(self.maps[1:], 1):
            W = times(part, params[str(i)], W)
        return W

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        for key, part in self._parts.items():
            x = times(part, params[key], x)
        return x

    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        for key, part in reversed(self._parts.items()):
            x = times_transpose(part, params[key], x)
        return x

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        if not self._all_square:
            return super()._solve(params, y)
        for key, part in reversed(self._parts.items()):
            y = times_inverse(part, params[key], y)
        return y

    def _logabsdet(self, params: Params) -> Tensor:
        if not self._all_square:
            return super()._logabsdet(params)
        first, *rest = self._each(params, lambda part, p: part._logabsdet(p))
        return sum(rest, first)
