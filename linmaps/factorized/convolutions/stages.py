"""A factorized kernel as convolutions in sequence, the options acting along each axis of space where its turn comes.

x is [B, in, *space], results are [B, out, *space'], weights [out, in / groups, *k]; n = 1, 2, 3 axes.  The tensor of the
kernel has modes (in, k_1..k_n, out).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from linmaps.checks import Params, Shape
from linmaps.factorized.convolutions.axes import Axis
from linmaps.factorized.kinds.base import listed
from linmaps.factorized.tensors.tucker import reconstruct_tucker

CONV = (F.conv1d, F.conv2d, F.conv3d)


class Stage(NamedTuple):
    """One of the convolutions: the shape of its weight, its groups, the axes on which the options act."""

    shape: Shape
    groups: int
    axes: tuple[int, ...]


def stages_of(kind: str, r: Any, sizes: Shape) -> list[Stage]:
    """The convolutions that take the place of one with a kernel of that kind, for its ranks and sizes (in, *k, out).

    >>> [stage.shape for stage in stages_of("tt", (1, 2, 3, 1), (4, 5, 8))]
    [(2, 4, 1), (3, 2, 5), (8, 3, 1)]
    """
    c, *k, o = sizes
    n = len(k)
    point, every = (1,) * n, tuple(range(n))
    if kind == "dense":
        return [Stage((o, c, *k), 1, every)]
    along = [point[:a] + (s,) + point[a + 1 :] for a, s in enumerate(k)]
    if kind == "cp":
        first, last, middle = r, r, [Stage((r, 1, *along[a]), r, (a,)) for a in every]
    elif kind == "tucker":
        first, last, middle = r[0], r[-1], [Stage((r[-1], r[0], *k), 1, every)]
    else:
        first, last, middle = r[1], r[-2], [Stage((r[a + 2], r[a + 1], *along[a]), 1, (a,)) for a in every]
    return [Stage((first, c, *point), 1, ()), *middle, Stage((o, last, *point), 1, ())]


def weights_of(kind: str, leaves: Params) -> list[Tensor]:
    """The weights of these convolutions from the leaves, in order, up to axes of size 1."""
    if kind == "dense":
        return [leaves["kernel"]]
    first, *middle, last = listed(leaves, "A" if kind == "tt" else "U")
    if kind == "cp":
        return [first.mT, *(U.mT for U in middle), last * leaves["weights"]]
    if kind == "tucker":
        core = reconstruct_tucker(leaves["core"].movedim(0, -1), middle)  # [*k, r_out, r_in]
        return [first.mT, core.movedim((-2, -1), (0, 1)), last]
    return [A.permute(2, 0, 1) for A in (first, *middle)] + [last[:, :, 0].mT]


def convolve(x: Tensor, kind: str, r: Any, sizes: Shape, leaves: Params, axes: Sequence[Axis]) -> Tensor:
    """x [B, in, *space], or without B, through the convolutions; leaves as `weights_of` takes them, perhaps with "bias".

    >>> import torch
    >>> from linmaps.factorized.convolutions.axes import axes_of
    >>> leaves = {"kernel": torch.ones(1, 1, 2), "bias": torch.tensor([3.0])}
    >>> convolve(torch.ones(1, 1, 3), "dense", None, (1, 2, 1), leaves, axes_of((2,), 1, "same", 1, "conv"))
    tensor([[[5., 5., 4.]]])
    """
    stages = stages_of(kind, r, sizes)
    for stage, weight in zip(stages, weights_of(kind, leaves)):
        here = [axis if a in stage.axes else Axis() for a, axis in enumerate(axes)]
        if any(axis.after > axis.before for axis in here):  # torch's convolutions put as many zeros before as after
            x = F.pad(x, [zeros for axis in reversed(here) for zeros in (0, axis.after - axis.before)])
        if stage.groups > 1 and len(axes) == 3:
            x = _alone(x, weight, stage.axes[0], here[stage.axes[0]])
        else:
            bias = leaves.get("bias") if stage is stages[-1] else None
            x = _conv(x, weight.reshape(stage.shape), bias, here, stage.groups)
    return x


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, axes: Sequence[Axis], groups: int) -> Tensor:
    stride, padding, _, dilation = zip(*axes)
    return CONV[len(axes) - 1](x, weight, bias, stride, padding, dilation, groups)


def _alone(x: Tensor, weight: Tensor, a: int, axis: Axis) -> Tensor:
    """Each channel by itself along one of three axes, weight [channels, k], as a convolution of two axes.

    That is what torch's has fast kernels for: along three axes its derivative is several times slower.
    """
    *lead, R, S0, S1, S2 = x.shape
    k = weight.shape[1]
    if a == 1:  # an axis in the middle takes the first one among the channels, which share their weights
        weight = weight[:, None].expand(R, S0, k).reshape(R * S0, k)
    planes = [(R, S0, S1 * S2), (R * S0, S1, S2), (R, S0 * S1, S2)][a]
    shape, here = ((1, k), [Axis(), axis]) if a == 2 else ((k, 1), [axis, Axis()])
    y = _conv(x.reshape(*lead, *planes), weight.reshape(planes[0], 1, *shape), None, here, planes[0])
    space = [S0, S1, S2]
    space[a] = y.shape[-1] if a == 2 else y.shape[-2]
    return y.reshape(*lead, R, *space)
