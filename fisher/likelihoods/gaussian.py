"""Gaussian and HeteroscedasticGaussian: regression with a known covariance, or with variances that f predicts.

B batch, C coordinates along the class axis, P positions, n samples.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from fisher.likelihoods.arrays import (
    Independent,
    check_axis,
    check_target,
    class_axis_of,
    normal,
    part_of_columns,
    per_example,
    place,
    unit_columns,
)
from fisher.likelihoods.held import Held, array, check_values, numbers
from linmaps import trees
from linmaps.checks import values
from linmaps.checks.annotations import typed

LOG_2PI = math.log(2 * math.pi)


@trees.static
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gaussian(Held, Independent):
    """Regression with noise of a fixed covariance S over the coordinates: H = S^-1, the same for each position.

    variance: a number (H = I / variance; the output may have any shape), one per coordinate of the class axis `[C]`, or
    one per entry of the output (like `y[0]`).  covariance: in its place the whole S `[C, C]` over the class axis; with
    S = L L' the root of H has the rows of L^-1.  Tensors are kept: all is differentiable in them, and vmap over them has a
    likelihood for each member.  Targets like y; noise: normal.

    >>> import torch
    >>> Gaussian(variance=4.0).root(torch.zeros(1, 2))[:, 0]
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    >>> r = Gaussian(covariance=torch.tensor([[2.0, 1.0], [1.0, 1.0]])).root(torch.zeros(1, 2))[:, 0]
    >>> r.T @ r
    tensor([[ 1.0000, -1.0000],
            [-1.0000,  2.0000]])
    """

    variance: Any = 1.0
    covariance: Any = None
    class_axis: int = 1

    def __post_init__(self) -> None:
        check_axis(self.class_axis, "gaussian")
        if self.covariance is not None:
            covariance = numbers(self.covariance, "gaussian: covariance")
            _check_covariance(array(covariance), self.variance)
            object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "variance", numbers(self.variance, "gaussian: variance"))
        check_values(array(self.variance), "gaussian: variance", low=0.0, above=True)

    @property
    def coordinatewise(self) -> bool:  # type: ignore[override]
        """Whether each coordinate may have a weight of its own: not where they covary."""
        return self.covariance is None

    @typed
    def deviation(self, y: Tensor) -> Tensor:
        """variance^-1/2."""
        size = array(self.variance).rsqrt().to(device=y.device, dtype=y.dtype)
        if size.ndim == 1:
            axis = class_axis_of(y, self.class_axis, "gaussian")
            self._check_coordinates(len(size), y, axis)
            return size.reshape(len(size), *(1,) * (y.ndim - axis - 1))
        if size.ndim and tuple(size.shape) != tuple(y.shape[1:]):
            raise ValueError(
                f"gaussian: variance has shape {tuple(size.shape)}, expected that of one output {tuple(y.shape[1:])}, "
                "one number per coordinate of the class axis, or a number"
            )
        return size

    @typed
    def product(self, y: Tensor, u: Tensor) -> Tensor:
        """H u `[B, *out]`: S^-1 u at each position."""
        return self._unwhiten(y, self._whiten(y, u))

    @typed
    def root_part(self, y: Tensor, start: int, stop: int) -> Tensor:
        """`root(y)[start:stop]`, without the memory of the rest."""
        if self.covariance is None:
            return unit_columns(self.deviation(y), y, start, stop)
        axis = class_axis_of(y, self.class_axis, "gaussian")
        whitening = self._whitening(y, axis)
        positions = math.prod(y.shape[1:]) // max(1, len(whitening))
        span, first, end = part_of_columns(start, stop, self.n_columns(y), positions)
        core = whitening[first:end, None, None].expand(end - first, y.shape[0], positions, len(whitening))
        return place(core, first, span, y, axis)

    @typed
    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Standard normal noise."""
        return normal(shape, generator, like)

    @typed
    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        """Scores `[n, *y.shape]` at t = y + L noise: L^-T noise."""
        return self._unwhiten(y, noise.to(y.dtype))

    @typed
    def score(self, y: Tensor, target: Any) -> Tensor:
        """S^-1 (t - y)."""
        return self._unwhiten(y, self._whiten(y, self._residual(y, target)))

    @typed
    def log_prob(self, y: Tensor, target: Any) -> Tensor:
        """Sum `[B]` over positions of -1/2 (t - y)' S^-1 (t - y) - 1/2 log det(2 pi S)."""
        white = self._whiten(y, self._residual(y, target))
        if self.covariance is None:
            logs = self.deviation(y).log().expand(y.shape)
        else:
            axis = class_axis_of(y, self.class_axis, "gaussian")
            logs = self._whitening(y, axis).diagonal().log().expand(y.movedim(axis, -1).shape)
        return per_example(-0.5 * (white**2 + LOG_2PI)) + per_example(logs)

    def _residual(self, y: Tensor, target: Any) -> Tensor:
        return check_target("gaussian", target, tuple(y.shape)).to(y.dtype) - y

    def _whiten(self, y: Tensor, r: Tensor) -> Tensor:
        """L^-1 r, for r `[*y.shape]`."""
        if self.covariance is None:
            return self.deviation(y) * r
        axis = class_axis_of(y, self.class_axis, "gaussian")
        return (r.movedim(axis, -1) @ self._whitening(y, axis).mT).movedim(-1, axis)

    def _unwhiten(self, y: Tensor, r: Tensor) -> Tensor:
        """L^-T r, for r `[*y.shape]` or `[n, *y.shape]`."""
        if self.covariance is None:
            return self.deviation(y) * r
        axis = class_axis_of(y, self.class_axis, "gaussian")
        at = axis + r.ndim - y.ndim
        return (r.movedim(at, -1) @ self._whitening(y, axis)).movedim(-1, at)

    def _whitening(self, y: Tensor, axis: int) -> Tensor:
        """L^-1 `[C, C]`, lower triangular with positive diagonal."""
        S = array(self.covariance)
        self._check_coordinates(len(S), y, axis)
        factor = torch.linalg.cholesky_ex(((S + S.mT) / 2).double())[0]
        eye = torch.eye(len(S), dtype=factor.dtype, device=factor.device)
        return torch.linalg.solve_triangular(factor, eye, upper=False).to(device=y.device, dtype=y.dtype)

    def _check_coordinates(self, given: int, y: Tensor, axis: int) -> None:
        if given != y.shape[axis]:
            raise ValueError(
                f"gaussian: {'variance' if self.covariance is None else 'covariance'} is of {given} coordinates, expected "
                f"{y.shape[axis]}: the output has shape {tuple(y.shape)}, class_axis={self.class_axis}"
            )


