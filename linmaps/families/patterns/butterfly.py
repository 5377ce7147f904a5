"""Butterfly matrices: log2 N levels of 2 x 2 blocks, each of which mixes pairs of coordinates.

N = 2^m.  At level l, of stride s = 2^l, coordinates i and i + s of each run of 2 s are mixed; such a pair is (g, j): the
run and the place in it, i = g 2 s + j.  S stacks, R rows of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.checks.arguments import COMPLEX
from linmaps.checks.precision import HALF
from linmaps.families.patterns.butterfly_levels import FUSE, PASS, cheapest_parts, cost, fused, levels_of, through
from linmaps.families.patterns.butterfly_pairs import live_pairs, placed
from linmaps.numerics.draws import normal, uniform
from linmaps.numerics.linalg import logabsdet
from linmaps.numerics.numeric import eye_like, frobenius, magnitudes, unit

Blocks = Literal["free", "rotation"]
BLOCKS = get_args(Blocks)


@register
@dataclass(frozen=True)
class Butterfly(Map):
    """A product of m = log2 N sparse factors, `W' = L_(m-1) ... L_1 L_0`, with 2 N multiplications per factor and row.

    Level l mixes the pairs of coordinates that are s = 2^l apart, (y_i, y_(i+s))' = T (x_i, x_(i+s))', each pair by a 2 x 2
    block T, or for tied_weight the pairs of equal i mod s by one block.  increasing_stride=False applies the factors in
    the order m - 1, ..., 0.

    blocks="free": T is free, and nothing is promised.  N is the least power of two that is at least in, and at least 2;
    inputs are padded with zeros, S = ceil(out / N) such products are set side by side, and the first `out` outputs are
    kept; where 2^ceil(log2 out) is at most N / 2, the runs of that length are averaged before.  The leaf "twiddle" holds
    T: [S, m, N / 2, 2, 2], the pair (g, j) of level l at [l, g s + j], or tied [S, N - 1, 2, 2], at [s - 1 + j].  At
    sizes that are not powers of two, some of its entries meet only padding or outputs that are dropped.  init: N(0, 1/2),
    then each stack is rescaled so that inputs of unit variance give outputs whose mean variance is 1/3.

    blocks="rotation": T = [cos a, -sin a; sin a, cos a], N >= max(in, out), and pairs that reach past max(in, out) are
    left alone, so W is a part of an orthogonal matrix at any size and any parameters.  The leaf "angle" [k] holds a of
    the k pairs that W depends on, level by level.  init: uniform angles.  The promise fixes the scale: outputs have
    variance 1 for in >= out, and in / out for in < out.  `violation(W)` is the Frobenius norm of W'W - I (or WW' - I;
    0 for free blocks).  Singular values are 1, and `solve` costs as much as `apply`.

    complex: complex leaves and a complex W; an `init` of float32 makes complex64.  Free entries have real and imaginary
    parts N(0, 1/4) before rescaling.  Rotations become unitary, T = [a, -b*; b, a*] / sqrt(|a|^2 + |b|^2) with
    (a - 1, b) in the leaf "block" [k, 2], Haar (uniform) at init; (a, b) = 0 counts as a = 1.  Then read W* for W'.

    `apply` takes 3 to 6 levels at once as blocks of a batched product, or forms W where that costs less: N <= 64, or so.
    The parameters and multiplications are few, but dense products are fast: on a CPU, training breaks even with a dense
    layer at about N = 256 with thousands of rows, and at N = 1024 with 64; below that, the gain is in parameters only.
    `effective_W` costs N^2 multiplications per stack.

    ValueError for unknown blocks.  TypeError for options that are not bools, and from `init` for half precision with
    complex, which torch does not compute with.

    Source: Dao et al., Learning fast algorithms for linear transforms using butterfly factorizations, 2019.

    >>> import torch, linmaps
    >>> spec = linmaps.Butterfly(6, 4, blocks="rotation")
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0)))
    >>> torch.allclose(W.T @ W, torch.eye(4), atol=1e-6)
    True
    """

    name: ClassVar[str] = "butterfly"
    promise: ClassVar[str] = "rotation blocks: W'W = I (in >= out) or WW' = I (in <= out); free blocks: none"
    at_zero: ClassVar[str] = "0 (rotation: I)"
    complex_ready: ClassVar[bool] = True

    blocks: Blocks = field(default="free", kw_only=True)
    complex: bool = field(default=False, kw_only=True)
    tied_weight: bool = field(default=True, kw_only=True)
    increasing_stride: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.blocks in BLOCKS, "blocks", f"one of {BLOCKS}")
        for key in ("complex", "tied_weight", "increasing_stride"):
            self._expect(isinstance(getattr(self, key), bool), key, "a bool", error=TypeError)

    def init(
        self,
        generator: torch.Generator,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """As for every map; with `complex`, the leaves have the complex dtype of the given precision.

        >>> import torch, linmaps
        >>> linmaps.Butterfly(2, complex=True).init(torch.Generator(), dtype=torch.float64)["twiddle"].dtype
        torch.complex128
        """
        given = torch.get_default_dtype() if dtype is None else dtype
        if isinstance(given, torch.dtype):
            if self.complex and given.to_real() in HALF:
                raise TypeError(
                    f"{self._title}.init: dtype is {given}, expected float32 or float64, since complex numbers of "
                    "half precision cannot be computed with; pass dtype=torch.float32"
                )
            if given.is_complex and not self.complex:
                raise TypeError(
                    f"{self._title}.init: dtype is {given}, expected a real floating torch.dtype; complex leaves are "
                    "those of Butterfly(..., complex=True)"
                )
        return super().init(generator, dtype=dtype, device=device)

    # --- sizes -------------------------------------------------------------------------------------------------------

    @property
    def _rotation(self) -> bool:
        return self.blocks == "rotation"

    @property
    def _m(self) -> int:
        if self._rotation:
            return (max(self.in_features, self.out_features) - 1).bit_length()
        return max(1, (self.in_features - 1).bit_length())

    @property
    def _stacks(self) -> int:
        return 1 if self._rotation else -(-self.out_features // 2**self._m)

    @property
    def _averaged(self) -> int:
        """How many runs of outputs are averaged."""
        return 1 if self._rotation else max(1, 2**self._m // 2 ** (self.out_features - 1).bit_length())

    @property
    def _ends(self) -> tuple[int, int]:
        """How many coordinates bound the runs, and the places in them."""
        sizes = self.in_features, self.out_features
        return sizes if self.increasing_stride else sizes[::-1]

    def _shapes(self) -> dict[str, Shape]:
        m, N = self._m, 2**self._m
        if self._rotation:
            count = sum(live_pairs(level, *self._ends, self.tied_weight) for level in range(m))
            return {"block": (count, 2)} if self.complex else {"angle": (count,)}
        return {"twiddle": (self._stacks, *((N - 1,) if self.tied_weight else (m, N // 2)), 2, 2)}

    # --- params to blocks --------------------------------------------------------------------------------------------

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        ((key, shape),) = self._shapes().items()
        if key == "angle":
            return {key: uniform(generator, shape, math.pi, dtype)}
        leaf = normal(generator, shape, dtype.to_complex() if self.complex else dtype)
        if key == "block":
            return {key: leaf - leaf.new_tensor([1, 0])}
        leaf = leaf * 0.5**0.5
        variance = self._variance(leaf)
        kept = torch.arange(variance.numel(), device=leaf.device).reshape(variance.shape) < self.out_features
        mean = (variance * kept).sum(1) / kept.sum(1)
        return {key: leaf * (3 * mean[(...,) + (None,) * (leaf.ndim - 1)]) ** (-0.5 / self._m)}

    def _variance(self, twiddle: Tensor) -> Tensor:
        """Variances [S, N] (or [1, N / runs] of averages) of outputs for white inputs, W not formed."""
        N, runs = 2**self._m, self._averaged
        if runs == 1:
            # the ways from inputs to outputs do not meet, so variances go through the squares
            ones = twiddle.real.new_ones(1, self.in_features)
            return through(twiddle.abs().square(), ones, self.increasing_stride).reshape(self._stacks, N)
        averages = eye_like(twiddle, N // runs).repeat(1, runs) / runs
        back = through(twiddle.mT, averages, not self.increasing_stride)
        return back[None, :, : self.in_features].abs().square().sum(2)

    def _twiddle(self, params: Params) -> Tensor:
        """The blocks [S, m, N / 2, 2, 2], or tied [S, N - 1, 2, 2]."""
        if not self._rotation:
            return params["twiddle"]
        if self.complex:
            a, b = params["block"].unbind(-1)
            a = a + 1
            scale = unit(torch.maximum(magnitudes(a.detach()), magnitudes(b.detach())))
            a, b = a / scale, b / scale
            size = a.real**2 + a.imag**2 + b.real**2 + b.imag**2
            zero = size == 0
            a, norm = torch.where(zero, 1.0, a), torch.where(zero, 1.0, size).sqrt()
            a, b = a / norm, b / norm
        else:
            a, b = params["angle"].cos(), params["angle"].sin()
        a, b = (placed(t, otherwise, *self._ends, self.tied_weight) for t, otherwise in ((a, 1), (b, 0)))
        return torch.stack([a, -b.conj(), b, a.conj()], -1).reshape(1, *a.shape, 2, 2)

    # --- W and its product with rows ---------------------------------------------------------------------------------

    def _weight(self, params: Params) -> Tensor:
        levels = levels_of(self._twiddle(params), self.increasing_stride)
        half, N = (self._m + 1) // 2, 2**self._m
        if not levels:
            return eye_like(self._like(params), 1)
        M = fused([fused(part) for part in (levels[:half], levels[half:]) if part])[:, 0, 0]
        M = M if self.increasing_stride else M.mT  # [S, N, N], one way from each input to each output
        return self._kept(M.reshape(-1, N)[:, : self.in_features].mT)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        if self.complex:
            if x.dtype in HALF:
                raise TypeError(f"{self._title}.apply: x is {x.dtype}, expected float32 or float64 with complex params")
            x = x.to(COMPLEX.get(x.dtype, x.dtype))
        m, rows, area = self._m, x.numel() // self.in_features, self._stacks * 4**self._m
        form = rows * self.out_features * (self.in_features + PASS) + FUSE * area
        parts = cheapest_parts(m, rows)
        if m == 0 or form < (area >> m) * cost(parts, rows):
            return x @ self._weight(params)
        y = through(self._twiddle(params), x.reshape(rows, self.in_features), self.increasing_stride, parts)
        return self._kept(y).reshape(*x.shape[:-1], self.out_features)

    def _kept(self, y: Tensor) -> Tensor:
        """Outputs [R, out] from those of all stacks [R, S N]: averaged over runs, and cut."""
        if self._averaged > 1:
            y = y.reshape(len(y), self._averaged, 2**self._m // self._averaged).mean(1)
        return y[:, : self.out_features]

    # --- what the structure makes cheap ------------------------------------------------------------------------------

    def _singular_values(self, params: Params) -> Tensor:
        if not self._rotation:
            return super()._singular_values(params)
        return self._like(params).real.new_ones(min(self.in_features, self.out_features))

    def _violation(self, W: Tensor) -> Tensor:
        if not self._rotation:
            return W.real.new_zeros(())
        gram = W.mH @ W if self.in_features >= self.out_features else W @ W.mH
        return frobenius(gram - eye_like(gram, len(gram)))

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        if self._rotation:
            return y.to(self._like(params).dtype) @ self._weight(params).mH
        return super()._solve(params, y.to(self._like(params).dtype))

    def _logabsdet(self, params: Params) -> Tensor:
        if self._rotation:
            return self._like(params).real.new_zeros(())
        N = 2**self._m
        if self.in_features != N:
            return logabsdet(self._weight(params))
        blocks = levels_of(params["twiddle"], self.increasing_stride)
        levels = [t[:, :, :, 0, 0] * t[..., 1, 1] - t[..., 0, 1] * t[..., 1, 0] for t in blocks]
        return torch.stack([N / 2 * det.abs().log().mean() for det in levels]).sum()
