"""Stochastic matrices: rows of W [in, out] are probability distributions over the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map, Params, Shape
from linmaps.numeric import frobenius, normal
from linmaps.registry import register


@register
@dataclass(frozen=True)
class RightStochastic(Map):
    """Rows that are distributions, `W[i, :] = softmax([0, L[i, :]])`: if x is a distribution, so is x @ W.

    The leaf "logits" L [in, out - 1] is relative to the first output, whose logit is 0: a softmax does not see a common
    shift, so a logit of its own would be redundant.  Entries are positive until a logit lies so far below the others
    that it underflows.  init: differences of independent N(0, 1) logits, so that all outputs are alike.  The row sums
    fix the scale: inputs of unit variance and mean 0 give outputs of variance about e in / out^2 for many outputs.
    `violation(W)` is the norm of the row sums' excess over 1 and of the negative entries.

    >>> import torch, linmaps
    >>> spec = linmaps.RightStochastic(2, 3)
    >>> spec.effective_W({"logits": torch.zeros(2, 2)}).sum(1)
    tensor([1., 1.])
    """

    name: ClassVar[str] = "right_stochastic"
    promise: ClassVar[str] = "W >= 0, rows sum to 1"

    def _shapes(self) -> dict[str, Shape]:
        return {"logits": (self.in_features, self.out_features - 1)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        logits = normal(generator, (self.in_features, self.out_features), dtype)
        return {"logits": logits[:, 1:] - logits[:, :1]}

    def _weight(self, params: Params) -> Tensor:
        L = params["logits"]
        return torch.cat([L.new_zeros(self.in_features, 1), L], dim=1).softmax(dim=1)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W.sum(1) - 1, W.clamp(max=0))
