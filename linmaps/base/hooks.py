"""Hooks: what a concrete map fills, and what follows from W [in, out] alone where it fills nothing.

Params have been checked when a hook sees them, and raised to float32 where half precision would not do.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from linmaps.base.casts import Casts
from linmaps.base.products import Use, product
from linmaps.checks import Params, Shape
from linmaps.checks.precision import HALF
from linmaps.numerics import lapack
from linmaps.numerics.dtypes import lowered, working_dtype
from linmaps.numerics.eigen import eigvals, shifted
from linmaps.numerics.linalg import logabsdet, solve
from linmaps.numerics.numeric import by_planes, eye_like


class Hooks(Casts, abc.ABC):
    """The private side of a map: one method for each public one of `Map`, without checks and casts."""

    square: ClassVar[bool] = False
    hard: ClassVar[bool] = True  # False: a penalty, `reg_error`, asks for the promise
    complex_W: ClassVar[bool] = False  # True: the leaves are real, and W is complex all the same

    @abc.abstractmethod
    def _shapes(self) -> dict[str, Shape]:
        """Leaves of the map, without the bias."""

    @abc.abstractmethod
    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        """Leaves of the map, on the generator's device."""

    @abc.abstractmethod
    def _weight(self, params: Params) -> Tensor:
        """W [in, out]."""

    @abc.abstractmethod
    def _violation(self, W: Tensor) -> Tensor:
        """Scalar."""

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return x @ self._weight(params)

    @property
    def _use(self) -> Use:
        return Use(self.name, self._multiplied, self._formed, self._W_shape, lends=("bias",) if self.bias else ())

    def _product(self, params: Params, x: Tensor) -> Tensor:
        return product(self._use, params, x) if has_torch_function((x,)) else self._multiplied(params, x)

    def _multiplied(self, params: Params, x: Tensor) -> Tensor:
        raised = x if self.half_ready else x.to(working_dtype(x.dtype))
        return lowered(self._by_planes(self._apply, self._up(params), raised), x.dtype)

    def _by_planes(self, fn: Callable[[Params, Tensor], Tensor], params: Params, x: Tensor) -> Tensor:
        """fn(params, x), for a complex x in two parts unless the map is complex itself."""
        return fn(params, x) if self.complex_W else by_planes(fn, params, x)

    def _formed(self, params: Params) -> Tensor:
        if self._like(params).dtype not in HALF:
            return self._weight(params)
        return self._down(self._weight(self._up(params)), params)

    def _reg_error(self, params: Params) -> Tensor:
        return torch.zeros((), dtype=self._like(params).dtype.to_real(), device=self._like(params).device)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        W = self._weight(params)
        if not vectors:
            return eigvals(W), None
        values, right = lapack.eig(shifted(W))
        return values, right

    def _singular_values(self, params: Params) -> Tensor:
        return lapack.svdvals(self._weight(params))

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        rows = y.reshape(-1, self.out_features)
        return solve(self._weight(params).mT, rows.mT).mT.reshape(y.shape)

    def _inverse(self, params: Params) -> Tensor:
        return self._solve(params, eye_like(self._like(params), self.in_features))

    def _logabsdet(self, params: Params) -> Tensor:
        return logabsdet(self._weight(params))

    def _project(self, params: Params) -> dict[str, Any]:
        return dict(params)

    def _from_matrix(self, W: Tensor) -> Params:
        raise ValueError(
            f"{self._title}.from_matrix: no closed form takes a matrix to these params; fit them by descent on "
            "(effective_W(params) - W).square().sum()"
        )
