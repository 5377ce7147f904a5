"""Sparse matrices W [in, out] = u - v by a penalty on the sum of u, v >= 0: the lasso, with u and v projected or rectified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.entries.positive import SMALLEST, draw
from linmaps.numerics.ranges import relu


def size(t: Tensor) -> Tensor:
    """|t| with derivative 1 at 0, that of entries which are never negative."""
    return torch.where(t < 0, -t, t)


@register
@dataclass(frozen=True)
class Lasso(Map):
    """A difference `W = u - v` with the soft penalty `gamma sum(|u| + |v|)`: the lasso by projected gradient descent.

    Leaves "u", "v" [in, out], meant to be >= 0: call `project`, which cuts them there, after each optimizer step.  Where
    both are zero, W has an exact zero; at the optimum `u v = 0`, and the penalty is `gamma |W|_1`.  Plain SGD, whose step
    eta then equals the soft threshold eta gamma, gives the lasso's own solution.  On projected params `reg_error` is
    gamma sum(u + v), and so are its derivatives, at 0 too.

    init: u and v from U(1/20, 1) sqrt(2 / in) or so, such that outputs have variance 1/3 for inputs of unit variance.
    `from_matrix` takes the positive and the negative part.  ValueError for a gamma that is negative.

    Source: Bottou, COMPSTAT 2010, section 5.

    >>> import torch, linmaps
    >>> spec = linmaps.Lasso(1, 2, gamma=0.5)
    >>> params = spec.project({"u": torch.tensor([[3.0, -1.0]]), "v": torch.tensor([[-2.0, -4.0]])})
    >>> spec.effective_W(params), spec.reg_error(params)
    (tensor([[3., 0.]]), tensor(1.5000))
    """

    name: ClassVar[str] = "lasso"
    promise: ClassVar[str] = "sparse, by a penalty and `project`"
    at_zero: ClassVar[str] = "0"
    hard: ClassVar[bool] = False

    gamma: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("gamma", 0)

    def _shapes(self) -> dict[str, Shape]:
        shape = (self.in_features, self.out_features)
        return {"u": shape, "v": shape}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        bound = (2 / self.in_features) ** 0.5 / (1 - SMALLEST)
        return {k: draw(generator, s, bound, dtype) for k, s in self._shapes().items()}

    def _parts(self, params: Params) -> tuple[Tensor, Tensor]:
        return params["u"], params["v"]

    def _weight(self, params: Params) -> Tensor:
        u, v = self._parts(params)
        return u - v

    def _reg_error(self, params: Params) -> Tensor:
        u, v = self._parts(params)
        return self.gamma * (size(u).sum() + size(v).sum())

    def _violation(self, W: Tensor) -> Tensor:
        return W.new_zeros(())

    def _project(self, params: Params) -> dict[str, Any]:
        return {**params, "u": params["u"].clamp(min=0), "v": params["v"].clamp(min=0)}

    def _from_matrix(self, W: Tensor) -> Params:
        return {"u": W.clamp(min=0), "v": (-W).clamp(min=0)}


@register
@dataclass(frozen=True)
class LassoReLU(Lasso):
    """A difference `W = relu(u) - relu(v)` with the soft penalty `gamma sum(relu(u) + relu(v))`.

    As `Lasso`, but W has exact zeros and the penalty is >= 0 without `project`, too.  An entry below 0 has no gradient
    and stays there; `project` brings it to 0, where the derivative is taken as 1, so that it can come back.

    >>> import torch, linmaps
    >>> spec = linmaps.LassoReLU(1, 2)
    >>> params = {"u": torch.tensor([[3.0, -1.0]]), "v": torch.tensor([[-2.0, -4.0]])}
    >>> spec.effective_W(params), spec.reg_error(params)
    (tensor([[3., 0.]]), tensor(3.))
    """

    name: ClassVar[str] = "lasso_relu"

    def _parts(self, params: Params) -> tuple[Tensor, Tensor]:
        return relu(params["u"]), relu(params["v"])
