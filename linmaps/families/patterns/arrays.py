"""Maps whose rows and columns are axes of arrays: x [..., *in_shape] in, y [..., *out_shape] out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from linmaps.base import Map
from linmaps.checks import Params
from linmaps.checks.annotations import typed
from linmaps.numerics.shapes import tensorized_shape


class OfArrays(Map):
    """Adds `apply_tensor` to a map with an in_shape and an out_shape, row-major."""

    if TYPE_CHECKING:
        in_shape: tuple[int, ...]
        out_shape: tuple[int, ...]

    _sizes: ClassVar[str] = "a tuple of ints, the sizes of the axes"

    def __post_init__(self) -> None:
        """Shapes become tuples, out_shape that of in_shape unless given, and the sizes follow from them.

        An int is split into as many sizes as the other shape has, or into two.
        """
        if vars(self)["out_shape"] is None:
            object.__setattr__(self, "out_shape", self.in_shape)
        given: dict[str, Any] = {key: getattr(self, key) for key in ("in_shape", "out_shape")}
        n_modes = next((len(shape) for shape in given.values() if isinstance(shape, Sequence)), 2)
        for key, n in given.items():
            if isinstance(n, int) and not isinstance(n, bool) and n > 0 and n_modes > 0:
                object.__setattr__(self, key, tensorized_shape(n, n_modes))
        for key, size in (("in_shape", "in_features"), ("out_shape", "out_features")):
            shape = getattr(self, key)
            fine = isinstance(shape, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
            self._expect(fine, key, self._sizes, error=TypeError)
            self._expect(len(shape) > 0 and min(shape) > 0, key, "at least one axis, and positive sizes")
            object.__setattr__(self, key, tuple(shape))
            object.__setattr__(self, size, math.prod(shape))
        super().__post_init__()

    @typed
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
