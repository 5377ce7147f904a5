"""Hooks: what a concrete map fills, and what follows from W [in, out] alone where it fills nothing.

Params have been checked when a hook sees them, and raised to float32 where half precision would not do.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base.checked import Checked
from linmaps.checks import Params, Shape
from linmaps.checks.precision import HALF
from linmaps.numerics import lapack
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.eigen import eigvals, shifted
from linmaps.numerics.linalg import logabsdet, solve
from linmaps.numerics.numeric import eye_like


class Hooks(Checked, abc.ABC):
    """The private side of a map: one method for each public one of `Map`, without checks and casts."""

    square: ClassVar[bool] = False
    hard: ClassVar[bool] = True  # False: a penalty, `reg_error`, asks for the promise
    complex_ready: ClassVar[bool] = False  # True: the hook `_init` may be asked for complex leaves
    half_ready: ClassVar[bool] = True  # False: the hooks factorize, and are given float32 in place of half precision

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

    def _init_dtype(self, generator: torch.Generator, dtype: torch.dtype | None) -> torch.dtype:
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"{self._title}.init: generator is {type(generator).__name__}, expected a torch.Generator; "
                "pass torch.Generator().manual_seed(seed)"
            )
        self._check_room(self.n_params, "parameters")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not (
            dtype.is_floating_point or (dtype.is_complex and self.complex_ready)
        ):
            raise TypeError(f"{self._title}.init: dtype is {dtype}, expected a real floating torch.dtype")
        return dtype

    @staticmethod
    def _moved(params: Params, dtype: torch.dtype, device: torch.device | str | None) -> dict[str, Tensor]:
        return {
            k: t.contiguous().to(device=device, dtype=dtype.to_complex() if t.is_complex() else dtype.to_real())
            for k, t in params.items()
        }

    # --- dtypes ------------------------------------------------------------------------------------------------------

    def _up(self, params: Params, always: bool = False) -> Params:
        """Params in a dtype that the hooks can compute with."""
        if self.half_ready and not always:
            return params
        return {k: t.to(working_dtype(t.dtype)) for k, t in params.items()}

    def _down(self, result: Tensor, params: Params) -> Tensor:
        """A result in the dtype of params, if that is half precision."""
        dtype = self._like(params).dtype
        return result.to(dtype) if dtype in HALF else result

    @staticmethod
    def _of_W(params: Params) -> list[Tensor]:
        return trees.leaves({key: p for key, p in params.items() if key != "bias"})

    @staticmethod
    def _like(params: Params) -> Tensor:
        """A tensor with the dtype and device that the result must have, whatever the order of params."""
        for key, t in params.items():
            if key != "bias":
                return t
        return params["bias"] if "bias" in params else torch.empty(())
