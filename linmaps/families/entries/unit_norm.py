"""Columns, or rows, of W [in, out] with a given Euclidean norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.entries.vectors import directed, directions, lengths, of_lengths
from linmaps.numerics.draws import normal
from linmaps.numerics.numeric import frobenius

Axis = Literal["out", "in"]
AXES = get_args(Axis)


def along(axis: Axis) -> int:
    """The axis of W along which a vector lies: of each output its column, of each input its row."""
    return 0 if axis == "out" else 1


@register
@dataclass(frozen=True)
class UnitNorm(Map):
    """Vectors of one length, `W[:, o] = radius A[:, o] / |A[:, o]|`, for axis="in" the same of the rows `W[i, :]`.

    The leaf "W" = A [in, out] is free.  axis: "out" for the columns, what each output is made of, so that no output exceeds
    radius |x|; "in" for the rows, what each input is turned into (the vectors of an embedding).  Where a vector of A is zero
    (its largest entry below 1e-31 in float32, 1e-292 in float64), the i-th one counts as the unit vector number i modulo its
    size, with the derivative there, so that descent leaves it.  A vector of one entry is radius or -radius, and does not
    learn.

    init: directions uniform on the sphere, A with vectors of length about 1.  The promise fixes the scale: inputs of unit
    variance give outputs of variance radius^2, for axis="in" radius^2 in / out.  `violation(W)` is the norm of what the
    lengths are off by; `from_matrix` rescales the vectors, which gives the nearest matrix.

    ValueError for another axis, or a radius that is not a finite number > 0.

    >>> import torch, linmaps
    >>> linmaps.UnitNorm(2, radius=10.0).effective_W({"W": torch.tensor([[3.0, 0.0], [4.0, 0.0]])})
    tensor([[ 6.,  0.],
            [ 8., 10.]])
    """

    name: ClassVar[str] = "unit_norm"
    promise: ClassVar[str] = "columns (axis='in': rows) of norm radius"
    at_zero: ClassVar[str] = "radius I, repeated"
    half_ready: ClassVar[bool] = False

    axis: Axis = "out"
    radius: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.axis in AXES, "axis", f"one of {AXES}: columns or rows of W [in, out]")
        self._expect_number("radius", 0, above=True)

    def _shapes(self) -> dict[str, Shape]:
        return {"W": (self.in_features, self.out_features)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        shape = self._shapes()["W"]
        return {"W": normal(generator, shape, dtype) * shape[along(self.axis)] ** -0.5}

    def _weight(self, params: Params) -> Tensor:
        A, dim = params["W"], along(self.axis)
        return of_lengths(A, A.new_full((A.shape[1 - dim],), self.radius), dim)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(lengths(W, along(self.axis)) - self.radius)

    def _from_matrix(self, W: Tensor) -> Params:
        dim = along(self.axis)
        return {"W": directions(directed(W, dim), dim)}
