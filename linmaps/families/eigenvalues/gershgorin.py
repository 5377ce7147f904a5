"""Matrices whose spectrum is placed by the absolute sums of their rows (Gershgorin's discs).  n rows and columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics import lapack
from linmaps.numerics.bounds import modulus, onto_l1_ball, spectral_excess
from linmaps.numerics.draws import normal, uniform
from linmaps.numerics.eigen import eigh
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.packing import symmetric
from linmaps.numerics.ranges import MARGIN, relu, unbetween


def weave(diagonal: Tensor, off: Tensor) -> Tensor:
    """The matrix [n, n] with a given diagonal [n] and the entries off [n, n - 1] beside it, row by row.

    >>> import torch
    >>> weave(torch.zeros(3), torch.arange(1.0, 7.0).reshape(3, 2))
    tensor([[0., 1., 2.],
            [3., 0., 4.],
            [5., 6., 0.]])
    """
    n = len(diagonal)
    # row by row, n entries lie between two neighbours on the diagonal
    lines = torch.cat([diagonal[:-1, None], off.reshape(n - 1, n)], dim=1)
    return torch.cat([lines.reshape(-1), diagonal[-1:]]).reshape(n, n)


def unweave(W: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal [n] and the other entries [n, n - 1] of a matrix [n, n], row by row."""
    n = len(W)
    return W.diagonal(), W.reshape(-1)[: n * n - 1].reshape(n - 1, n + 1)[:, 1:].reshape(n, n - 1)


@register
@dataclass(frozen=True)
class Gershgorin(Map):
    """Eigenvalues in an interval or a disc, by one budget per row: with c = (sigma_min + sigma_max) / 2, R = (sigma_max
    - sigma_min) / 2 and a_i = sigmoid("budget"[i]),

        W_ii = c + R (1 - a_i) tanh("center"[i]),    W_ij = R a_i s_ij / sum_k |s_ik|,

    so that |W_ii - c| + sum_j |W_ij| <= R, and every such matrix is reached.

    * real=True: s is symmetric, from the leaf "off" [n (n - 1) / 2], its strict upper triangle row by row, and the
      smaller of the two budgets counts, W_ij = s_ij min(R a_i / sum_k |s_ik|, R a_j / sum_k |s_jk|): W is symmetric bit
      by bit and its eigenvalues are real, in [sigma_min, sigma_max].
    * real=False: the leaf "off" [n, n - 1] holds s row by row without its diagonal; eigenvalues lie in the disc
      |z - c| <= R, so they are less than sigma_max in modulus if sigma_min = -sigma_max.

    Leaves "budget" [n] and "center" [n]; "off" and "budget" are absent for n = 1.  The bounds may have any sign.

    init: s normal, a and tanh("center") uniform over the middle nine tenths of their ranges.  The bounds fix the scale:
    inputs of unit variance give outputs of variance about c^2 + R^2 / 10.  `violation(W)` is the norm of what the
    eigenvalues exceed their interval or disc by, and for real=True of W - W'.  `from_matrix` keeps members up to its
    margins; others it moves row by row to the nearest row within the budget (for real=True, of the symmetric part, then
    with the smaller of the two entries in the places ij and ji).

    ValueError for bounds that are not finite or not in order.

    >>> import torch, linmaps
    >>> spec = linmaps.Gershgorin(4, sigma_min=-0.5, sigma_max=1.0)
    >>> values = spec.eig(spec.init(torch.Generator().manual_seed(0)))
    >>> bool(values.min() >= -0.5 and values.max() <= 1.0)
    True
    """

    name: ClassVar[str] = "gershgorin"
    promise: ClassVar[str] = "eigenvalues within [sigma_min, sigma_max], or in the disc over it"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False

    sigma_min: float = field(default=0.0, kw_only=True)
    sigma_max: float = field(default=1.0, kw_only=True)
    real: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("sigma_min", "sigma_max"):
            self._expect_number(key)
        self._expect(
            self.sigma_min < self.sigma_max, "sigma_min", f"less than sigma_max={self.sigma_max}; exchange the bounds"
        )
        self._expect(isinstance(self.real, bool), "real", "a bool", error=TypeError)

    @property
    def _c(self) -> float:
        return (self.sigma_min + self.sigma_max) / 2

    @property
    def _R(self) -> float:
        return (self.sigma_max - self.sigma_min) / 2

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        if n == 1:
            return {"center": (1,)}
        return {"off": (n * (n - 1) // 2,) if self.real else (n, n - 1), "budget": (n,), "center": (n,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n = self.in_features
        params = {"center": uniform(generator, (n,), 0.9, dtype).atanh()}
        if n > 1:
            params["budget"] = torch.logit(0.5 + uniform(generator, (n,), 0.45, dtype))
            params["off"] = normal(generator, self._shapes()["off"], dtype)
        return params

    def _weight(self, params: Params) -> Tensor:
        n, t = self.in_features, params["center"].tanh()
        if n == 1:
            return (self._c + self._R * t)[:, None]
        # 1 - sigmoid(x) = sigmoid(-x) keeps its digits
        d = self._c + self._R * (-params["budget"]).sigmoid() * t
        r = self._R * params["budget"].sigmoid()
        if not self.real:
            return weave(d, params["off"] * (r / _sums(params["off"]))[:, None])
        s = symmetric(params["off"], n, diagonal=False)
        q = r / _sums(s)
        return s * torch.minimum(q[:, None], q) + torch.diag(d)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        if not self.real:
            return super()._eig(params, vectors)
        W = self._weight(params)
        return eigh(W) if vectors else (lapack.eigvalsh(W), None)

    def _violation(self, W: Tensor) -> Tensor:
        if not self.real:
            return spectral_excess(W, lambda values: frobenius(relu(modulus(values - self._c) - self._R)), self._c)
        values = lapack.eigvalsh((W + W.mT) / 2)
        return frobenius(relu(values - self.sigma_max), relu(self.sigma_min - values), W - W.mT)

    def _from_matrix(self, W: Tensor) -> Params:
        n, R = self.in_features, self._R
        shift = self._c * torch.eye(n, dtype=W.dtype, device=W.device)
        near = onto_l1_ball(((W + W.mT) / 2 if self.real else W) - shift, R)
        if n == 1:
            return {"center": _untanh(near[:, 0] / R)}
        if self.real:
            near = torch.where(near.abs() <= near.mT.abs(), near, near.mT)
        d, off = unweave(near)
        budget = unbetween(0.0, R, off.abs().sum(1))
        params = {"center": _untanh(d / (R * (-budget).sigmoid())), "budget": budget, "off": off}
        if self.real:
            rows, columns = torch.triu_indices(n, n, 1, device=W.device)
            params["off"] = near[rows, columns]
        return params


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


def _sums(s: Tensor) -> Tensor:
    """Absolute sums of rows, with 1 for a row of zeros."""
    total = s.abs().sum(1)
    return torch.where(total > torch.finfo(s.dtype).tiny ** 0.5, total, 1.0)


def _untanh(t: Tensor) -> Tensor:
    return t.clamp(2 * MARGIN - 1, 1 - 2 * MARGIN).atanh()
