"""Some channels or places of a factorized kernel, and one axis of space more, without leaving its factors."""

from __future__ import annotations

import builtins
from typing import Self

from torch import Tensor

from linmaps.checks import Params
from linmaps.checks import size as check_size
from linmaps.checks.annotations import typed
from linmaps.factorized.convolutions.products import ConvProducts
from linmaps.factorized.kinds.base import before
from linmaps.factorized.kinds.places import place_of, places_of
from linmaps.factorized.tensors.multilinear import taken


class ConvReshaped(ConvProducts):
    """What a factorized convolution does about the modes of its kernel."""

    @typed
    def slice(self, params: Params, *index: builtins.slice) -> tuple[Self, dict[str, Tensor]]:
        """The spec and params of a part of the kernel: one slice for in_channels, out_channels and each axis of the kernel.

        So its kernel is `kernel[out, in, *axes]`, with steps and negative bounds as Python means them, and so is the bias.  All
        layers are cut alike; `select` takes one.  Only the leaves are cut, so ranks stay, even those that the smaller sizes
        cannot use (compat=True then).  The params share no memory with the given ones.

        TypeError for an int, which would leave no mode: `slice(i, i + 1)`; ValueError for another number of slices, or one
        that takes nothing.

        >>> import torch, linmaps
        >>> spec = linmaps.FactorizedConv(4, 8, (3, 3), factorization="tt", rank=2)
        >>> params = spec.init(torch.Generator())
        >>> part, leaves = spec.slice(params, slice(2), slice(0, 8, 4), slice(None), slice(None, None, -1))
        >>> torch.allclose(part.kernel(leaves), spec.kernel(params)[::4, :2].flip(3))
        True
        """
        self._check(params)
        names = {"in_channels": self.in_channels, "out_channels": self.out_channels}
        names |= {f"kernel_size[{k}]": n for k, n in enumerate(self.kernel_size)}
        c, o, *k = places_of(index, names, f"{self._title}.slice")
        leaves = {name: t for name, t in params.items() if name != "bias"}
        cut = self._kind.cut(leaves, self.n_layers, *self._modes, [c], [*k, o])
        if self.bias:
            cut["bias"] = taken(params["bias"], params["bias"].ndim - 1, o)
        sizes = {"in_channels": len(c), "out_channels": len(o), "kernel_size": tuple(map(len, k))}
        return self._with(self.ranks, **sizes), {name: cut[name].clone() for name in params}

    @typed
    def transduct(self, params: Params, size: int, mode: int = 0) -> tuple[Self, dict[str, Tensor]]:
        """The spec and params with an axis of space more, of that size: the kernel at its middle, zeros elsewhere.

        mode: the place that it will have in kernel_size; -1 is the last.  The middle is place (size - 1) // 2, so that with
        padding="same" every frame of a video has the result that it would have as an image, and with padding 0 those that
        have enough neighbours.  One small leaf comes along, and ranks stay.  The zeros are free params: training fills
        them.  The params share no memory with the given ones.

        ValueError or TypeError for a size below 1, a mode beyond the places there are, or a kernel of 3 axes, as torch has no
        convolution of 4.

        >>> import torch, linmaps
        >>> spec = linmaps.FactorizedConv(3, 8, (3, 3), factorization="cp", rank=4)
        >>> params = spec.init(torch.Generator().manual_seed(0))
        >>> longer, leaves = spec.transduct(params, 5)
        >>> longer.kernel_size, longer.n_params - spec.n_params
        ((5, 3, 3), 20)
        >>> video = torch.randn(2, 3, 7, 9, 9, generator=torch.Generator().manual_seed(1))
        >>> y = longer.apply_conv(leaves, video, padding="same")
        >>> torch.allclose(y[:, :, 4], spec.apply_conv(params, video[:, :, 4], padding="same"), atol=1e-6)
        True
        """
        self._check(params)
        title, n = f"{self._title}.transduct", len(self.kernel_size)
        check_size(size, f"{title}: size", 1)
        if n == 3:
            raise ValueError(f"{title}: the kernel has 3 axes already, expected 1 or 2; torch has no convolution of 4")
        at = place_of(mode, n, title)
        self._check_room(int(size) * self.n_params, "parameters", "a smaller size")
        leaves = {name: t for name, t in params.items() if name != "bias"}
        ranks, longer = self._kind.insert(leaves, self.ranks, self.n_layers, *self._modes, int(size), "in", at)
        spec = self._with(ranks, kernel_size=tuple(before(self.kernel_size, at, int(size))))
        longer |= {"bias": params["bias"]} if self.bias else {}
        return spec, {name: longer[name].clone() for name in spec.shapes()}
