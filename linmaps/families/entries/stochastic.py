"""Stochastic matrices: rows, columns or both of a non-negative W [in, out] sum to 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics import householder
from linmaps.numerics.bounds import simplex
from linmaps.numerics.draws import normal
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.ranges import MARGIN
from linmaps.numerics.scaling import doubly_scaled, doubly_stochastic


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


@register
@dataclass(frozen=True)
class DoublyStochastic(Map):
    """Rows and columns that are distributions: non-negative, and both sums are 1 at any params.

    method:

    * sinkhorn: exp([[0, 0], [0, L]]) with its rows and columns scaled, for the leaf "logits" L [n - 1, n - 1] (row and
      column shifts would be redundant).  The scales come from `n_iters` of Sinkhorn's iterations in the log domain and
      8 steps of Newton's on top, which do not slow down where entries differ by orders of magnitude; what is left of the
      row sums is moved by a non-negative matrix of rank one, so that the sums are exact in any case.  All positive doubly
      stochastic matrices.  Cost: 2 n_iters passes over n^2 entries, and 8 Cholesky decompositions of size n.
    * orthostochastic: `W = Q * Q` entry by entry, with Q orthogonal and the leaf "V" [n - 1, n] of its reflections:
      exact without iteration, but for n > 2 not every doubly stochastic matrix is such a square.

    init: differences of independent N(0, 1) logits, or Q Haar.  The sums fix the scale: inputs of unit variance and mean
    0 give outputs of variance about e / n, or 3 / (n + 2).  `violation(W)` is the norm of both sums' excess over 1 and of
    the negative entries.  `from_matrix` (sinkhorn only) scales the entries, each taken as at least 1e-6 / n: the projection
    in relative entropy.

    ValueError for an unknown method, n_iters below 1 or with orthostochastic.

    Source: Sinkhorn 1964; Newton's steps: Brauer, Clason, Lorenz and Wirth, arXiv:1710.06635; the last step: Altschuler,
    Weed and Rigollet, arXiv:1705.09634, algorithm 2.

    >>> import torch, linmaps
    >>> spec = linmaps.DoublyStochastic(2)
    >>> spec.effective_W({"logits": torch.zeros(1, 1)})
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

    name: ClassVar[str] = "doubly_stochastic"
    promise: ClassVar[str] = "W >= 0, rows and columns sum to 1"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False

    method: str = field(default="sinkhorn", kw_only=True)
    n_iters: int | None = field(default=None, kw_only=True)  # of sinkhorn: 5 unless given

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.method in ("sinkhorn", "orthostochastic"), "method", "'sinkhorn' or 'orthostochastic'")
        if self.n_iters is not None:
            self._expect(self.method == "sinkhorn", "n_iters", "None unless method='sinkhorn'")
            self._expect_int("n_iters", 1, None)

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        return {"logits": (n - 1, n - 1)} if self.method == "sinkhorn" else {"V": (n - 1, n)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n = self.in_features
        if self.method == "orthostochastic":
            return {"V": householder.haar(generator, n, n - 1, dtype)}
        L = normal(generator, (n, n), dtype)
        return {"logits": L[1:, 1:] - L[:1, 1:] - L[1:, :1] + L[0, 0]}

    def _weight(self, params: Params) -> Tensor:
        if self.method == "orthostochastic":
            return householder.frame(householder.offset(params["V"]), self.in_features).square()
        L = torch.nn.functional.pad(params["logits"], (1, 0, 1, 0))
        return doubly_stochastic(doubly_scaled(L, 5 if self.n_iters is None else self.n_iters))

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W.sum(0) - 1, W.sum(1) - 1, W.clamp(max=0))

    def _from_matrix(self, W: Tensor) -> Params:
        if self.method == "orthostochastic":
            return super()._from_matrix(W)
        L = W.clamp(min=MARGIN / self.in_features).log()
        return {"logits": L[1:, 1:] - L[:1, 1:] - L[1:, :1] + L[0, 0]}