@trees.static
@dataclasses.dataclass(frozen=True)
class HeteroscedasticGaussian(Independent):
    """Regression whose variances are outputs: the class axis of y holds C means, then C log-variances.

    For a mean m and a log-variance log s^2 the Fisher matrix is H = diag(1 / s^2, 1 / 2).  Targets have C in place of 2 C
    coordinates; noise like y, standard normal (of which the first half is used).

    >>> import torch
    >>> HeteroscedasticGaussian().root(torch.tensor([[7.0, 0.0]]))[:, 0] ** 2
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """

    class_axis: int = 1

    @property
    def coordinatewise(self) -> bool:  # type: ignore[override]
        """No: a mean and its variance belong together."""
        return False

    def __post_init__(self) -> None:
        check_axis(self.class_axis, "heteroscedastic_gaussian")

    @typed
    def deviation(self, y: Tensor) -> Tensor:
        """(1 / s, sqrt(1 / 2))."""
        _, logvar, axis = self._halves(y)
        return torch.cat([torch.exp(-0.5 * logvar), torch.full_like(logvar, math.sqrt(0.5))], axis)

    @typed
    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Standard normal noise."""
        return normal(shape, generator, like)

    @typed
    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        """Scores `[n, *y.shape]` at t = m + s e: (e / s, (e^2 - 1) / 2), e the first half of the noise."""
        _, logvar, axis = self._halves(y)
        e = noise.to(y.dtype).chunk(2, axis + 1)[0]
        return torch.cat([e * torch.exp(-0.5 * logvar), 0.5 * (e**2 - 1)], axis + 1)

    @typed
    def score(self, y: Tensor, target: Any) -> Tensor:
        """((t - m) / s^2, ((t - m)^2 / s^2 - 1) / 2)."""
        mean, logvar, axis = self._halves(y)
        r = self._target(target, mean).to(y.dtype) - mean
        precision = torch.exp(-logvar)
        return torch.cat([r * precision, 0.5 * (r**2 * precision - 1)], axis)

    @typed
    def log_prob(self, y: Tensor, target: Any) -> Tensor:
        """Sum `[B]` of -1/2 ((t - m)^2 / s^2 + log s^2 + log 2 pi)."""
        mean, logvar, _ = self._halves(y)
        r = self._target(target, mean).to(y.dtype) - mean
        return per_example(-0.5 * (r**2 * torch.exp(-logvar) + logvar + LOG_2PI))

    def _halves(self, y: Tensor) -> tuple[Tensor, Tensor, int]:
        axis = class_axis_of(y, self.class_axis, "heteroscedastic_gaussian")
        if y.shape[axis] % 2:
            raise ValueError(
                f"heteroscedastic_gaussian: output has shape {tuple(y.shape)} with {y.shape[axis]} entries along axis "
                f"{axis}, expected an even number: C means, then C log-variances"
            )
        mean, logvar = y.split(y.shape[axis] // 2, axis) if y.shape[axis] else (y, y)
        return mean, logvar, axis

    @staticmethod
    def _target(target: Any, mean: Tensor) -> Tensor:
        hint = ", one value for each mean (half of the output)"
        return check_target("heteroscedastic_gaussian", target, tuple(mean.shape), hint=hint)


def _check_covariance(matrix: Tensor, variance: Any) -> None:
    """Raise unless the matrix is a covariance, and the only one given."""
    if not (isinstance(variance, (int, float)) and variance == 1.0):
        raise ValueError(
            "gaussian: got variance and covariance, expected one; the covariance's diagonal is the variance"
        )
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
        raise ValueError(f"gaussian: covariance has shape {tuple(matrix.shape)}, expected [C, C] over the class axis")
    S = matrix.detach().double()
    uneven = (S - S.mT).abs().amax() > 1e-6 * S.abs().amax()
    wrong = values(uneven | (torch.linalg.cholesky_ex(S).info != 0))
    if wrong is not None and bool(wrong.any()):
        raise ValueError(
            "gaussian: covariance is not symmetric positive definite, expected a covariance; symmetrise it by "
            "(S + S') / 2, and add a small multiple of the identity if it is singular"
        )
