"""What a factorized convolution computes: its kernel, itself by the cheaper way, and what that costs.

x is [B, in, *space], results are [B, out, *space'], kernels [(L,) out, in, *k]; L layers.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from linmaps.base import Use, matrix, product
from linmaps.checks import Params, Shape, size
from linmaps.checks.annotations import typed
from linmaps.factorized.convolutions.axes import Option, Padding, axes_of, check_x, space_after
from linmaps.factorized.convolutions.costs import ConvPlan, chosen, ways_of
from linmaps.factorized.convolutions.kernels import put_together
from linmaps.factorized.convolutions.stages import convolve
from linmaps.factorized.kinds import Kind
from linmaps.factorized.kinds.joint import Joint, Layer
from linmaps.factorized.kinds.names import Implementation
from linmaps.numerics.dtypes import working_dtype

costs_of = functools.lru_cache(maxsize=4096)(ways_of)


class ConvProducts(Joint):
    """What a factorized convolution computes, with the kernel put together only where that costs less."""

    if TYPE_CHECKING:
        in_channels: int
        out_channels: int
        kernel_size: Shape
        factorization: str
        implementation: Implementation

        @property
        def _kind(self) -> Kind: ...

        @property
        def _tensor(self) -> Shape: ...

    @property
    def _modes(self) -> tuple[Shape, Shape]:
        return self._tensor[:1], self._tensor[1:]  # what a kind calls out and in shape

    def plan(
        self,
        x_shape: tuple[int, ...],
        *,
        stride: Option = 1,
        padding: Option | Padding = 0,
        dilation: Option = 1,
        dtype: torch.dtype | None = None,
    ) -> ConvPlan:
        """What `apply_conv` of one layer to an x of this shape costs either way, and the way that it takes; from sizes alone.

        Parameters, multiply-adds, bytes read and written, bytes held at most beside x and params (within a factor of 1.5),
        operations, and the time by a model of these, relative to a convolution with a kernel that is there (the ratio of the
        two ways within a factor of three of what is measured on a processor core); the forward pass alone.
        dtype: of x, torch's default unless given; half precision is computed in float32, and counted so.

        ValueError or TypeError for what `apply_conv` refuses.

        >>> import linmaps
        >>> linmaps.FactorizedConv(64, 64, (3, 3), factorization="tucker", rank=0.1).plan(
        ...     (8, 64, 32, 32), padding="same"
        ... )
        x [8, 64, 32, 32]  parameters  multiply-adds  bytes moved  bytes at peak  operations  time
        ...
        """
        title, n = f"{self._title}.plan", len(self.kernel_size)
        shape, c = tuple(x_shape), self.in_channels
        fine = len(shape) in (n + 1, n + 2) and shape[-n - 1] == c
        if not fine:
            raise ValueError(
                f"{title}: x_shape is {shape}, expected [B, {c}, *space] or [{c}, *space] with {n} sizes of space"
            )
        for k, s in enumerate(shape):
            size(s, f"{title}: x_shape[{k}]", 0)
        axes = axes_of(self.kernel_size, stride, padding, dilation, title)
        after = space_after(shape[-n:], self.kernel_size, axes, title)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        found = self._costs(shape, after)
        return ConvPlan(shape, found, chosen(found, self.implementation), working_dtype(dtype).itemsize)

    def _costs(self, shape: Shape, after: Shape) -> Any:
        n = len(self.kernel_size)
        return costs_of(
            self.factorization, self._layer_ranks, self._tensor, math.prod(shape[: -n - 1]), tuple(shape[-n:]), after
        )

    @typed
    def kernel(self, params: Params, layer: Layer = None) -> Tensor:
        """The kernel [out, in, *k], as torch's convolutions take it.

        Of several layers [L, out, in, *k], or that of one `layer`, or [K, out, in, *k] of K of them.

        ValueError or TypeError for params that do not have the leaves and shapes of `shapes()`.

        >>> import torch, linmaps
        >>> spec = linmaps.FactorizedConv(4, 8, (3, 5), rank=2, n_layers=3)
        >>> params = spec.init(torch.Generator().manual_seed(0))
        >>> spec.kernel(params).shape, spec.kernel(params, 1).shape
        (torch.Size([3, 8, 4, 3, 5]), torch.Size([8, 4, 3, 5]))
        """
        self._check(params)
        if layer is None:
            lends = ("bias",) if self.bias else ()
            return matrix(Use("factorized_conv", lambda params, x: x, self._kernels, (), lends=lends), params)
        return self._over(lambda one: self._kernel(self._leaves(params, one)), self._index(layer, params))

    def _kernels(self, params: Params) -> Tensor:
        if self.n_layers == 1:
            return self._kernel(params)
        every = torch.arange(self.n_layers, device=next(iter(params.values())).device)
        return torch.func.vmap(lambda one: self._kernel(self._leaves(params, one)))(every)

    def _kernel(self, params: Params) -> Tensor:
        leaves = {name: t.to(working_dtype(t.dtype)) for name, t in params.items()}
        return put_together(leaves, self.factorization, self._tensor).to(next(iter(params.values())).dtype)

    @typed
    def apply_conv(
        self,
        params: Params,
        x: Tensor,
        layer: Layer = None,
        *,
        stride: Option = 1,
        padding: Option | Padding = 0,
        dilation: Option = 1,
    ) -> Tensor:
        """`conv(x, K) + b` [B, out, *space'] for x [B, in, *space], or without B, equal to torch's convolution with K.

        stride, padding and dilation are ints or tuples of n; padding also "valid", or "same" for a result of the size of x
        (then stride 1; of an odd number of zeros the larger half comes behind).  Half precision is computed in float32 and
        cast back.
        layer: needed for several layers; a sequence or 1-d tensor of K gives [K, B, out, *space'].

        ValueError or TypeError for params of another spec, options out of range, x of another dtype than params, of
        another shape, or too small for the kernel, or no layer where there are several.

        >>> import torch, linmaps
        >>> spec = linmaps.FactorizedConv(4, 8, (3,), factorization="tt", rank=2)
        >>> params = spec.init(torch.Generator().manual_seed(0))
        >>> spec.apply_conv(params, torch.ones(2, 4, 10), padding="same").shape
        torch.Size([2, 8, 10])
        """
        self._check(params)
        title, n = f"{self._title}.apply_conv", len(self.kernel_size)
        check_x(x, self.in_channels, n, {t.dtype for t in params.values()}, title)
        axes = axes_of(self.kernel_size, stride, padding, dilation, title)
        space = space_after(x.shape[-n:], self.kernel_size, axes, title)
        found = self._index(layer, params)
        if 0 in x.shape:  # torch's convolutions have no reverse derivative of an empty batch; here each leaf has one
            nothing = x.sum(dim=tuple(range(1, n + 2)), keepdim=True) + sum(t.sum() for t in params.values())
            several = (len(found),) if isinstance(found, Tensor) and found.ndim else ()
            return nothing.expand(*several, 0, self.out_channels, *space)
        rest = (None, stride, padding, dilation)
        call, bias = getattr(torch.nn.functional, f"conv{n}d"), "bias" if self.bias else None
        shape, lends = (self.out_channels, self.in_channels, *self.kernel_size), ("bias",) if self.bias else ()
        run = lambda params, x: self._convolved(params, x, axes, space)
        use = Use("factorized_conv", run, self._kernel, shape, call, rest, bias, lends)
        return self._over(lambda one: product(use, self._of_layer(params, one), x), found)

    def _of_layer(self, params: Params, layer: int | Tensor) -> Params:
        """Leaves, the bias among them, of one layer."""
        if self.n_layers == 1:
            return params
        leaves = self._kind.select({k: t for k, t in params.items() if k != "bias"}, layer)
        return leaves | ({"bias": params["bias"][layer]} if self.bias else {})

    def _convolved(self, params: Params, x: Tensor, axes: Any, space: Shape) -> Tensor:
        how = (self.factorization, self._layer_ranks, self._tensor)
        way = chosen(self._costs(tuple(x.shape), space), self.implementation)
        leaves = {name: t.to(working_dtype(t.dtype)) for name, t in params.items()}
        if way == "reconstructed":
            K = put_together(leaves, self.factorization, self._tensor)
            how, leaves = ("dense", None, self._tensor), {**leaves, "kernel": K}
        return convolve(x.to(working_dtype(x.dtype)), *how, leaves, axes).to(x.dtype)
