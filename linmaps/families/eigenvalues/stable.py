"""Stable matrices: spectral radius below a bound, by three ways, or real parts of eigenvalues below one.

n rows and columns.  A sequence x W^t, t = 0, 1, 2, ..., or a flow x exp(W t) dies out if the eigenvalues allow it, whatever
W does to x at first: none of these maps bounds the norm of W, but for `StableSplit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.interval import check_bounds
from linmaps.numerics.bounds import onto_l1_ball, radius_excess, spectral_excess
from linmaps.numerics.linalg import eigh, inv, solve
from linmaps.numerics.numeric import (
    MARGIN,
    between,
    eye_like,
    frobenius,
    middle,
    norm_or,
    normal,
    relu,
    unbetween,
    uniform,
)
from linmaps.numerics.packing import pack_upper, skew

METHODS = ("lmi", "rescale", "soft")


@register
@dataclass(frozen=True)
class PowerBound(Map):
    """Spectral radius below a bound g = max_p, so that x W^t dies out for g <= 1.

    * lmi: every matrix with rho(W) < g and no other, from leaves "V" [2n, 2n] and "skew" [n (n - 1) / 2], the strict
      upper triangle of K row by row:

          S = V'V + e I = [[S11, S12], [S12', S22]],    W = S12 G^-1,    G = (S11 / g^2 + S22) / 2 + s (K - K').

      s = |V|^2 / 2n makes W the same for multiples of V; e = 1e-8 s (in float32 8e-6 s) keeps rounding from breaking
      the promise, and is the limit of what is reached: not rho(W) beyond about g (1 - e / s), nor matrices whose powers
      grow by more than about 0.1 (e / s)^-1/2 before they decay.  V = 0 gives W = 0.
    * rescale: `W = F min(1, (1 - 1e-6) g / rho(F))` for the leaf "W", a free F; the margin is for the rounding of
      eigenvalues, which grows where they meet.  There the derivative is unbounded, and the eigenvalues cost time at any
      F: prefer lmi.
    * soft: W is the leaf "W", free, and `reg_error` = relu(rho(W) - g)^2 asks for the promise.

    init: g U(-1/sqrt(n), 1/sqrt(n)), for outputs of variance g^2 / 3 for inputs of unit variance, and rho(W) about 0.6 g
    for large n; lmi shrinks it to rho(W) <= 0.9 g where it has more, which happens to small n.  `violation(W)` is
    max(0, rho(W) - g).  `from_matrix` shrinks a matrix of rho(W) > g (1 - 1e-6) to that radius; soft takes any.

    ValueError for max_p that is not positive and finite, or an unknown method.

    Source: a parametrization by linear matrix inequalities as in arXiv:2311.03197.

    >>> import torch, linmaps
    >>> spec = linmaps.PowerBound(2, max_p=0.9)
    >>> params, distance = spec.from_matrix(torch.tensor([[0.5, 4.0], [0.0, 0.6]]))
    >>> bool(distance < 1e-3), bool(spec.eig(params).abs().max() < 0.9)
    (True, True)
    """

    name: ClassVar[str] = "power_bound"
    promise: ClassVar[str] = "spectral radius < max_p"
    square: ClassVar[bool] = True
    time: ClassVar[str] = "discrete"
    half_ready: ClassVar[bool] = False

    max_p: float = field(default=1.0, kw_only=True)
    method: str = field(default="lmi", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("max_p")
        self._expect(self.max_p > 0, "max_p", "a positive number")
        self._expect(self.method in METHODS, "method", f"one of {METHODS}")

    @property
    def guaranteed(self) -> bool:
        """Whether the method keeps the promise at any params: all but "soft" do.

        >>> import linmaps
        >>> linmaps.PowerBound(2, method="soft").guaranteed
        False
        """
        return self.method != "soft"

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        return {"V": (2 * n, 2 * n), "skew": (n * (n - 1) // 2,)} if self.method == "lmi" else {"W": (n, n)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n = self.in_features
        W = uniform(generator, (n, n), self.max_p * n**-0.5, dtype)
        if self.method != "lmi":
            return {"W": W}
        return {k: t.to(dtype) for k, t in self._factored(self._within(W.double(), 0.9)).items()}

    def _weight(self, params: Params) -> Tensor:
        if self.method != "lmi":
            W = params["W"]
            return W if self.method == "soft" else self._within(W, 1 - MARGIN)
        n, V = self.in_features, params["V"]
        size, floor = V.square().sum() / (2 * n), torch.finfo(V.dtype).tiny ** 0.25
        S = V.mT @ V + (self._ridge(V) * size + floor) * eye_like(V, 2 * n)
        G = (S[:n, :n] / self.max_p**2 + S[n:, n:]) / 2 + size * skew(params["skew"], n)
        return solve(G.mT, S[:n, n:].mT).mT

    @staticmethod
    def _ridge(V: Tensor) -> float:
        return max(1e-8, 64 * torch.finfo(V.dtype).eps)

    def _within(self, W: Tensor, share: float) -> Tensor:
        """W shrunk to a spectral radius of at most `share * max_p`."""
        bound = share * self.max_p
        return W * (bound / (bound + radius_excess(W, bound)))

    def _factored(self, W: Tensor) -> dict[str, Tensor]:
        """Leaves of a stable W: K = 0 and S = [[g^2 P, W P], [P W', P]] with P - (W / g) P (W / g)' = I give G = P."""
        n, M = self.in_features, W / self.max_p
        P = eye_like(W, n)
        for _ in range(30):  # the first 2^30 terms of the series of powers, which the margin makes enough
            P, M = P + M @ P @ M.mT, M @ M
        S = torch.cat([torch.cat([self.max_p**2 * P, W @ P], dim=1), torch.cat([P @ W.mT, P], dim=1)])
        S = S * (2 * n / S.diagonal().sum())
        values, U = eigh((S + S.mT) / 2)
        e = self._ridge(W)
        V = relu(values - e / (1 + e)).sqrt()[:, None] * U.mT
        return {"V": V, "skew": W.new_zeros(n * (n - 1) // 2)}

    def _reg_error(self, params: Params) -> Tensor:
        return super()._reg_error(params) if self.guaranteed else radius_excess(params["W"], self.max_p).square()

    def _violation(self, W: Tensor) -> Tensor:
        return radius_excess(W, self.max_p)

    def _from_matrix(self, W: Tensor) -> Params:
        return self._factored(self._within(W, 1 - MARGIN)) if self.method == "lmi" else {"W": W.clone()}


@register
@dataclass(frozen=True)
class Hurwitz(Map):
    """Eigenvalues with real parts of at most -margin, so that x exp(W t) dies out like exp(-margin t).

        W = (J - R) Q - margin I,    J = U - U',    R = A'A,    Q = B'B + e I.

    Leaves "skew" [n (n - 1) / 2], the strict upper triangle of U row by row, "A" [n, n] and "B" [n, n].  Every matrix
    with real parts of at most -margin is of this form (Q the inverse of a solution of Lyapunov's equation), up to the
    conditioning of Q that e = 1e-6 (1 + |B|^2 / n) leaves, which keeps rounding from breaking the promise.

    init: B = I, A and J normal, so that inputs of unit variance give outputs of variance max(1/3, 25/16 margin^2).
    `violation(W)` is max(0, largest real part + margin).  `from_matrix` moves the whole spectrum to the left, a hundredth of the
    size of W's entries beyond -margin, where real parts lie above it, or below it by less than 1e-5 of that size, and is
    exact up to the conditioning of Q.

    ValueError for a margin that is not a finite number >= 0.

    >>> import torch, linmaps
    >>> spec = linmaps.Hurwitz(4, margin=0.5)
    >>> bool(spec.eig(spec.init(torch.Generator().manual_seed(0))).real.max() <= -0.5)
    True
    """

    name: ClassVar[str] = "hurwitz"
    promise: ClassVar[str] = "real parts of eigenvalues <= -margin"
    square: ClassVar[bool] = True
    time: ClassVar[str] = "continuous"
    half_ready: ClassVar[bool] = False

    margin: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("margin", 0)

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        return {"skew": (n * (n - 1) // 2,), "A": (n, n), "B": (n, n)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n, m = self.in_features, self.margin
        rms = max(3**-0.5, 1.25 * m)
        r = (rms - m) / 2.4  # E R = r I, and R has r^2 more off its mean; J has the rest
        j = math.sqrt(rms**2 - (m + r) ** 2 - r**2)
        skew, A = normal(generator, self._shapes()["skew"], dtype), normal(generator, (n, n), dtype)
        B = torch.eye(n, dtype=dtype, device=generator.device)
        return {"skew": skew * (j * n**-0.5), "A": A * (r / n) ** 0.5, "B": B}

    def _weight(self, params: Params) -> Tensor:
        n, A, B = self.in_features, params["A"], params["B"]
        eye = eye_like(A, n)
        Q = B.mT @ B + 1e-6 * (1 + B.square().sum() / n) * eye
        return (skew(params["skew"], n) - A.mT @ A) @ Q - self.margin * eye

    def _violation(self, W: Tensor) -> Tensor:
        return self._excess(W, self.margin)

    @staticmethod
    def _excess(W: Tensor, margin: Tensor | float) -> Tensor:
        return spectral_excess(W, lambda values: relu(values.real.amax() + margin), -1.0)

    def _from_matrix(self, W: Tensor) -> Params:
        """M = W + margin I = (J - c I) X^-1 with X of Lyapunov's equation M X + X M' = -2 c I: then M X = J - c I, J skew.

        For g > 0 and A = (g I - M)^-1 (g I + M) it reads X = A X A' + 4 g c (g I - M)^-1 (g I - M')^-1, a sum of powers of
        A.  c is such that Q = X^-1 has the mean eigenvalue 1.
        """
        n, eye = self.in_features, eye_like(W, self.in_features)
        g = norm_or(W) / n**0.5
        slack = 1e-5 * g
        M = W + self.margin * eye
        excess = self._excess(M, slack)
        M = (
            M - (excess + torch.where(excess > 0, 1e-2 * g, torch.zeros_like(g))) * eye
        )  # not onto the edge: X grows there
        left = inv(g * eye - M)
        A, X = left @ (g * eye + M), 4 * g * left @ left.mT
        for _ in range(30):  # the first 2^30 terms, which the slack makes enough
            X, A = X + A @ X @ A.mT, A @ A
        values, vectors = eigh((X + X.mT) / 2)
        values = values.clamp(min=n * torch.finfo(X.dtype).eps * values.detach().amax())  # what rounding left of it
        c = (1 / values).mean()
        values = 1 / (c * values)  # of Q
        Y = c * M @ (X + X.mT) / 2
        least = 2e-6 / (1 + 1e-6)  # e of the trace n
        B = torch.where(values > least, values - least, 0.0).sqrt()[:, None] * vectors.mT
        return {"skew": pack_upper((Y - Y.mT) / 2, diagonal=1), "A": c.sqrt() * eye, "B": B}


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
    time: ClassVar[str] = "discrete"

    sigma_min: float = field(default=0.1, kw_only=True)
    sigma_max: float = field(default=1.0, kw_only=True)

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
