"""Moments of the inputs of `before` that the batch norm behind it measures, and the norm that new units get of them.

r inputs of `before` b2, at all positions of its output; k new units A `[k, r]`, a `[k]`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from growth.checks.records import Axes
from growth.reading.observe import View
from linmaps.numerics.dtypes import working
from linmaps.numerics.moments import second_moment
from linmaps.numerics.numeric import positive_root
from linmaps.trees import record
from linmaps.trees.printed import cell, on_a_line


@record(static=("eps",))
class NormMoments:
    """S = E Σ [b2; 1] [b2; 1]' `[r+1, r+1]`, the sum over the positions of a sample; eps: that of the norm.

    So the mean and the variance of what a new unit gives to the norm are known without another pass.

    >>> import torch
    >>> NormMoments(torch.eye(3), 1e-5)
    NormMoments(2 inputs, eps = 1e-05, float32, cpu)
    """

    S: Tensor
    eps: float

    axes: ClassVar[Axes] = Axes({"S": "bb"})

    def __repr__(self) -> str:
        return on_a_line(self, [f"{self.S.shape[-1] - 1} inputs", f"eps = {cell(self.eps)}"], self.S)

    def leaves(self, A: Tensor, a: Tensor | None, root: float | Tensor) -> dict[str, Tensor]:
        """Leaves of the norm for units root (A, a), by name: the identity in eval mode, and in train mode for such data.

            mean = A μ + a,  variance = A C A',  bias = mean,  weight = (variance + eps)^{1/2}

        μ, C: mean and covariance of b2.  A unit that is constant on the data has variance 1, so that it can still learn.
        """
        S, A = working(self.S), working(A)
        mean = S[-1, :-1] / S[-1, -1]
        covariance = S[:-1, :-1] / S[-1, -1] - torch.outer(mean, mean)
        own = A @ mean if a is None else A @ mean + working(a)
        variance = ((A @ covariance) * A).sum(1).clamp(min=0) * root**2
        variance = torch.where(variance > torch.finfo(variance.dtype).tiny ** 0.5, variance, 1.0)
        weight = positive_root(variance + self.eps)
        return {"running_mean": root * own, "running_var": variance, "bias": root * own, "weight": weight}


def seen_by_norm(view: View, S_prev: Tensor | None) -> NormMoments | None:
    """The sums over one batch; S_prev: if it is this very matrix.  None without a batch norm that measures units as they are."""
    if view.eps is None:
        return None
    if S_prev is None:
        rows = view.b2.flatten(0, 1)
        S_prev = second_moment(torch.nn.functional.pad(rows, (0, 1), value=1.0))
    return NormMoments(S_prev, view.eps)


def total(a: NormMoments | None, b: NormMoments | None) -> NormMoments | None:
    """The sums over two batches."""
    return None if a is None or b is None else dataclasses.replace(a, S=a.S + b.S)


def scaled(a: NormMoments | None, count: Tensor) -> NormMoments | None:
    """The means, from sums over count samples."""
    return None if a is None else dataclasses.replace(a, S=a.S / count)


def merged(a: NormMoments | None, b: NormMoments | None, share: Tensor) -> NormMoments | None:
    """The means over two sets of samples, of which the second is this share."""
    return None if a is None or b is None else dataclasses.replace(a, S=torch.lerp(a.S, b.S, share))
