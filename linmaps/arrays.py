"""Maps whose rows and columns are axes of arrays: x [..., *in_shape] in, y [..., *out_shape] out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from linmaps.base import Map
from linmaps.checks import Params


class OfArrays(Map):
    """Adds `apply_tensor` to a map with an in_shape and an out_shape, row-major."""

    if TYPE_CHECKING:
        in_shape: tuple[int, ...]
        out_shape: tuple[int, ...]

    def apply_tensor(self, params: Params, x: Tensor, *layer: Any) -> Tensor:
        """`apply` for an array x [..., *in_shape]: [..., *out_shape]; a layer, where the map has several, comes last.

        Of a `Kronecker` map a tensor contraction layer, which multiplies x along each axis by one factor; of a `Factorized`
        one a tensor regression layer, which contracts x with a factorized tensor along all axes of in_shape.

        ValueError for an x with other last axes.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 3, 4), (5, 2), factorization="tucker", rank=0.5)
        >>> spec.apply_tensor(spec.init(torch.Generator()), torch.ones(7, 2, 3, 4)).shape
        torch.Size([7, 5, 2])
        """
        lead = x.ndim - len(self.in_shape) if isinstance(x, Tensor) else -1
        if lead < 0 or tuple(x.shape[lead:]) != self.in_shape:
            got = f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is {type(x).__name__}"
            expected = ", ".join(["...", *map(str, self.in_shape)])
            raise ValueError(f"{self._title}.apply_tensor: x {got}, expected [{expected}]")
        y = self.apply(params, x.reshape(*x.shape[:lead], self.in_features), *layer)
        return y.reshape(*y.shape[:-1], *self.out_shape)
