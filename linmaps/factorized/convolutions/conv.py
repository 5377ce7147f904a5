"""The spec of a convolution with a factorized kernel, or of several whose kernels share factors.

L layers; the kernel K [out, in, *k] is kept as a tensor T with modes ((L,) in, k_1..k_n, out), n = 1, 2, 3 axes of space.
x is [B, in, *space], results are [B, out, *space'].  R and r_k ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from linmaps import trees
from linmaps.checks import Params, Shape
from linmaps.checks.annotations import typed
from linmaps.factorized.convolutions.kernels import COMPLEX, CONV_KINDS, check_kernel, decomposed
from linmaps.factorized.convolutions.reshaping import ConvReshaped
from linmaps.factorized.kinds import Fitting, Kind
from linmaps.factorized.kinds.names import IMPLEMENTATIONS, Implementation
from linmaps.factorized.tensors.ranks import Rank, fraction
from linmaps.numerics.draws import uniform
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.numeric import frobenius

ConvFactorization = Literal["cp", "tucker", "tt", "dense"]
FACTORIZATIONS = get_args(ConvFactorization)


@trees.static
@dataclass(frozen=True)
class FactorizedConv(ConvReshaped):
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
    "factorized" for the sequence, "reconstructed" to put K together at each call, "auto" for the one that takes less
    time by a model of multiply-adds, bytes and operations, from the sizes alone (`plan(x_shape)` prints it).
    n_layers: L kernels of one joint tensor, with L as its first mode, and a bias for each: "U0" is then [L, R] or [L, r_0],
    "A0" [1, L, r_1], the other numbers go up by one, and layers share all leaves but the first; "kernel" and "bias" have L in
    front.  Then `apply_conv` and `kernel` take a `layer`, and `select` gives a spec of one layer.
    compat: ranks given as ints are taken as they are, beyond what the sizes can use, and fractions as in tensorly-torch.
    Groups are no option: give in_channels / G here, and `kernel(params)` to torch's own convolution with groups=G.

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
    n_layers: int = field(default=1, kw_only=True)
    compat: bool = field(default=False, kw_only=True)
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
        for key in ("bias", "compat"):
            self._expect(isinstance(getattr(self, key), bool), key, "a bool", error=TypeError)
        self._expect_int("n_layers", 1, None)
        object.__setattr__(self, "kernel_size", tuple(k))
        object.__setattr__(self, "rank", tuple(self.rank) if isinstance(self.rank, list) else self.rank)
        fraction(self.rank, self._title)
        object.__setattr__(self, "ranks", self._kind.ranks(self.rank, self.n_layers, *self._modes, self.compat))

    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each leaf of params.

        >>> FactorizedConv(4, 8, (3,), factorization="tt", rank=2).shapes()
        {'A0': (1, 4, 2), 'A1': (2, 3, 2), 'A2': (2, 8, 1), 'bias': (8,)}
        """
        leaves = self._kind.shapes(self.ranks, self.n_layers, *self._modes)
        return leaves | ({"bias": (*self._lead, self.out_channels)} if self.bias else {})

    @property
    def n_params(self) -> int:
        """Number of trainable entries.

        >>> FactorizedConv(4, 8, (3,), factorization="dense").n_params
        104
        """
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def ratio(self) -> float:
        """Entries of the factorization by entries of the kernel, or of all kernels; the bias does not count.

        >>> FactorizedConv(4, 8, (3,), factorization="cp", rank=3).ratio
        0.5
        """
        bias = self.bias * self.n_layers * self.out_channels
        return (self.n_params - bias) / (self.n_layers * math.prod(self._tensor))

    @typed
    def init(
        self, generator: torch.Generator, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> dict[str, Tensor]:
        """Normal leaves, scaled so that the entries of each layer's kernel have mean square 1 / (3 in prod(k)), exactly.

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
        params = self._kind.init(generator, self.ranks, self.n_layers, *self._modes, 1 / math.sqrt(3 * fan), raised)
        shape = (*self._lead, self.out_channels)
        if self.bias and raised.is_complex:
            parts = uniform(generator, (*shape, 2), 1 / math.sqrt(2 * fan), raised.to_real())
            params["bias"] = torch.view_as_complex(parts)
        elif self.bias:
            params["bias"] = uniform(generator, shape, 1 / math.sqrt(fan), raised)
        return {name: t.contiguous().to(device=device, dtype=dtype) for name, t in params.items()}

    @typed
    def from_kernel(
        self, kernel: Tensor, *, bias: Tensor | None = None, n_sweeps: int | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Params whose kernel is near a given one [out, in, *k], and the distance `|kernel(params) - kernel|`.

        Of several layers the kernels are [L, out, in, *k], and the bias is [L, out].
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
        title, lead = f"{self._title}.from_kernel", self._lead
        check_kernel(kernel, (*lead, self.out_channels, self.in_channels, *self.kernel_size), title)
        wanted = (*lead, self.out_channels)
        if bias is not None and not (self.bias and tuple(bias.shape) == wanted):
            expected = f"shape {wanted}" if self.bias else "None, since the spec has bias=False"
            raise ValueError(f"{title}: bias has shape {tuple(bias.shape)}, expected {expected}")
        if n_sweeps is not None and self.factorization not in ("cp", "tucker"):
            raise ValueError(f"{title}: n_sweeps is {n_sweeps}, expected None for {self.factorization!r}")
        raised = kernel.to(working_dtype(kernel.dtype))
        how = Fitting(n_sweeps=n_sweeps)
        params = decomposed(raised, self.factorization, self.ranks, self.n_layers, self._tensor, how)
        gap = frobenius(self._kernels(params) - raised)
        if self.bias:
            params["bias"] = kernel.new_zeros(wanted) if bias is None else bias.clone()
        params = {name: t.contiguous().to(kernel.dtype) for name, t in params.items()}
        return params, gap.to(kernel.dtype.to_real())

    @property
    def _kind(self) -> Kind:
        return CONV_KINDS[self.factorization]

    @property
    def _tensor(self) -> Shape:
        return (self.in_channels, *self.kernel_size, self.out_channels)

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
