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
from linmaps.numerics.linalg import differentiated
from linmaps.numerics.numeric import MARGIN, frobenius, normal

NEWTON = 8  # steps: enough from where five of Sinkhorn's lead, for entries down to 1e-8
LONGEST = 2.0  # change of a logarithm in one of them
RIDGE = 1e-13


def with_zero_first(logits: Tensor) -> Tensor:
    """A column of zeros put before `logits` [in, out - 1]: a softmax does not see a common shift, so one is fixed."""
    return torch.nn.functional.pad(logits, (1, 0))


def relative_logits(P: Tensor) -> Tensor:
    """Logits [in, out - 1], relative to the first output, of rows of probabilities, each taken as at least 1e-6."""
    logits = P.clamp(min=MARGIN).log()
    return logits[:, 1:] - logits[:, :1]


def simplex(W: Tensor) -> Tensor:
    """The nearest rows of probabilities: the positive part after a shift of each row (Held, Wolfe and Crowder 1974)."""
    u = W.sort(dim=1, descending=True).values
    surplus = (u.cumsum(1) - 1) / torch.arange(1, W.shape[1] + 1, dtype=W.dtype, device=W.device)
    shift = torch.where(u > surplus, surplus, -torch.inf).amax(1, keepdim=True)
    return (W - shift).clamp(min=0)


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
        return _rounded(_scaled(L, 5 if self.n_iters is None else self.n_iters))

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W.sum(0) - 1, W.sum(1) - 1, W.clamp(max=0))

    def _from_matrix(self, W: Tensor) -> Params:
        if self.method == "orthostochastic":
            return super()._from_matrix(W)
        L = W.clamp(min=MARGIN / self.in_features).log()
        return {"logits": L[1:, 1:] - L[:1, 1:] - L[1:, :1] + L[0, 0]}


def _scaled(L: Tensor, n_iters: int) -> Tensor:
    """P = exp(L_ij + u_i + v_j) [n, n], whose rows and columns sum to 1, the columns exactly.

    u maximizes sum(u) - sum_j log sum_i exp(L_ij + u_i), which is concave with the slope 1 - P 1 and the second
    derivative P P' - diag(P 1).  Numbers are found in float64; the derivatives to the second order are those of two
    steps of Newton's method at the solution.
    """
    flat = L.detach().to(torch.float64)
    u = flat.mean() - flat.mean(1)  # geometric means of rows and columns are alike to start with
    for _ in range(n_iters):
        u = u - (flat + u[:, None]).log_softmax(0).logsumexp(1)
    for _ in range(NEWTON):
        P = (flat + u[:, None]).softmax(0)
        step = torch.cholesky_solve((1 - P.sum(1))[:, None], _factor(P))[:, 0]
        step = step - step.mean()
        u = u + step * (LONGEST / step.abs().amax().clamp(min=LONGEST))
    if differentiated(L):
        factor, u0 = _factor((flat + u[:, None]).softmax(0)).to(L.dtype), u.to(L.dtype)
        u = u0
        for _ in range(2):
            off = 1 - (L + u[:, None]).softmax(0).sum(1)
            step = u + torch.cholesky_solve(off[:, None], factor)[:, 0]
            u = u0 + (step - step.detach())
    return (L + u.to(L.dtype)[:, None]).softmax(0)


def _factor(P: Tensor) -> Tensor:
    """Cholesky factor of diag(P 1) - P P', raised where it is 0 by a common shift, and by rounding."""
    n = len(P)
    eye = torch.eye(n, dtype=P.dtype, device=P.device)
    return torch.linalg.cholesky_ex(torch.diag(P.sum(1)) - P @ P.mT + 1 / n + RIDGE * eye)[0]


def _rounded(P: Tensor) -> Tensor:
    """A doubly stochastic matrix near a non-negative one: sums above 1 are scaled down, the rest is added as one product."""
    P = P / P.sum(1, keepdim=True).clamp(min=1)
    P = P / P.sum(0, keepdim=True).clamp(min=1)
    rows, columns = (1 - P.sum(1)).clamp(min=0), (1 - P.sum(0)).clamp(min=0)
    total = rows.sum()
    return P + rows[:, None] * columns / torch.where(total > 0, total, 1.0)
