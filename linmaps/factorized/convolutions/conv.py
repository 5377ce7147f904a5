"""Convolutions with a factorized kernel, done as a sequence of small convolutions or with the kernel put together.

The kernel K [out, in, *k] is kept as a tensor T with modes (in, k_1..k_n, out), n = 1, 2, 3 axes of space.  x is
[B, in, *space], results are [B, out, *space'].  R and r_k ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base import Use, matrix, product
from linmaps.base.checked import Checked
from linmaps.checks import Params, Shape
from linmaps.checks.annotations import typed
from linmaps.factorized.convolutions.axes import Option, Padding, axes_of, check_x, space_after
from linmaps.factorized.convolutions.kernels import COMPLEX, check_kernel, decomposed, named, put_together
from linmaps.factorized.convolutions.stages import convolve, multiplications
from linmaps.factorized.kinds import KINDS
from linmaps.factorized.kinds.names import IMPLEMENTATIONS, Implementation
from linmaps.factorized.tensors.ranks import Rank, fraction
from linmaps.numerics.draws import uniform
from linmaps.numerics.dtypes import working_dtype

ConvFactorization = Literal["cp", "tucker", "tt", "dense"]
FACTORIZATIONS = get_args(ConvFactorization)


@trees.static
@dataclass(frozen=True)
class FactorizedConv(Checked):
    """A convolution of 1 to 3 axes, `y = conv(x, K) + b` as torch's conv1d, 2d and 3d, whose kernel K is factorized.

    T[c, j_1..j_n, o] = K[o, c, j_1..j_n] is factorized, with leaves and sequence of convolutions

        "cp"      "weights" [R], "U0" [in, R], "Uk" [k_k, R], .. [out, R]
                  1x1 in -> R, along each axis one on each of the R channels by itself, times weights, 1x1 R -> out
        "tucker"  "core" [r_in, r_1..r_n, r_out], "U0" [in, r_in], .. [out, r_out]
                  1x1 in -> r_in, one of n axes r_in -> r_out, 1x1 r_out -> out
        "tt"      "A0" [1, in, r_1], "Ak" [r_k, k_k, r_{k+1}], .. [r_{n+1}, out, 1]
                  1x1 in -> r_1, along each axis one r_k -> r_{k+1}, 1x1 r_{n+1} -> out
        "dense"   "kernel" [out, in, *k]

    and "bias" [out].  kernel_size: a tuple of n ints.  rank: "same", a fraction of the dense number of parameters (a
    ceiling below 1), an int, or a tuple; `ranks` is what comes of it, cut to what the sizes can use.  implementation:
    "factorized" for the sequence, "reconstructed" to put K together at each call, "auto" for the one with fewer
    multiplications, counted from the sizes alone (`convolutions.stages.multiplications`).  Groups are no option: give
    in_channels / G here, and `kernel(params)` to torch's own convolution with groups=G.

    ValueError or TypeError at construction for sizes, ranks or names out of range.  Source: Lebedev et al. 2015 (CP), Kim
    et al. 2016 (Tucker), Oseledets 2011 (TT).

    >>> import torch
    >>> spec = FactorizedConv(16, 32, (3, 3), factorization="tucker", rank=0.2)
    >>> spec.ranks, spec.n_params, round(spec.ratio, 3)
    ((8, 2, 1, 16), 937, 0.196)
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> x = torch.randn(5, 16, 9, 9, generator=torch.Generator().manual_seed(1))
    >>> y = torch.nn.functional.conv2d(x, spec.kernel(params), params["bias"], stride=2, padding=1)
    >>> torch.allclose(spec.apply_conv(params, x, stride=2, padding=1), y, atol=1e-5)
    True
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    factorization: ConvFactorization = field(default="cp", kw_only=True)
    rank: Rank = field(default="same", kw_only=True)
    bias: bool = field(default=True, kw_only=True)
    implementation: Implementation = field(default="auto", kw_only=True)
    ranks: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for key in ("in_channels", "out_channels"):
            self._expect_int(key, 1, None)
        k = self.kernel_size
        fine = isinstance(k, (tuple, list)) and all(type(s) is int for s in k)
        self._expect(fine, "kernel_size", "a tuple of ints, one for each axis, as (3, 3)", error=TypeError)
        self._expect(1 <= len(k) <= 3 and min(k) >= 1, "kernel_size", "1 to 3 positive ints")
        for key, names in (("factorization", FACTORIZATIONS), ("implementation", IMPLEMENTATIONS)):
            self._expect(getattr(self, key) in names, key, f"one of {', '.join(names)}")
        self._expect(isinstance(self.bias, bool), "bias", "a bool", error=TypeError)
        object.__setattr__(self, "kernel_size", tuple(k))
        object.__setattr__(self, "rank", tuple(self.rank) if isinstance(self.rank, list) else self.rank)
        fraction(self.rank, self._title)
        object.__setattr__(self, "ranks", self._kind.ranks(self.rank, 1, *self._modes))

    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each leaf of params.

        >>> FactorizedConv(4, 8, (3,), factorization="tt", rank=2).shapes()
        {'A0': (1, 4, 2), 'A1': (2, 3, 2), 'A2': (2, 8, 1), 'bias': (8,)}
        """
        dense = self.factorization == "dense"
        kernel = (self.out_channels, self.in_channels, *self.kernel_size)
        leaves = {"kernel": kernel} if dense else self._kind.shapes(self.ranks, 1, *self._modes)
        return leaves | ({"bias": (self.out_channels,)} if self.bias else {})

    @property
    def n_params(self) -> int:
        """Number of trainable entries.

        >>> FactorizedConv(4, 8, (3,), factorization="dense").n_params
        104
        """
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def ratio(self) -> float:
        """Entries of the factorization by entries of the kernel; the bias does not count.

        >>> FactorizedConv(4, 8, (3,), factorization="cp", rank=3).ratio
        0.5
        """
        return (self.n_params - self.bias * self.out_channels) / math.prod(self._tensor)

    @typed
    def init(
        self, generator: torch.Generator, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> dict[str, Tensor]:
        """Normal leaves, scaled so that the kernel's entries have mean square 1 / (3 in prod(k)), exactly.

        That is the variance of torch's convolutions.  "bias" is U(-b, b), b = 1/sqrt(in prod(k)), of a complex dtype both
        parts U(-b, b) / sqrt(2).  dtype: torch's default unless given; numbers are drawn on the generator's device.

        TypeError without a torch.Generator, or for a dtype that is neither real floating nor complex64 or complex128.

        >>> import torch
        >>> spec = FactorizedConv(4, 8, (3,), factorization="tt", rank=2)
        >>> K = spec.kernel(spec.init(torch.Generator().manual_seed(0)))
        >>> round(K.square().mean().item() * 3 * 4 * 3, 4)
        1.0
        """
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"{self._title}.init: generator is {type(generator).__name__}, expected a torch.Generator; "
                "pass torch.Generator().manual_seed(seed)"
            )
        self._check_room(self.n_params, "parameters")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not (isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype in COMPLEX)):
            raise TypeError(f"{self._title}.init: dtype is {dtype}, expected a floating or complex torch.dtype")
        raised, fan = working_dtype(dtype), self.in_channels * math.prod(self.kernel_size)
        leaves = self._kind.init(generator, self.ranks, 1, *self._modes, 1 / math.sqrt(3 * fan), raised)
        params = named(leaves, self.factorization, self._tensor)
        if self.bias and raised.is_complex:
            parts = uniform(generator, (self.out_channels, 2), 1 / math.sqrt(2 * fan), raised.to_real())
            params["bias"] = torch.view_as_complex(parts)
        elif self.bias:
            params["bias"] = uniform(generator, (self.out_channels,), 1 / math.sqrt(fan), raised)
        return {name: t.contiguous().to(device=device, dtype=dtype) for name, t in params.items()}

    @typed
    def kernel(self, params: Params) -> Tensor:
        """The kernel [out, in, *k], as torch's convolutions take it.

        ValueError or TypeError for params that do not have the leaves and shapes of `shapes()`.

        >>> import torch
        >>> spec = FactorizedConv(4, 8, (3, 5), rank=2)
        >>> spec.kernel(spec.init(torch.Generator().manual_seed(0))).shape
        torch.Size([8, 4, 3, 5])
        """
        self._check(params)
        lends = ("bias",) if self.bias else ()
        return matrix(Use("factorized_conv", lambda params, x: x, self._kernel, (), lends=lends), params)

    def _kernel(self, params: Params) -> Tensor:
        leaves = {name: t.to(working_dtype(t.dtype)) for name, t in params.items()}
        return put_together(leaves, self.factorization, self._tensor).to(next(iter(params.values())).dtype)

    @typed
    def apply_conv(
        self, params: Params, x: Tensor, *, stride: Option = 1, padding: Option | Padding = 0, dilation: Option = 1
    ) -> Tensor:
        """`conv(x, K) + b` [B, out, *space'] for x [B, in, *space], or without B, equal to torch's convolution with K.

        stride, padding and dilation are ints or tuples of n; padding also "valid", or "same" for a result of the size of x
        (then stride 1; of an odd number of zeros the larger half comes behind).  Half precision is computed in float32 and
        cast back.

        ValueError or TypeError for params of another spec, options out of range, x of another dtype than params, of
        another shape, or too small for the kernel.

        >>> import torch
        >>> spec = FactorizedConv(4, 8, (3,), factorization="tt", rank=2)
        >>> params = spec.init(torch.Generator().manual_seed(0))
        >>> spec.apply_conv(params, torch.ones(2, 4, 10), padding="same").shape
        torch.Size([2, 8, 10])
        """
        self._check(params)
        title, n = f"{self._title}.apply_conv", len(self.kernel_size)
        check_x(x, self.in_channels, n, {t.dtype for t in params.values()}, title)
        axes = axes_of(self.kernel_size, stride, padding, dilation, title)
        space = space_after(x.shape[-n:], self.kernel_size, axes, title)
        if 0 in x.shape:  # torch's convolutions have no reverse derivative of an empty batch; here each leaf has one
            nothing = x.sum(dim=tuple(range(1, n + 2)), keepdim=True) + sum(t.sum() for t in params.values())
            return nothing.expand(0, self.out_channels, *space)
        run = lambda params, x: self._convolved(params, x, axes, space)
        rest = (None, stride, padding, dilation)
        call, bias = getattr(torch.nn.functional, f"conv{n}d"), "bias" if self.bias else None
        shape, lends = (self.out_channels, self.in_channels, *self.kernel_size), ("bias",) if self.bias else ()
        return product(Use("factorized_conv", run, self._kernel, shape, call, rest, bias, lends), params, x)

    def _convolved(self, params: Params, x: Tensor, axes: Any, space: Shape) -> Tensor:
        way: str = self.implementation
        how, n = (self.factorization, self.ranks, self._tensor), len(space)
        if way == "auto":
            counts = multiplications(*how, math.prod(x.shape[: -n - 1]), x.shape[-n:], space)
            way = min(counts, key=lambda name: counts[name])
        leaves = {name: t.to(working_dtype(t.dtype)) for name, t in params.items()}
        if way == "reconstructed":
            K = put_together(leaves, self.factorization, self._tensor)
            how, leaves = ("dense", None, self._tensor), {**leaves, "kernel": K}
        return convolve(x.to(working_dtype(x.dtype)), *how, leaves, axes).to(x.dtype)

    @typed
    def from_kernel(
        self, kernel: Tensor, *, bias: Tensor | None = None, n_sweeps: int | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Params whose kernel is near a given one [out, in, *k], and the distance `|kernel(params) - kernel|`.

        By alternating least squares (CP), higher-order orthogonal iteration (Tucker), or truncated singular value
        decompositions (tensor train); at full ranks the latter two are exact.  n_sweeps: of the first two, None for their
        default.  bias: zeros unless given.  The params share no memory with the arguments.

        ValueError or TypeError for another shape, an integer dtype, a bias for a spec without one, or sweeps for a kind that
        has none.

        >>> import torch
        >>> spec = FactorizedConv(2, 4, (3,), factorization="tt", rank="same", bias=False)
        >>> params, distance = spec.from_kernel(torch.arange(24.0).reshape(4, 2, 3))
        >>> bool(distance < 1e-4)
        True
        """
        title, shape = f"{self._title}.from_kernel", (self.out_channels, self.in_channels, *self.kernel_size)
        check_kernel(kernel, shape, title)
        if bias is not None and not (self.bias and tuple(bias.shape) == (self.out_channels,)):
            expected = f"shape ({self.out_channels},)" if self.bias else "None, since the spec has bias=False"
            raise ValueError(f"{title}: bias has shape {tuple(bias.shape)}, expected {expected}")
        if n_sweeps is not None and self.factorization not in ("cp", "tucker"):
            raise ValueError(f"{title}: n_sweeps is {n_sweeps}, expected None for {self.factorization!r}")
        raised = kernel.to(working_dtype(kernel.dtype))
        params, gap = decomposed(raised, self.factorization, self.ranks, self._tensor, n_sweeps)
        if self.bias:
            params["bias"] = kernel.new_zeros(self.out_channels) if bias is None else bias.clone()
        params = {name: t.contiguous().to(kernel.dtype) for name, t in params.items()}
        return params, gap.to(kernel.dtype.to_real())

    @property
    def _kind(self) -> Any:
        return KINDS[self.factorization]

    @property
    def _tensor(self) -> Shape:
        return (self.in_channels, *self.kernel_size, self.out_channels)

    @property
    def _modes(self) -> tuple[Shape, Shape]:
        return self._tensor[:1], self._tensor[1:]  # what a kind calls out and in shape

    @property
    def _title(self) -> str:
        return f"FactorizedConv({self.in_channels}, {self.out_channels}, {self.kernel_size})"

    def _refuse(self, params: Params, shapes: dict[str, Any]) -> None:
        if isinstance(params, Mapping) and {k: tuple(getattr(t, "shape", ()))[1:] for k, t in params.items()} == shapes:
            raise ValueError(
                f"{self._title}: leaves have a leading axis, expected shapes {shapes}; for an ensemble use "
                "torch.func.vmap(spec.apply_conv)(stacked, xs)"
            )
        super()._refuse(params, shapes)
