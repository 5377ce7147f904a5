"""Convolutions whose operator norm is bounded at every size of x.  x [B, in, *space], kernels [out, in, *k].

n = 1, 2, 3 axes of space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base import Use, matrix, product
from linmaps.base.checked import Checked
from linmaps.checks import Params, Shape
from linmaps.checks.annotations import typed
from linmaps.factorized.convolutions.axes import Axis, Option, Padding, axes_of, check_x, space_after
from linmaps.factorized.convolutions.kernels import check_kernel
from linmaps.factorized.convolutions.stages import convolve
from linmaps.factorized.convolutions.symbols import norm_above, scaled_to
from linmaps.numerics.draws import uniform
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.numeric import frobenius, nan_where
from linmaps.numerics.ranges import relu


@trees.static
@dataclass(frozen=True)
class LipschitzConv(Checked):
    """A convolution of 1 to 3 axes with |conv(x) - conv(x')| <= bound |x - x'| in Euclidean norm, for x of every size.

        K = kernel * bound / max(bound, B(kernel)),   B(kernel) >= the operator norm

    with the leaf "kernel" [out, in, *k].  B is a bound from the Fourier transform of the kernel, proved for all sizes of x,
    with rounding, in `linmaps.factorized.convolutions.symbols`.  It holds with zeros around x (or none, "valid"), around a circle
    (padding_mode="circular" of torch's modules, of dilation (k - 1) entries in all at most), for any stride and dilation, and for
    the transposed convolution; not where padding repeats x ("reflect", "replicate"), or outputs.  Every kernel with B <= bound
    is reached, and left as it is; another is scaled.

    kernel: a tuple of n ints, or an int k for (k, k).  bias: adds a leaf "bias" [out], which moves no distance.

    How tight: the norm at large sizes is 0.95 B or more for 2 axes and 64 channels at most, 0.87 for more channels, 0.99 for
    1 axis, 0.85 and 0.77 for 3; of strided convolutions it may be less.  Cost of a call: for 3 x 3 kernels of c <= 64 channels
    1000 products of complex c x c matrices, 360 of more, whatever the size of x; the derivative costs a few.  Take
    `effective_kernel` once where the params stay.

    ValueError or TypeError at construction for sizes out of range, or a bound that is not a finite number > 0.

    Source: Sedghi, Gupta and Long, arXiv:1805.10408 (the symbol); Pfister and Bresler 2018 (bounds from a grid); Delattre,
    Barthelemy, Araujo and Allauzen, arXiv:2305.16173 (norms by squaring).

    >>> import torch
    >>> spec = LipschitzConv(3, 8, 5, bound=2.0)
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> x = torch.randn(1, 3, 40, 60, generator=torch.Generator().manual_seed(1))
    >>> bool(spec.apply_conv(params, x, stride=2, padding=2).norm() <= 2 * x.norm())
    True
    """

    in_channels: int
    out_channels: int
    kernel: int | tuple[int, ...]
    bound: float = 1.0
    bias: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for key in ("in_channels", "out_channels"):
            self._expect_int(key, 1, None)
        k: Any = self.kernel
        k = (k, k) if type(k) is int else k
        fine = isinstance(k, (tuple, list)) and all(type(s) is int for s in k)
        self._expect(fine, "kernel", "an int k for (k, k), or a tuple of ints, one for each axis", error=TypeError)
        self._expect(1 <= len(k) <= 3 and min(k) >= 1, "kernel", "1 to 3 positive ints")
        self._expect_number("bound", 0, above=True)
        self._expect(isinstance(self.bias, bool), "bias", "a bool", error=TypeError)
        object.__setattr__(self, "kernel", tuple(k))

    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each leaf of params.

        >>> LipschitzConv(4, 8, (3,), bias=True).shapes()
        {'kernel': (8, 4, 3), 'bias': (8,)}
        """
        return {"kernel": self._shape} | ({"bias": (self.out_channels,)} if self.bias else {})

    @property
    def n_params(self) -> int:
        """Number of trainable entries.

        >>> LipschitzConv(4, 8, 3).n_params
        288
        """
        return sum(math.prod(shape) for shape in self.shapes().values())

    @typed
    def init(
        self, generator: torch.Generator, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> dict[str, Tensor]:
        """The kernel U(-b, b), b = 1/sqrt(in prod(k)), as torch's convolutions, scaled down to B = 0.95 bound if it is above.

        "bias" is U(-b, b).  dtype: a real floating one, torch's default unless given; drawn on the generator's device.

        TypeError without a torch.Generator, or for another dtype.

        >>> import torch
        >>> LipschitzConv(4, 8, (3,)).init(torch.Generator().manual_seed(0))["kernel"].shape
        torch.Size([8, 4, 3])
        """
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"{self._title}.init: generator is {type(generator).__name__}, expected a torch.Generator; "
                "pass torch.Generator().manual_seed(seed)"
            )
        self._check_room(self.n_params, "parameters")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"{self._title}.init: dtype is {dtype}, expected a real floating torch.dtype")
        b = (self.in_channels * math.prod(self._sizes)) ** -0.5
        params = {key: uniform(generator, shape, b, working_dtype(dtype)) for key, shape in self.shapes().items()}
        params["kernel"] = scaled_to(params["kernel"], 0.95 * self.bound, dtype)
        return {key: t.to(device=device, dtype=dtype) for key, t in params.items()}

    @typed
    def effective_kernel(self, params: Params) -> Tensor:
        """The kernel K [out, in, *k], as torch's convolutions take it.

        ValueError or TypeError for params that do not have the leaves and shapes of `shapes()`.

        >>> import torch
        >>> LipschitzConv(1, 1, (3,)).effective_kernel({"kernel": torch.tensor([[[0.1, 0.2, 0.3]]])})
        tensor([[[0.1000, 0.2000, 0.3000]]])
        >>> LipschitzConv(1, 1, (3,)).effective_kernel({"kernel": torch.tensor([[[10.0, 20.0, 30.0]]])})
        tensor([[[0.1665, 0.3329, 0.4994]]])
        """
        self._check(params)
        return matrix(Use("lipschitz_conv", lambda params, x: x, self._kernel, (), lends=self._lends), params)

    @typed
    def apply_conv(
        self, params: Params, x: Tensor, *, stride: Option = 1, padding: Option | Padding = 0, dilation: Option = 1
    ) -> Tensor:
        """`conv(x, K) + b` [B, out, *space'] for x [B, in, *space], or without B, equal to torch's convolution with K.

        stride, padding and dilation as in `FactorizedConv.apply_conv`.

        ValueError or TypeError for params of another spec, options out of range, x of another dtype than params, of
        another shape, or too small for the kernel.

        >>> import torch
        >>> spec = LipschitzConv(4, 8, 3)
        >>> spec.apply_conv(spec.init(torch.Generator()), torch.ones(2, 4, 9, 9), padding="same").shape
        torch.Size([2, 8, 9, 9])
        """
        self._check(params)
        title, n = f"{self._title}.apply_conv", len(self._sizes)
        check_x(x, self.in_channels, n, {t.dtype for t in params.values()}, title)
        axes = axes_of(self._sizes, stride, padding, dilation, title)
        space = space_after(x.shape[-n:], self._sizes, axes, title)
        if 0 in x.shape:  # torch's convolutions have no reverse derivative of an empty batch; here each leaf has one
            nothing = x.sum(dim=tuple(range(1, n + 2)), keepdim=True) + sum(t.sum() for t in params.values())
            return nothing.expand(0, self.out_channels, *space)
        run = lambda params, x: self._convolved(params, x, axes)
        rest = (None, stride, padding, dilation)
        call, bias = getattr(torch.nn.functional, f"conv{n}d"), "bias" if self.bias else None
        use = Use("lipschitz_conv", run, self._kernel, self._shape, call, rest, bias, self._lends)
        return product(use, params, x)

    @typed
    def from_kernel(self, kernel: Tensor, *, bias: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Params whose kernel is a given one [out, in, *k] where its B is at most the bound, else that scaled to it.

        Returns them, and the distance `|effective_kernel(params) - kernel|` in Frobenius norm.  bias: zeros unless given.

        ValueError or TypeError for another shape, a dtype that is not real floating, or a bias for a spec without one.

        >>> import torch
        >>> spec = LipschitzConv(2, 4, (3,))
        >>> params, distance = spec.from_kernel(0.01 * torch.ones(4, 2, 3))
        >>> bool((params["kernel"] == 0.01).all()), distance
        (True, tensor(0.))
        """
        title = f"{self._title}.from_kernel"
        check_kernel(kernel, self._shape, title, complex_too=False)
        if bias is not None and not (self.bias and tuple(bias.shape) == (self.out_channels,)):
            expected = f"shape ({self.out_channels},)" if self.bias else "None, since the spec has bias=False"
            raise ValueError(f"{title}: bias has shape {tuple(bias.shape)}, expected {expected}")
        params = {"kernel": self._kernel({"kernel": kernel}).clone()}
        if self.bias:
            params["bias"] = kernel.new_zeros(self.out_channels) if bias is None else bias.clone()
        return params, frobenius(self._kernel(params) - kernel)

    @typed
    def violation(self, kernel: Tensor) -> Tensor:
        """What B of a kernel [out, in, *k] exceeds the bound by, a scalar >= 0.

        0, up to rounding, is a proof that the convolution keeps the promise.  A number above 0 may be one of a kernel that
        keeps it all the same: B is a few percent above the norm, see the class.

        ValueError or TypeError for another shape, or a dtype that is not real floating.

        >>> import torch
        >>> LipschitzConv(1, 1, (3,), bound=2.0).violation(torch.ones(1, 1, 3))
        tensor(1.0036)
        """
        check_kernel(kernel, self._shape, f"{self._title}.violation", complex_too=False)
        B = norm_above(kernel.to(working_dtype(kernel.dtype)))
        return nan_where([kernel], relu(B - self.bound)).to(kernel.dtype)

    def _kernel(self, params: Params) -> Tensor:
        kernel: Tensor = params["kernel"]
        return scaled_to(kernel.to(working_dtype(kernel.dtype)), self.bound, kernel.dtype).to(kernel.dtype)

    def _convolved(self, params: Params, x: Tensor, axes: list[Axis]) -> Tensor:
        raised = {key: t.to(working_dtype(t.dtype)) for key, t in params.items()}
        leaves = {**raised, "kernel": self._kernel(params).to(working_dtype(x.dtype))}
        sizes = (self.in_channels, *self._sizes, self.out_channels)
        return convolve(x.to(working_dtype(x.dtype)), "dense", None, sizes, leaves, axes).to(x.dtype)

    @property
    def _sizes(self) -> Shape:
        sizes: Any = self.kernel
        return tuple(sizes)

    @property
    def _shape(self) -> Shape:
        return (self.out_channels, self.in_channels, *self._sizes)

    @property
    def _lends(self) -> tuple[str, ...]:
        return ("bias",) if self.bias else ()

    @property
    def _title(self) -> str:
        return f"LipschitzConv({self.in_channels}, {self.out_channels}, {self.kernel})"

    def _check(self, params: Params) -> None:
        super()._check(params)
        if any(t.is_complex() for t in params.values()):
            raise TypeError(f"{self._title}: leaves are complex, expected real ones; its bound is that of real kernels")

    def _refuse(self, params: Params, shapes: dict[str, Any]) -> None:
        if isinstance(params, Mapping) and {k: tuple(getattr(t, "shape", ()))[1:] for k, t in params.items()} == shapes:
            raise ValueError(
                f"{self._title}: leaves have a leading axis, expected shapes {shapes}; for an ensemble use "
                "torch.func.vmap(spec.apply_conv)(stacked, xs)"
            )
        super()._refuse(params, shapes)
