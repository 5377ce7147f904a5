"""Forms: how a call lays out its weight, its input and its output, so that z = W a at each position, whatever the call.

B batch, S shared (positions), I inputs, O outputs of one group, n entries of an elementwise weight.
A form is static.  `inputs` and `outputs` bring x and z to `[shared axes, features]`, `arrangement` the leaf to `[O, I]`.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from linmaps.numerics.numeric import differentiated
from linmaps.trees import static

Axes = tuple[int, ...]


@static
@dataclasses.dataclass(frozen=True)
class Arrangement:
    """A weight leaf as a matrix `[O, I]`, or `[groups, O, I]`: which of its axes are which, once axis 0 is split by
    groups.  shape: that the weight has in the call, where it is another than the leaf's."""

    out: Axes
    into: Axes
    groups: int = 1
    shape: Axes | None = None

    def matrix(self, leaf: Tensor) -> Tensor:
        if self is BEHIND or self is IN_FRONT:  # as nearly always
            return leaf if self is BEHIND else leaf.mT
        leaf = leaf if self.shape is None else leaf.reshape(self.shape)
        split = leaf.unflatten(0, (self.groups, -1)) if self.groups > 1 else leaf
        t = split.permute(self._order)
        sizes = (math.prod(split.shape[k] for k in self.out), math.prod(split.shape[k] for k in self.into))
        return t.reshape(*((self.groups,) if self.groups > 1 else ()), *sizes)

    def leaf(self, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The leaf of this shape: the way back from `matrix`."""
        if self is BEHIND or self is IN_FRONT:
            return matrix if self is BEHIND else matrix.mT
        split = self.split(shape)
        t = matrix.reshape([split[k] for k in self._order])
        return t.permute([self._order.index(k) for k in range(len(split))]).reshape(shape)

    def split(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of the axes of a leaf of this shape, axis 0 split by groups."""
        own = shape if self.shape is None else self.shape
        return (self.groups, own[0] // self.groups, *own[1:]) if self.groups > 1 else own

    @property
    def _order(self) -> Axes:
        return ((0,) if self.groups > 1 else ()) + self.out + self.into


IN_FRONT, BEHIND = (
    Arrangement((1,), (0,)),
    Arrangement((0,), (1,)),
)  # where a matrix `[in, out]`, `[out, in]` has its inputs


@static
@dataclasses.dataclass(frozen=True)
class Form:
    """A product in which features come last: z `[..., O]` = x `[..., I]` times W'; transposed: the leaf is `[in, out]`."""

    transposed: bool = False

    @property
    def arrangement(self) -> Arrangement:
        return IN_FRONT if self.transposed else BEHIND

    @property
    def groups(self) -> int:
        return self.arrangement.groups

    @property
    def sliceable(self) -> bool:
        """Whether rows of the leaf are outputs, so that a part of the leaf is a layer of its own."""
        return not self.transposed

    def inputs(self, x: Tensor) -> Tensor:
        """x as `[shared axes, groups I]`."""
        return x

    def outputs(self, z: Tensor) -> Tensor:
        """z as `[shared axes, groups O]`."""
        return z

    def axis(self, shared: int) -> int:
        """The axis of z that becomes this shared axis."""
        return shared


@static
@dataclasses.dataclass(frozen=True)
class Lookup(Form):
    """Rows of a table `[vocabulary, O]`: W times a unit vector, of which only the index is kept, `[shared axes, 1]`.

    Positions at padding_idx have the index `vocabulary`, one row too far: they use nothing.
    """

    transposed: bool = True
    vocabulary: int = 0
    padding_idx: int | None = None
    table: Axes | None = None  # the shape `[vocabulary, O]`, where the leaf has another
    features: int | None = None  # the axis of z that holds them, where it is not the last

    @property
    def arrangement(self) -> Arrangement:
        return Arrangement((1,), (0,), shape=self.table)

    def outputs(self, z: Tensor) -> Tensor:
        return z if self.features is None else z.movedim(self.features, -1)

    def axis(self, shared: int) -> int:
        return shared + int(self.features is not None and shared >= self.features)

    def inputs(self, x: Tensor) -> Tensor:
        index = torch.where(x < 0, x + self.vocabulary, x)
        if self.padding_idx is not None:
            index = torch.where(index == self.padding_idx % self.vocabulary, self.vocabulary, index)
        return index[..., None]


@static
@dataclasses.dataclass(frozen=True)
class Contraction(Form):
    """An einsum of x with a leaf: the axes of x and z in the order (shared, groups, features), and those of the leaf."""

    x_axes: Axes = ()
    z_axes: Axes = ()
    features: tuple[int, int] = (1, 1)  # how many of the last of these axes of x and of z are groups and features
    weight: Arrangement = Arrangement((0,), (1,))

    @property
    def arrangement(self) -> Arrangement:
        return self.weight

    @property
    def sliceable(self) -> bool:
        return False

    def inputs(self, x: Tensor) -> Tensor:
        return _folded(x.permute(self.x_axes), self.features[0])

    def outputs(self, z: Tensor) -> Tensor:
        return _folded(z.permute(self.z_axes), self.features[1])

    def axis(self, shared: int) -> int:
        return self.z_axes[shared]


@static
@dataclasses.dataclass(frozen=True)
class Elementwise(Form):
    """A scale or a shift: z = w x (+ b) with w of `shape` broadcast over the shared axes, of which the first is axis 0."""

    shape: tuple[int, ...] = ()

    @property
    def sliceable(self) -> bool:
        return False

    def inputs(self, x: Tensor) -> Tensor:
        return self.outputs(x.expand(torch.broadcast_shapes(x.shape, self.shape)))

    def outputs(self, z: Tensor) -> Tensor:
        own = self._own(z.ndim)
        return _folded(z.permute([k for k in range(z.ndim) if k not in own] + own), len(own))

    def axis(self, shared: int) -> int:
        return shared  # 0 is the first shared axis; others before w's axes keep their places

    def _own(self, ndim: int) -> list[int]:
        lead = ndim - len(self.shape)
        return [lead + k for k, n in enumerate(self.shape) if n > 1]


@static
@dataclasses.dataclass(frozen=True)
class Channels(Elementwise):
    """A scale and a shift of each channel, axis 1, as group and batch norm have."""

    def outputs(self, z: Tensor) -> Tensor:
        return z.movedim(1, -1)

    def inputs(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


@static
@dataclasses.dataclass(frozen=True)
class Convolution(Form):
    """A convolution, or its transpose: W times the patch of x that each output position sees.

    kernel, stride, padding (left, right), dilation: one entry per spatial axis.  back: transposed convolution, whose leaf is
    `[groups I, O, *kernel]`; there x is spread by the stride first, and the kernel is turned around.
    """

    kernel: Axes = ()
    stride: Axes = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: Axes = ()
    n_groups: int = 1
    back: bool = False
    weight: Axes | None = None  # the shape of the kernel, where the leaf has another

    @property
    def arrangement(self) -> Arrangement:
        split = int(self.n_groups > 1)  # the axis of groups comes first
        spatial = tuple(range(2 + split, 2 + split + len(self.kernel)))
        out, into = (1 + split, split) if self.back else (split, 1 + split)
        return Arrangement((out,), (into, *spatial), self.n_groups, self.weight)

    @property
    def sliceable(self) -> bool:
        return False

    def inputs(self, x: Tensor) -> Tensor:
        n = len(self.kernel)
        stride = self.stride
        if self.back:
            for k, s in enumerate(self.stride):
                x = _spread(x, 2 + k, s)
            stride = (1,) * n
        x = F.pad(x, [size for pair in reversed(self.padding) for size in pair])
        for k in range(n):
            reach = self.dilation[k] * (self.kernel[k] - 1) + 1
            x = _windows(x, 2 + k, reach, stride[k], self.dilation[k])
        if self.back:
            x = x.flip(tuple(range(2 + n, 2 + 2 * n)))
        # [B, channels, *positions, *kernel] -> [B, *positions, channels * kernel]: groups are outermost in the channels.
        # In memory features come first: neighbours are copied together, and all positions are rows of one product
        x = x.permute(1, *range(2 + n, 2 + 2 * n), 0, *range(2, 2 + n))
        return x.reshape(math.prod(x.shape[: 1 + n]), *x.shape[1 + n :]).movedim(0, -1)

    def outputs(self, z: Tensor) -> Tensor:
        return z.movedim(1, -1)

    def axis(self, shared: int) -> int:
        return shared if shared == 0 else shared + 1


def _windows(x: Tensor, axis: int, reach: int, stride: int, dilation: int) -> Tensor:
    """Windows of x along an axis, their entries last: a view, or where it is differentiated a copy (the derivative of a view
    of overlapping windows does not map over an ensemble)."""
    if not differentiated(x):
        return x.unfold(axis, reach, stride)[..., ::dilation]
    starts = torch.arange(0, x.shape[axis] - reach + 1, stride, device=x.device)
    index = starts[:, None] + torch.arange(0, reach, dilation, device=x.device)
    return x.index_select(axis, index.flatten()).unflatten(axis, index.shape).movedim(axis + 1, -1)


def _folded(t: Tensor, last: int) -> Tensor:
    """The last axes of t as one (a new one of size 1 for none)."""
    lead = t.ndim - last
    return t.reshape(*t.shape[:lead], math.prod(t.shape[lead:]))


def _spread(x: Tensor, axis: int, step: int) -> Tensor:
    """step - 1 zeros between neighbours along an axis."""
    if step == 1 or x.shape[axis] == 0:
        return x
    x = F.pad(x.movedim(axis, -1)[..., None], (0, step - 1)).flatten(-2)[..., : -(step - 1)]
    return x.movedim(-1, axis)
