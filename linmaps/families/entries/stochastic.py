"""Matrices W [in, out] >= 0 whose rows, or whose columns, sum to one: each a softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.draws import normal
from linmaps.numerics.nearest import simplex
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.ranges import MARGIN


def with_zero_first(logits: Tensor) -> Tensor:
    """A column of zeros put before `logits` [in, out - 1]: a softmax does not see a common shift, so one is fixed."""
    return torch.nn.functional.pad(logits, (1, 0))


def relative_logits(P: Tensor) -> Tensor:
    """Logits [in, out - 1], relative to the first output, of rows of probabilities, each taken as at least 1e-6."""
    logits = P.clamp(min=MARGIN).log()
    return logits[:, 1:] - logits[:, :1]


@register
@dataclass(frozen=True)
class RightStochastic(Map):
    """Rows that are distributions, `W[i, :] = softmax([0, L[i, :]])`: if x is a distribution, so is x @ W.

    The leaf "logits" L [in, out - 1] is relative to the first output, whose logit is 0: a softmax does not see a common
    shift, so a logit of its own would be redundant.  Entries are positive until a logit lies so far below the others
    that it underflows.  init: differences of independent N(0, 1) logits, so that all outputs are alike.  The row sums
    fix the scale: inputs of unit variance and mean 0 give outputs of variance about e in / out^2 for many outputs.
    `violation(W)` is the norm of the row sums' excess over 1 and of the negative entries.  `from_matrix` takes the nearest
    rows of probabilities, each entry at least 1e-6.

    >>> import torch, linmaps
    >>> spec = linmaps.RightStochastic(2, 3)
    >>> spec.effective_W({"logits": torch.zeros(2, 2)}).sum(1)
    tensor([1., 1.])
    """

    name: ClassVar[str] = "right_stochastic"
    promise: ClassVar[str] = "W >= 0, rows sum to 1"
    at_zero: ClassVar[str] = "uniform"

    def _shapes(self) -> dict[str, Shape]:
        return {"logits": (self.in_features, self.out_features - 1)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        logits = normal(generator, (self.in_features, self.out_features), dtype)
        return {"logits": logits[:, 1:] - logits[:, :1]}

    def _weight(self, params: Params) -> Tensor:
        return with_zero_first(params["logits"]).softmax(dim=1)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W.sum(1) - 1, W.clamp(max=0))

    def _from_matrix(self, W: Tensor) -> Params:
        return {"logits": relative_logits(simplex(W))}


@register
@dataclass(frozen=True)
class LeftStochastic(Map):
    """Columns that are distributions, `W[:, o] = softmax([0, L[:, o]])`: outputs are weighted means of the inputs.

    So `max |x W| <= max |x|`.  The leaf "logits" L [in - 1, out] is relative to the first input, as in
    `RightStochastic`, whose transpose this is.  init: differences of independent N(0, 1) logits; the column sums fix the
    scale: inputs of unit variance and mean 0 give outputs of variance about e / in for many inputs.  `violation(W)` is the
    norm of the column sums' excess over 1 and of the negative entries.  `from_matrix` takes the nearest columns of
    probabilities, each entry at least 1e-6.

    >>> import torch, linmaps
    >>> spec = linmaps.LeftStochastic(3, 2)
    >>> spec.apply({"logits": torch.zeros(2, 2)}, torch.tensor([1.0, 2.0, 6.0]))
    tensor([3., 3.])
    """

    name: ClassVar[str] = "left_stochastic"
    promise: ClassVar[str] = "W >= 0, columns sum to 1"
    at_zero: ClassVar[str] = "uniform"

    def _shapes(self) -> dict[str, Shape]:
        return {"logits": (self.in_features - 1, self.out_features)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        logits = normal(generator, (self.in_features, self.out_features), dtype)
        return {"logits": logits[1:] - logits[:1]}

    def _weight(self, params: Params) -> Tensor:
        return torch.nn.functional.pad(params["logits"], (0, 0, 1, 0)).softmax(dim=0)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W.sum(0) - 1, W.clamp(max=0))

    def _from_matrix(self, W: Tensor) -> Params:
        return {"logits": relative_logits(simplex(W.mT)).mT}
