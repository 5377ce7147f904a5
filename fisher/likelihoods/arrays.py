"""Arrays of the likelihoods: where the classes are, columns at each position, checked targets, noise.

B batch, C classes or coordinates, P positions, K columns.  Column k of position p is number k P + p of the root.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from linmaps.checks import values
from linmaps.checks.annotations import typed
from linmaps.numerics.dtypes import working_dtype


class Rooted:
    """A likelihood whose root is its `root_part` from the first column to the last."""

    @typed
    def n_columns(self, y: Tensor) -> int:
        """K, the number of columns of the root at y."""
        return math.prod(y.shape[1:])

    @typed
    def root_part(self, y: Tensor, start: int, stop: int) -> Tensor:
        """`root(y)[start:stop]`, without the memory of the rest."""
        raise AttributeError("a likelihood defines root_part")

    @typed
    def root(self, y: Tensor) -> Tensor:
        """Columns `[K, *y.shape]` with sum over K of r r' = H_b for each example."""
        return self.root_part(y, 0, self.n_columns(y))


class Independent(Rooted):
    """A likelihood of independent coordinates: H_b is diagonal, the square of `deviation(y)`.

    coordinatewise: whether each coordinate may have a weight of its own.
    """

    coordinatewise: bool = True

    @typed
    def deviation(self, y: Tensor) -> Tensor:
        """Root of the diagonal of H, in a shape that expands to y's."""
        raise AttributeError("a likelihood defines deviation")

    @typed
    def product(self, y: Tensor, u: Tensor) -> Tensor:
        """H u `[B, *out]`."""
        return self.deviation(y) ** 2 * u

    @typed
    def root_part(self, y: Tensor, start: int, stop: int) -> Tensor:
        """`root(y)[start:stop]`, without the memory of the rest."""
        return unit_columns(self.deviation(y), y, start, stop)


def unit_columns(deviation: Tensor, y: Tensor, start: int, stop: int) -> Tensor:
    """Columns `start:stop` of diag(deviation), `[k, *y.shape]`; deviation expands to y."""
    size = math.prod(y.shape[1:])
    span = range(size)[start:stop]
    number = torch.arange(span.start, max(span.start, span.stop), device=y.device)
    here = number[:, None] == torch.arange(size, device=y.device)
    here = here.reshape(len(number), 1, *y.shape[1:])
    lead = (1,) * (y.ndim - deviation.ndim)
    return torch.where(here, deviation.reshape(1, *lead, *deviation.shape), 0.0).expand(len(number), *y.shape)


def class_axis_of(y: Tensor, axis: int, name: str) -> int:
    """The number >= 1 of the class axis of y; a ValueError if y has none there."""
    positive = axis + y.ndim if axis < 0 else axis
    if not 1 <= positive < y.ndim:
        raise ValueError(
            f"{name}: output has shape {tuple(y.shape)} without a class axis {axis}, expected [B, C] or [B, C, *positions] "
            "(class_axis=1), or [B, T, C] (class_axis=-1)"
        )
    return positive


def classes_last(y: Tensor, axis: int) -> Tensor:
    """y with the axis of the classes last: y itself where it is."""
    return y if axis == y.ndim - 1 else y.movedim(axis, -1)


def classes_there(t: Tensor, axis: int) -> Tensor:
    """The way back from `classes_last`."""
    return t if axis == t.ndim - 1 else t.movedim(-1, axis)


def check_axis(axis: int, name: str) -> None:
    """Raise unless axis can be a class axis: axis 0 holds the examples."""
    if isinstance(axis, bool) or not isinstance(axis, int) or axis == 0:
        raise ValueError(f"{name}: class_axis is {axis!r}, expected a whole number but 0: axis 0 holds the examples")


def part_of_columns(start: int, stop: int, total: int, positions: int) -> tuple[range, int, int]:
    """(numbers of the columns, first class column that they need, last one + 1)."""
    span = range(total)[start:stop]
    span = range(span.start, max(span.start, span.stop))
    each = max(1, positions)
    return span, span.start // each, -(-span.stop // each) if len(span) else span.start // each


def place(core: Tensor, first: int, span: range, y: Tensor, axis: int) -> Tensor:
    """Columns `[k, *y.shape]` with numbers `span`, each zero but at its position; core `[K, B, P, C]` from column `first`."""
    positions = core.shape[2]
    if positions != 1:
        number = torch.arange(span.start, span.stop, device=y.device)
        at = number % max(1, positions)
        values = core[number // max(1, positions) - first, :, at]  # [k, B, C]
        here = at[:, None] == torch.arange(positions, device=y.device)
        core = torch.where(here[:, None, :, None], values[:, :, None, :], 0.0)
    return classes_there(core.reshape(len(span), *classes_last(y, axis).shape), axis + 1)


def check_target(name: str, target: Any, shape: tuple[int, ...], *, whole: bool = False, hint: str = "") -> Tensor:
    """The target, if it is a tensor of this shape and of whole (or real) numbers."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{name}: target is {type(target).__name__}, expected a tensor {list(shape)}; give (x, target)")
    real = not target.dtype.is_complex
    if whole and (target.is_floating_point() or not real or target.dtype == torch.bool):
        raise TypeError(
            f"{name}: target has dtype {target.dtype}, expected whole numbers, the classes; use target.long()"
        )
    if not real:
        raise TypeError(f"{name}: target has dtype {target.dtype}, expected real numbers; use target.real")
    if tuple(target.shape) != tuple(shape):
        raise ValueError(f"{name}: target has shape {tuple(target.shape)}, expected {tuple(shape)}{hint}")
    return target


def check_range(name: str, target: Tensor, low: float, high: float, what: str) -> None:
    """Raise a ValueError if a target lies outside [low, high]; what is no number is the data's own check to find."""
    seen = values(target)
    if seen is None:
        return
    wrong = (seen < low) | (seen > high)
    if bool(wrong.any()):
        raise ValueError(f"{name}: target holds {seen[wrong][0].item()}, expected {what}")


def moderated(mean: Tensor, variance: Tensor) -> Tensor:
    """m / sqrt(1 + pi/8 v), the logit whose sigmoid is nearly the mean of sigmoid(z) over z ~ N(m, v) (MacKay, 1992)."""
    return mean / (1 + math.pi / 8 * variance).sqrt()


def per_example(t: Tensor) -> Tensor:
    """Sums `[B]` over all axes but the first."""
    return t.reshape(t.shape[0], math.prod(t.shape[1:])).sum(1)


def uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform noise in (0, 1) on the device of `like`, 0 left out."""
    dtype = working_dtype(like.dtype)
    u = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    return u.clamp_min(torch.finfo(dtype).tiny).to(like.device)


def normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal noise on the device of `like`."""
    dtype = working_dtype(like.dtype)
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device).to(like.device)
