"""Matrices W [n, n] >= 0 whose rows and columns sum to one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.draws import normal
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.ranges import MARGIN
from linmaps.numerics.scaling import doubly_scaled, doubly_stochastic

Method = Literal["sinkhorn", "orthostochastic"]


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
    the negative entries.  `from_matrix` (sinkhorn only) scales the entries, zero and negative ones (below eps / n) taken as
    1e-6 / n: the projection in relative entropy.  A positive doubly stochastic matrix comes back to rounding, in float64 with
    entries down to 1e-12, to 1e-11 with smaller ones.

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
    at_zero: ClassVar[str] = "uniform (orthostochastic: I)"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False

    method: Method = field(default="sinkhorn", kw_only=True)
    n_iters: int | None = field(default=None, kw_only=True)  # of sinkhorn: 5 unless given

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.method in get_args(Method), "method", "'sinkhorn' or 'orthostochastic'")
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
        n = self.in_features
        L = torch.where(torch.finfo(W.dtype).eps / n >= W, MARGIN / n, W).log()
        return {"logits": L[1:, 1:] - L[:1, 1:] - L[1:, :1] + L[0, 0]}
