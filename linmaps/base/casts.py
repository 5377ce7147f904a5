"""Dtypes and devices around the hooks of a map: what `init` may draw, what hooks compute in, what results are cast to."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base.checked import Checked
from linmaps.checks import Params
from linmaps.checks.precision import HALF
from linmaps.numerics.dtypes import lowered, working_dtype


class Casts(Checked):
    """Between the dtype of params and the one that hooks compute in: up before a hook, down after it."""

    complex_ready: ClassVar[bool] = False  # True: the hook `_init` may be asked for complex leaves
    half_ready: ClassVar[bool] = True  # False: the hooks factorize, and are given float32 in place of half precision

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

    def _up(self, params: Params, always: bool = False) -> Params:
        """Params in a dtype that the hooks can compute with."""
        if (self.half_ready and not always) or self._like(params).dtype not in HALF:
            return params
        return {k: t.to(working_dtype(t.dtype)) for k, t in params.items()}

    def _down(self, result: Tensor, params: Params) -> Tensor:
        """A result in the dtype of params, if that is half precision."""
        return lowered(result, self._like(params).dtype)

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
