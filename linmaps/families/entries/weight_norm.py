"""Columns, or rows, of W [in, out] by their directions and their lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.entries.unit_norm import AXES, Axis, along
from linmaps.families.entries.vectors import directed, lengths, of_lengths
from linmaps.numerics.draws import uniform


@register
@dataclass(frozen=True)
class WeightNorm(Map):
    """A free matrix whose columns have a direction and a length each, `W[:, o] = g[o] V[:, o] / |V[:, o]|`: no promise.

    Leaves "V" [in, out] and "g" [out]; for axis="in" the same of the rows, with g [in].  g may have any sign.  Every matrix
    is reached whose vectors are zero or no shorter than tiny / eps (1e-31 in float32).  What is said of zero vectors in
    `UnitNorm` holds for those of V.

    init: V from U(-1/sqrt(in), 1/sqrt(in)), as torch.nn.Linear, and g the lengths of its vectors, so that W = V: inputs of
    unit variance give outputs of variance 1/3.  `from_matrix` takes V = W, and of a zero vector g = 0 with a unit vector as
    direction, so that it learns.

    ValueError for another axis.

    Source: Salimans and Kingma, arXiv:1602.07868; torch.nn.utils.parametrizations.weight_norm of a Linear is axis="out".

    >>> import torch, linmaps
    >>> V, g = torch.tensor([[3.0, 0.0], [4.0, 2.0]]), torch.tensor([10.0, -1.0])
    >>> linmaps.WeightNorm(2).effective_W({"V": V, "g": g})
    tensor([[ 6., -0.],
            [ 8., -1.]])
    """

    name: ClassVar[str] = "weight_norm"
    promise: ClassVar[str] = "none: a free matrix by the directions and norms of its columns (axis='in': rows)"
    at_zero: ClassVar[str] = "0"
    half_ready: ClassVar[bool] = False

    axis: Axis = "out"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.axis in AXES, "axis", f"one of {AXES}: columns or rows of W [in, out]")

    def _shapes(self) -> dict[str, Shape]:
        shape = (self.in_features, self.out_features)
        return {"V": shape, "g": (shape[1 - along(self.axis)],)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return dict(self._split(uniform(generator, self._shapes()["V"], self.in_features**-0.5, dtype)))

    def _split(self, W: Tensor) -> Params:
        dim = along(self.axis)
        return {"V": directed(W, dim), "g": lengths(W, dim).squeeze(dim)}

    def _weight(self, params: Params) -> Tensor:
        return of_lengths(params["V"], params["g"], along(self.axis))

    def _violation(self, W: Tensor) -> Tensor:
        return W.new_zeros(())

    def _from_matrix(self, W: Tensor) -> Params:
        return self._split(W)
