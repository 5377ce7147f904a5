"""A budget for the absolute entries of each row, shared by a positive and a negative part.  W [in, out]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.interval import check_bounds
from linmaps.numerics.draws import middle, normal
from linmaps.numerics.nearest import onto_l1_ball
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.ranges import MARGIN, between, relu, unbetween


@register
@dataclass(frozen=True)
class StableSplit(Map):
    """The difference of two non-negative matrices within one row budget, `W = B - C`,

        B_ij = tau_i t_i softmax([0, "B"[i]])_j,    C_ij = tau_i (1 - t_i) softmax([0, "C"[i]])_j,

    with tau_i = sigma_min + (sigma_max - sigma_min) sigmoid("budget"[i]) and t_i = sigmoid("share"[i]): the absolute
    entries of a row of W sum to at most tau_i <= sigma_max, so no eigenvalue of a square W is larger, nor of a product of
    such matrices larger than the product of their sigma_max.  Every W with row sums below sigma_max is reached.

    Leaves "B" and "C" [in, out - 1], relative to the first output, whose logit is 0; "share" [in]; "budget" [in], absent
    when the bounds are equal.

    init: B and C from independent N(0, 1) logits, t and tau uniform over the middle nine tenths of their ranges.  The
    budget fixes the scale: inputs of unit variance give outputs of variance about 1.36 E[tau^2] in / out^2 for many
    outputs.  `violation(W)` is the norm of the row sums' excess over sigma_max.  `from_matrix` moves a row beyond the
    budget to the nearest one within it.

    ValueError for bounds that are negative or out of order.

    >>> import torch, linmaps
    >>> spec = linmaps.StableSplit(3, 5)
    >>> B, C = spec.parts(spec.init(torch.Generator().manual_seed(0)))
    >>> bool((B > 0).all() and (C > 0).all() and ((B + C).sum(1) <= 1.0).all())
    True
    """

    name: ClassVar[str] = "stable_split"
    promise: ClassVar[str] = "sum of |entries| of each row <= sigma_max"
    at_zero: ClassVar[str] = "0"
    time: ClassVar[str] = "discrete"

    sigma_min: float = 0.1
    sigma_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)

    def _shapes(self) -> dict[str, Shape]:
        logits, rows = (self.in_features, self.out_features - 1), (self.in_features,)
        shapes: dict[str, Shape] = {"B": logits, "C": logits, "share": rows}
        return shapes | ({"budget": rows} if self.sigma_min < self.sigma_max else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        params = {}
        for key, shape in self._shapes().items():
            if len(shape) == 1:
                params[key] = middle(generator, shape, dtype)
            else:
                logits = normal(generator, (self.in_features, self.out_features), dtype)
                params[key] = logits[:, 1:] - logits[:, :1]
        return params

    def parts(self, params: Params) -> tuple[Tensor, Tensor]:
        """B and C [in, out], both positive, with `effective_W = B - C` and rows of B + C that sum to the budgets tau.

        >>> import torch, linmaps
        >>> params = {"B": torch.zeros(1, 1), "C": torch.zeros(1, 1), "share": torch.zeros(1), "budget": torch.zeros(1)}
        >>> linmaps.StableSplit(1, 2, sigma_min=0.2).parts(params)
        (tensor([[0.1500, 0.1500]]), tensor([[0.1500, 0.1500]]))
        """
        self._check(params)
        return self._parts(params)

    def _parts(self, params: Params) -> tuple[Tensor, Tensor]:
        share = params["share"]
        tau: Tensor | float = self.sigma_max
        if self.sigma_min < self.sigma_max:
            tau = between(self.sigma_min, self.sigma_max, params["budget"])

        def part(logits: Tensor, of: Tensor) -> Tensor:
            padded = torch.cat([logits.new_zeros(self.in_features, 1), logits], dim=1)
            return (of * tau)[:, None] * padded.softmax(dim=1)

        return part(params["B"], share.sigmoid()), part(params["C"], (-share).sigmoid())

    def _weight(self, params: Params) -> Tensor:
        B, C = self._parts(params)
        return B - C

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(relu(W.abs().sum(1) - self.sigma_max))

    def _from_matrix(self, W: Tensor) -> Params:
        W = onto_l1_ball(W, self.sigma_max * (1 - 2 * MARGIN))
        total = W.abs().sum(1)
        tau = (total.clamp(min=self.sigma_min) + self.sigma_max) / 2
        # what is left of the budget goes to both parts alike
        common = ((tau - total) / (2 * self.out_features))[:, None]
        B, C = W.clamp(min=0) + common, (-W).clamp(min=0) + common
        params = {"share": (B.sum(1) / C.sum(1)).log()}
        params |= {key: part[:, 1:].log() - part[:, :1].log() for key, part in (("B", B), ("C", C))}
        if self.sigma_min < self.sigma_max:
            params["budget"] = unbetween(self.sigma_min, self.sigma_max, tau)
        return params
