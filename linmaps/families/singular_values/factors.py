"""Maps by their singular value decomposition, W = Q1[:, :k] diag(s) Q2[:, :k]', the frames made of reflections."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.checks import Params, Shape
from linmaps.families.singular_values.orthogonal import sign
from linmaps.numerics import lapack
from linmaps.numerics.draws import middle, uniform
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.ranges import above, between, unabove, unbetween


class Factors(Map):
    """`W = Q1[:, :k] diag(s) Q2[:, :k]'` with k singular values s, at any parameters.

    Q1 [in, in] and Q2 [out, out] are products of reflections along e_i + U[i] for the leaf "U" and e_i + V[i] for the leaf
    "V", as in `Orthogonal`.  A concrete map says what s is made of.
    """

    half_ready: ClassVar[bool] = False

    @property
    def _k(self) -> int:
        """How many singular values there are, besides those that are 0."""
        return min(self.in_features, self.out_features)

    @property
    def _counts(self) -> tuple[int, int]:
        """How many reflectors make Q1, and Q2."""
        return self._enough

    @property
    def _enough(self) -> tuple[int, int]:
        """How many reach every matrix."""
        k = self._k
        return householder.default_reflectors(self.in_features, k), householder.default_reflectors(self.out_features, k)

    @property
    @abc.abstractmethod
    def _bounds(self) -> tuple[float, float | None]:
        """The least and the largest singular value; None where they may grow."""

    def _value_shapes(self) -> dict[str, Shape]:
        """The leaves that s is made of."""
        low, high = self._bounds
        return {"p": (self._k,)} if high is None or low < high else {}

    def _draw_values(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        """Those leaves at the start."""
        low, high = self._bounds
        if high is None:
            share = 0.5 + uniform(generator, (self._k,), 0.45, dtype)
            return {"p": unabove(low, low + growth(low, self.out_features / (3 * self._k)) * share)}
        return {"p": middle(generator, (self._k,), dtype)} if low < high else {}

    def _sigma(self, params: Params) -> Tensor:
        """Singular values [k] in the order of the columns of Q1 and Q2."""
        low, high = self._bounds
        if high is None:
            return above(low, params["p"])
        return between(low, high, params["p"]) if low < high else self._like(params).new_full((self._k,), high)

    def _values_of(self, s: Tensor) -> dict[str, Tensor]:
        """The leaves whose singular values are nearest to s [k], descending; the last may be negative."""
        low, high = self._bounds
        if high is None:
            return {"p": unabove(low, s)}
        return {"p": unbetween(low, high, s)} if low < high else {}

    @property
    def _regular(self) -> bool:
        """Whether W has an inverse, and both frames are square."""
        return self._k == self.in_features == self.out_features

    @property
    def _dets(self) -> tuple[int | None, int | None]:
        """Determinants of Q1 and Q2; other maps need none, since a column of either may change its sign."""
        return (sign(self), 1) if self._regular else (None, None)

    def _shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"U": (self._counts[0], self.in_features), "V": (self._counts[1], self.out_features)}
        return shapes | self._value_shapes()

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        sizes = zip(("U", "V"), (self.in_features, self.out_features), self._counts)
        frames = {key: householder.haar(generator, n, count, dtype) for key, n, count in sizes}
        return frames | self._draw_values(generator, dtype)

    def _weight(self, params: Params) -> Tensor:
        d1, d2 = self._dets
        left = householder.frame(householder.offset(params["U"]), self._k, det=d1) * self._sigma(params)
        return householder.rows_times_frame_t(left, householder.offset(params["V"]), self._k, det=d2)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        (d1, d2), k, n, m = self._dets, self._k, self.in_features, self.out_features
        rows = x.numel() // n
        whole, once, per_row = householder.costs(n, len(params["U"]), k)
        whole2, once2, per_row2 = householder.costs(m, len(params["V"]), k)
        form = whole + once2 + n * per_row2 + rows * n * m
        thin = whole + whole2 + rows * k * (n + m)
        reflected = once + once2 + rows * (per_row + per_row2)
        if form < min(thin, reflected):
            return x @ self._weight(params)
        U, V = householder.offset(params["U"]), householder.offset(params["V"])
        if thin < reflected:
            left = householder.frame(U, k, det=d1) * self._sigma(params)
            return (x @ left) @ householder.frame(V, k, det=d2).mT
        return householder.times_frame_t(householder.times_frame(x, U, k, det=d1) * self._sigma(params), V, k, det=d2)

    def _singular_values(self, params: Params) -> Tensor:
        s = self._sigma(params).sort(descending=True).values
        return torch.nn.functional.pad(s, (0, min(self.in_features, self.out_features) - self._k))

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        if not self._regular:
            return super()._solve(params, y)
        d1, d2 = self._dets
        z = householder.times_frame(y, householder.offset(params["V"]), self._k, det=d2) / self._sigma(params)
        return householder.times_frame_t(z, householder.offset(params["U"]), self._k, det=d1)

    def _logabsdet(self, params: Params) -> Tensor:
        return self._sigma(params).log().sum() if self._regular else self._like(params).new_full((), -math.inf)

    def _from_matrix(self, W: Tensor) -> Params:
        counts, sizes, k = self._counts, W.shape, self._k
        if any(count < householder.default_reflectors(n, k) for count, n in zip(counts, sizes)):
            return super()._from_matrix(W)
        U, s, Vh = lapack.svd(W)
        U, s, V = U[:, :k], s[:k], Vh[:k].mT
        if self._regular:
            wrong = householder.wrong_component(V, 1)
            U, V = householder.flip_last(U, wrong), householder.flip_last(V, wrong)
            wrong = householder.wrong_component(U, sign(self))  # the smallest one is negative, seen from there
            U, s = householder.flip_last(U, wrong), householder.flip_last(s[None], wrong)[0]
        elif k in sizes:
            # the side whose frame is square has a determinant, which changes with a pair of columns
            side, count = (U, counts[0]) if self.in_features == k else (V, counts[1])
            wrong = householder.wrong_component(side, (-1) ** count)
            U, V = householder.flip_last(U, wrong), householder.flip_last(V, wrong)
        frames = {"U": householder.from_frame(U, counts[0]), "V": householder.from_frame(V, counts[1])}
        return frames | self._values_of(s)

    def _violation(self, W: Tensor) -> Tensor:
        low, high = self._bounds
        s = signed(lapack.svdvals(W), W, getattr(self, "det", None))
        kept = s[: self._k]
        exceeding = [] if high is None else [(kept - high).clamp(min=0)]
        return frobenius((low - kept).clamp(min=0), *exceeding, s[self._k :])


def growth(low: float, square: float) -> float:
    """t such that low + t u, with u uniform over [0.05, 0.95], has the mean square `square`, if low lets it."""
    b, a = low / 2, 0.25 + 0.81 / 12
    return max((math.sqrt(max(b * b + a * (square - low**2), 0.0)) - b) / a, 0.1 * low)


def signed(s: Tensor, W: Tensor, det: int | None) -> Tensor:
    """s [k], singular values of W, the last one negative where the determinant of W has another sign than `det`.

    So it is as seen from the promised component.
    """
    wrong = householder.wrong_component(W, det) & (torch.arange(len(s), device=W.device) == len(s) - 1)
    return torch.where(wrong, -s, s)
