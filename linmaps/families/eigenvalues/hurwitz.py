"""Continuous time: real parts of eigenvalues below a margin, by a skew and a positive semidefinite matrix.

n rows and columns.  A flow x exp(W t) dies out, whatever W does to x at first: its norm has no bound.
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
from linmaps.families.eigenvalues.candidates import nearest_of
from linmaps.numerics.draws import normal
from linmaps.numerics.eigen import eigh
from linmaps.numerics.excess import spectral_excess
from linmaps.numerics.lyapunov import solve_lyapunov
from linmaps.numerics.numeric import binade, eye_like, norm_or
from linmaps.numerics.packing import pack_upper, skew
from linmaps.numerics.ranges import relu

STEPS = (1e-2, 1e-4, 1e-1, 1.0)  # left of the edge: a small one is near W, a large one leaves Q digits


@register
@dataclass(frozen=True)
class Hurwitz(Map):
    """Eigenvalues with real parts of at most -margin, so that x exp(W t) dies out like exp(-margin t).

        W = (J - R) Q - margin I,    J = U - U',    R = A'A,    Q = B'B + e I.

    Leaves "skew" [n (n - 1) / 2], the strict upper triangle of U row by row, "A" [n, n] and "B" [n, n].  Every matrix
    with real parts of at most -margin is of this form (Q the inverse of a solution of Lyapunov's equation), up to the
    conditioning of Q that e = 1e-6 (1 + |B|^2 / n) leaves, which keeps rounding from breaking the promise.

    init: B = I, A and J normal, so that inputs of unit variance give outputs of variance max(1/3, 25/16 margin^2).
    `violation(W)` is max(0, largest real part + margin).  `from_matrix` gives members back up to the conditioning of Q, to 1e-6
    where no eigenvalue of W + W' is above -2 margin; for others it takes the nearest of several: the whole spectrum moved to
    the left of -margin by 1e-4, 1e-2, 1/10 or 1 times the size of W's entries, or W without the positive part of
    (W + W') / 2 + margin I.

    ValueError for a margin that is not a finite number >= 0.

    >>> import torch, linmaps
    >>> spec = linmaps.Hurwitz(4, margin=0.5)
    >>> bool(spec.eig(spec.init(torch.Generator().manual_seed(0))).real.max() <= -0.5)
    True
    """

    name: ClassVar[str] = "hurwitz"
    promise: ClassVar[str] = "real parts of eigenvalues <= -margin"
    at_zero: ClassVar[str] = "-margin I"
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
        """The nearest of several: a step left of the edge of these sizes, or Q = I.

        Squares are those of W by a power of two; a margin to the left of all that W could have moves every spectrum alike.
        """
        n, scale = self.in_features, binade(W)
        g = norm_or(W / scale) / n**0.5
        M = W / scale + (self.margin / scale).clamp(max=4.0 * n) * eye_like(W, n)
        found = [self._balanced(M, g, scale, step) for step in STEPS] + [self._dissipative(M, g, scale)]
        return nearest_of(found, self._weight, W)

    def _balanced(self, M: Tensor, g: Tensor, scale: Tensor, step: float) -> Params:
        """M = (J - c I) X^-1 with X of Lyapunov's equation M X + X M' = -2 c I: then M X = J - c I, J skew.

        c is such that Q = X^-1 has the mean eigenvalue 1, and of large W more, so that J and Q grow alike.
        """
        n, eye = self.in_features, eye_like(M, self.in_features)
        excess = self._excess(M, 1e-3 * step * g)
        M = (
            M - (excess + torch.where(excess > 0, step * g, torch.zeros_like(g))) * eye
        )  # not onto the edge: X grows there
        X = solve_lyapunov(M, g)
        values, vectors = eigh((X + X.mT) / 2)
        values = values.clamp(min=n * torch.finfo(X.dtype).eps * values.detach().amax())  # what rounding left of it
        c = (1 / values).mean()
        values = 1 / (c * values)  # of Q
        Y = c * M @ (X + X.mT) / 2
        k = scale.sqrt().clamp(min=1)
        least = 1e-6 * (1 + 1 / k) / (1 + 1e-6)  # e / k of Q of the trace k n
        B = torch.where(values > least, values - least, 0.0).sqrt()[:, None] * vectors.mT
        skew = pack_upper((Y - Y.mT) / 2, diagonal=1)
        return {"skew": skew * (scale / k), "A": (c * (scale / k)).sqrt() * eye, "B": k.sqrt() * B}

    def _dissipative(self, M: Tensor, g: Tensor, scale: Tensor) -> Params:
        """J and R with Q = I: M itself where no eigenvalue of M + M' is positive, else the nearest such matrix.

        R stays 1e-6 g away from 0, where A would have no gradient.
        """
        values, vectors = eigh(-(M + M.mT) / 2)
        R = torch.maximum(values, 1e-6 * g) * scale
        B = math.sqrt((1 - 1e-6) / (1 + 1e-6)) * eye_like(M, self.in_features)
        skew = pack_upper((M - M.mT) / 2, diagonal=1) * scale
        return {"skew": skew, "A": R.sqrt()[:, None] * vectors.mT, "B": B}
