"""What a convolution does along each axis of space: its options as given, checked, and the sizes after it.

x is [B, in, *space], results are [B, out, *space']; n = 1, 2, 3 axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from linmaps.checks import Shape

Option = int | Sequence[int]
Padding = Literal["same", "valid"]


class Axis(NamedTuple):
    """What a convolution does along one axis: zeros before and after x, stride and dilation."""

    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1


def _ints(value: Any, n: int, low: int, key: str, what: str) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * n
    if any(not isinstance(v, int) or isinstance(v, bool) for v in values):
        words = "; or 'same', or 'valid'" if key == "padding" else ""
        error = ValueError if isinstance(value, str) and words else TypeError
        raise error(f"{what}: {key} is {value!r}, expected an int or a tuple of {n} ints{words}")
    if len(values) != n or min(values) < low:
        raise ValueError(f"{what}: {key} is {value!r}, expected an int >= {low} or {n} of them, one for each axis")
    return values


def axes_of(kernel_size: Shape, stride: Option, padding: Option | Padding, dilation: Option, what: str) -> list[Axis]:
    """The options of torch's convolutions by axis; "same" puts d (k - 1) zeros around x, an odd one behind.

    ValueError or TypeError for options out of range, or "same" with a stride.

    >>> axes_of((4, 3), 1, "same", (1, 2), "conv")
    [Axis(stride=1, before=1, after=2, dilation=1), Axis(stride=1, before=2, after=2, dilation=2)]
    """
    n = len(kernel_size)
    strides, dilations = _ints(stride, n, 1, "stride", what), _ints(dilation, n, 1, "dilation", what)
    if padding == "same":
        if strides != (1,) * n:
            raise ValueError(f"{what}: stride is {stride!r}, expected 1 with padding='same'; give the padding as ints")
        around = [d * (k - 1) for d, k in zip(dilations, kernel_size)]
        return [Axis(1, z // 2, z - z // 2, d) for z, d in zip(around, dilations)]
    paddings = _ints(0 if padding == "valid" else padding, n, 0, "padding", what)
    return [Axis(s, p, p, d) for s, p, d in zip(strides, paddings, dilations)]


def check_x(x: Any, c: int, n: int, dtypes: set[torch.dtype], what: str) -> None:
    """ValueError or TypeError unless x is [B, c, *space] or [c, *space], of the one dtype."""
    expected = f"[B, {c}, *space] or [{c}, *space] with {n} sizes of space"
    if not isinstance(x, Tensor):
        raise TypeError(f"{what}: x is {type(x).__name__}, expected a tensor {expected}")
    if x.ndim not in (n + 1, n + 2) or x.shape[-n - 1] != c:
        raise ValueError(f"{what}: x has shape {tuple(x.shape)}, expected {expected}")
    if dtypes != {x.dtype}:
        found = ", ".join(sorted(map(str, dtypes)))
        raise TypeError(f"{what}: x is {x.dtype}, expected {found} as params; convert with x.to(...)")


def space_after(space: Sequence[int], kernel_size: Shape, axes: Sequence[Axis], what: str) -> Shape:
    """Sizes of the result; ValueError where x, zeros included, is smaller than the dilated kernel.

    >>> space_after((9, 9), (3, 3), axes_of((3, 3), 2, (1, 0), 1, "conv"), "conv")
    (5, 4)
    """
    spans = [a.dilation * (k - 1) + 1 for a, k in zip(axes, kernel_size)]
    least = tuple(max(1, span - a.before - a.after) for a, span in zip(axes, spans))
    if any(s < low for s, low in zip(space, least)):
        raise ValueError(f"{what}: x has space {tuple(space)}, expected at least {least}; give more padding")
    return tuple((s + a.before + a.after - span) // a.stride + 1 for s, a, span in zip(space, axes, spans))
