"""The spec of a tensorized matrix, or of several that share factors.

L layers; W [in, out], its rows and columns split into modes i_1..i_q and o_1..o_p; the tensor has modes (L,) O, I.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.checks.precision import HALF
from linmaps.checks.typed import typed
from linmaps.factorized.kinds import ALIASES, KINDS, Fitting, Kind
from linmaps.factorized.layers import Layer, Layers
from linmaps.factorized.multiply import IMPLEMENTATIONS, multiply, plan_for
from linmaps.factorized.tensors.plan import Plan
from linmaps.families.patterns.arrays import OfArrays
from linmaps.numerics import lapack
from linmaps.numerics.linalg import positive_root
from linmaps.numerics.numeric import by_planes, frobenius, uniform, working


@functools.lru_cache(maxsize=1024)
def _ranks(name: str, rank: Any, L: int, O: Shape, I: Shape, compat: bool) -> Any:
    return KINDS[name].ranks(rank, L, O, I, compat)


@functools.lru_cache(maxsize=1024)
def _shapes(name: str, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]:
    return KINDS[name].shapes(r, L, O, I)


@register
@dataclass(frozen=True)
class Factorized(Layers, OfArrays):
    """A matrix whose rows and columns are split into modes, kept as a factorized tensor and used without forming it.

    W [in, out], in = prod(in_shape), out = prod(out_shape), holds in row-major order a tensor T of modes
    (o_1..o_p, i_1..i_q), s_1..s_N in this order.  out_shape is in_shape unless given; an int is split into modes as equal
    as its divisors allow, two unless the other shape says how many.

    | factorization | T or W | leaves | layers share |
    |---|---|---|---|
    | dense | W | "W" [(L,) in, out] | nothing |
    | lowrank | W = U V | "U" [in, R], "V" [(L,) R, out] | U |
    | cp | sum_r weights_r u_1r (x) ... (x) u_Nr | "weights" [R], "U0".. [s_k, R] | all but U0 |
    | tucker | core x_1 U_1 ... x_N U_N | "core" [r_1..r_N], "U0".. [s_k, r_k] | all but U0 |
    | tt | A_1[:, j_1] ... A_N[:, j_N] | "A0".. [r_{k-1}, s_k, r_k] | all but A0 |
    | blocktt (ttm) | A_1[:, o_1, i_1] ... A_d[:, o_d, i_d] | "A0".. [r_{k-1}, (L,) o_k, i_k, r_k] | nothing |

    rank: "same" (at most the dense number of parameters for cp and lowrank, and full ranks, with which every W is exact, for
    the others), a fraction of the dense number, which is a ceiling below 1, an int, or a tuple (for trains with 1 at both
    ends); cut to what is feasible.  `ranks` has the result, `ratio` the share of the dense number.
    implementation: "factorized" multiplies x with the factors, "reconstructed" with W, "auto" by what costs less for so many
    rows (`plan(rows)` prints the costs).
    n_layers: L matrices of one joint tensor, with L as its first mode, and a bias for each.  Then `apply` and
    `effective_W` take a `layer`, and `select` gives a spec of one layer.  Block trains of several layers share nothing.
    checkpointing: keep no inner step of `apply` for the backward pass, and run it twice; inside transforms too.
    compat: ranks as tensorly-torch computes them, and tuples as they are, for its trained weights.

    init: normal leaves, rescaled so that the mean square of each layer's entries is 1 / (3 in), as of torch.nn.Linear;
    a complex dtype gives complex leaves.  `violation(W)` is the norm of the singular values beyond the ranks in all
    unfoldings of T that the ranks bound; for cp a necessary condition only.  `from_matrix` is the singular value
    decomposition of lowrank, TT-SVD, HOSVD with sweeps for tucker, and alternating least squares for cp, which finds
    local optima; all within sqrt(N - 1) of the nearest tensor but the last.  Its derivatives are finite
    everywhere (`linmaps.factorized.tt_svd` says what they are where singular values repeat).

    ValueError or TypeError for shapes, names, ranks or options that make no sense; blocktt needs as many out as in modes.

    Source: Kolda and Bader 2009 (cp, tucker); Oseledets 2011 (tt); Novikov et al. 2015 (blocktt).

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((4, 8, 8), (4, 4, 8), factorization="tt", rank=0.1)
    >>> spec.ranks, spec.n_params, round(spec.ratio, 3)
    ((1, 4, 14, 13, 13, 8, 1), 3396, 0.1)
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> spec.apply(params, torch.ones(5, 256)).shape
    torch.Size([5, 128])
    """

    name: ClassVar[str] = "factorized"
    promise: ClassVar[str] = "W is a tensor of bounded rank"
    complex_ready: ClassVar[bool] = True
    _sizes: ClassVar[str] = "a tuple of ints, the sizes of the modes; linmaps.tensorized_shape(n, n_modes) makes one"

    in_shape: tuple[int, ...]  # type: ignore[misc]
    out_shape: tuple[int, ...] = None  # type: ignore[assignment]
    in_features: int = field(init=False, repr=False)
    out_features: int = field(init=False, repr=False)
    factorization: str = field(default="tucker", kw_only=True)
    rank: Any = field(default="same", kw_only=True)
    implementation: str = field(default="auto", kw_only=True)
    n_layers: int = field(default=1, kw_only=True)
    checkpointing: bool = field(default=False, kw_only=True)
    compat: bool = field(default=False, kw_only=True)
    bias: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.factorization
        name = "dense" if given is None else str(given).lower()
        object.__setattr__(self, "factorization", ALIASES.get(name, name))
        self._expect(self.factorization in KINDS, "factorization", f"one of {[*KINDS, *ALIASES]}")
        self._expect_int("n_layers", 1, None)
        self._expect(self.implementation in IMPLEMENTATIONS, "implementation", f"one of {IMPLEMENTATIONS}")
        for key in ("checkpointing", "compat"):
            self._expect(isinstance(getattr(self, key), bool), key, "a bool", error=TypeError)
        paired = len(self.in_shape) == len(self.out_shape) or not self._kind.paired
        cure = f"as many modes as in_shape={self.in_shape} for {self.factorization}; pad with ones"
        self._expect(paired, "out_shape", cure)
        if isinstance(self.rank, list):
            object.__setattr__(self, "rank", tuple(self.rank))
        _ = self.ranks  # refuses what makes no sense

    # --- sizes -------------------------------------------------------------------------------------------------------

    @property
    def _kind(self) -> Kind:
        return KINDS[self.factorization]

    @property
    def ranks(self) -> Any:
        """The ranks in use: R for lowrank and cp, one for each mode for tucker, with 1 at both ends for trains.

        >>> import linmaps
        >>> linmaps.Factorized((4, 4), (4, 4), rank=0.5).ranks
        (4, 3, 3, 2)
        """
        if self.factorization == "dense":
            return None  # whatever the rank
        return _ranks(self.factorization, self.rank, self.n_layers, self.out_shape, self.in_shape, self.compat)

    def _shapes(self) -> dict[str, Shape]:
        return _shapes(self.factorization, self.ranks, self.n_layers, self.out_shape, self.in_shape)

    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each leaf of params.

        >>> import linmaps
        >>> linmaps.Factorized((2, 2), (3,), factorization="cp", rank=2, n_layers=5).shapes()
        {'weights': (2,), 'U0': (5, 2), 'U1': (3, 2), 'U2': (2, 2), 'U3': (2, 2), 'bias': (5, 3)}
        """
        return self._shapes() | ({"bias": (*self._lead, self.out_features)} if self.bias else {})

    @property
    def ratio(self) -> float:
        """The number of params, without the bias, relative to that of dense matrices.

        >>> import linmaps
        >>> linmaps.Factorized((4, 4), (4, 4), factorization="lowrank", rank=4).ratio
        0.5
        """
        return sum(map(math.prod, self._shapes().values())) / (self.n_layers * self.in_features * self.out_features)

    @typed
    def plan(self, rows: int) -> Plan:
        """The ways to multiply so many rows, their costs relative to a dense matrix, and the one that `apply` takes.

        >>> import linmaps
        >>> linmaps.Factorized((16, 16), (16, 16), factorization="lowrank", rank=4).plan(64)
        64 rows         multiplications  numbers moved  operations
        two products *            0.031          0.359           2
        dense                     1.062          1.688           2
        """
        return plan_for(self.factorization, self._layer_ranks, self.out_shape, self.in_shape, rows, self.implementation)

    # --- params ------------------------------------------------------------------------------------------------------

    @typed
    def init(
        self,
        generator: torch.Generator,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        std: float | None = None,
    ) -> dict[str, Tensor]:
        """Random params: leaves of W with entries of mean square std^2, "bias" U(-1/sqrt(in), 1/sqrt(in)).

        dtype: real or complex; E|z|^2 is the same for both.  std: 1 / sqrt(3 in) unless given; 1.0 suits an embedding.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 3), factorization="cp", rank=2)
        >>> W = spec.effective_W(spec.init(torch.Generator(), std=2.0))
        >>> round(W.square().mean().sqrt().item(), 5)
        2.0
        """
        dtype = self._init_dtype(generator, dtype)
        if dtype.is_complex and dtype.to_real() in HALF:
            raise TypeError(
                f"{self._title}.init: dtype is {dtype}, expected complex64 or complex128 for complex leaves"
            )
        if std is not None and not std > 0:
            raise ValueError(f"{self._title}.init: std is {std}, expected a number > 0")
        drawn = working(dtype)
        sizes = (self.n_layers, self.out_shape, self.in_shape)
        std = 1 / math.sqrt(3 * self.in_features) if std is None else std
        params = self._kind.init(generator, self.ranks, *sizes, std, drawn)
        if self.bias:
            shape, bound = (*self._lead, self.out_features), self.in_features**-0.5
            if drawn.is_complex:
                parts = uniform(generator, (*shape, 2), bound / math.sqrt(2), drawn.to_real())
                params["bias"] = torch.view_as_complex(parts)
            else:
                params["bias"] = uniform(generator, shape, bound, drawn)
        return self._moved(params, dtype, device)

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        raise AssertionError("init draws by itself")

    @typed
    def from_matrix(
        self,
        W: Tensor,
        *,
        bias: Tensor | None = None,
        n_sweeps: int | None = None,
        sketch: Sequence[Tensor] | None = None,
        start: Sequence[Tensor] | None = None,
    ) -> tuple[dict[str, Any], Tensor]:
        """Params whose matrix is close to a given W [in, out] ([L, in, out] for several layers), and the distance.

        n_sweeps: of tucker and cp.  sketch: Gaussian matrices, from `linmaps.factorized.sketches`, for a randomized
        decomposition of lowrank, tucker and trains, which takes less time and has derivatives everywhere.  start: factors for
        cp, in place of singular vectors.  bias: zeros unless given.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 2), factorization="tt", rank="same", bias=False)
        >>> params, distance = spec.from_matrix(torch.arange(16.0).reshape(4, 4))
        >>> bool(distance < 1e-5)
        True
        """
        how, sizes = Fitting(n_sweeps, sketch, start), (self.n_layers, self.out_shape, self.in_shape)
        return self._fit(W, bias, lambda raised: self._kind.decompose(raised, self.ranks, *sizes, how))

    # --- W and products with it --------------------------------------------------------------------------------------

    @typed
    def effective_W(self, params: Params, layer: Layer = None) -> Tensor:
        """W [in, out]; of several layers [L, in, out], or that of one `layer`, or [K, in, out] of K of them.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 2), (3,), factorization="cp", rank=2, n_layers=5)
        >>> params = spec.init(torch.Generator())
        >>> spec.effective_W(params).shape, spec.effective_W(params, 4).shape
        (torch.Size([5, 4, 3]), torch.Size([4, 3]))
        """
        self._check(params)
        self._check_room(self.n_layers * self.in_features * self.out_features, "entries of W", "apply, or one layer")
        if layer is None:
            return self._weight(params)
        return self._over(lambda one: self._matrix(self._leaves(params, one)), self._index(layer, params))

    def _matrix(self, leaves: Params) -> Tensor:
        return self._kind.matrix(leaves, self.out_shape, self.in_shape)

    def _singular_values(self, params: Params) -> Tensor:
        if self.n_layers > 1:
            return super()._singular_values(params)
        return self._kind.singular_values(params, self.out_shape, self.in_shape)

    def _weight(self, params: Params) -> Tensor:
        if self.n_layers == 1:
            return self._matrix(params)
        every = torch.arange(self.n_layers, device=self._like(params).device)
        return torch.func.vmap(lambda one: self._matrix(self._leaves(params, one)))(every)

    @typed
    def apply(self, params: Params, x: Tensor, layer: Layer = None) -> Tensor:
        """`x @ W + b` for x [..., in], by the way that `implementation` allows and that costs least; the result is [..., out].

        layer: needed for several layers; a sequence or 1-d tensor of K gives [K, ..., out].  For a layer to each x use
        `torch.func.vmap(spec.apply, (None, 0, 0))(params, x, layers)`.

        ValueError or TypeError for params of another spec, another last axis of x, or no layer where there are several.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 2), (3,), n_layers=2)
        >>> params, x = spec.init(torch.Generator()), torch.ones(7, 4)
        >>> spec.apply(params, x, layer=1).shape, spec.apply(params, x, layer=[1, 0, 1]).shape
        (torch.Size([7, 3]), torch.Size([3, 7, 3]))
        """
        self._check(params)
        self._check_x(params, x, "in_features", "apply: x")
        return self._over(lambda one: self._apply_layer(params, x, one), self._index(layer, params))

    def _apply_layer(self, params: Params, x: Tensor, layer: int | Tensor) -> Tensor:
        leaves = {k: t for k, t in self._leaves(params, layer).items() if k != "bias"}
        rows = math.prod(x.shape[:-1])
        how, plan = (self.out_shape, self.in_shape), self.plan(rows)
        product = lambda leaves, x: multiply(self._kind, leaves, x, *how, plan, checkpointing=self.checkpointing)
        y = by_planes(product, leaves, x.reshape(rows, self.in_features))
        y = y.reshape(*x.shape[:-1], self.out_features)
        if not self.bias:
            return y
        return y + (params["bias"] if self.n_layers == 1 else params["bias"][layer])

    @typed
    def rows(self, params: Params, idx: Tensor, layer: Layer = None) -> Tensor:
        """Rows W[idx] for a tensor of ints idx [...]: [..., out], a factorized embedding.  W is not formed; no bias is added.

        Costs per row about what `apply` costs per row of x, divided by in.  Rows that come twice are computed twice.

        TypeError for an idx that is not a tensor of ints; IndexError for one outside -in..in-1, on a CPU.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((10, 10, 10), (4, 4, 4), factorization="blocktt", rank=4, bias=False)
        >>> params = spec.init(torch.Generator(), std=1.0)
        >>> spec.rows(params, torch.tensor([[3, 999], [0, 3]])).shape
        torch.Size([2, 2, 64])
        """
        self._check(params)
        if not isinstance(idx, Tensor) or idx.dtype == torch.bool or idx.is_floating_point() or idx.is_complex():
            got = idx.dtype if isinstance(idx, Tensor) else type(idx).__name__
            raise TypeError(f"{self._title}.rows: idx is {got}, expected a tensor of ints; use idx.long()")
        flat = idx.reshape(idx.numel())
        rest = torch.where(flat < 0, flat + self.in_features, flat)
        rest, multi = torch.where(rest < 0, self.in_features, rest), []
        for size in reversed(self.in_shape[1:]):
            multi.append(rest % size)
            rest = torch.div(rest, size, rounding_mode="floor")
        index = (rest, *reversed(multi))  # the first one is left too large by an index that is

        def chosen(one: int | Tensor) -> Tensor:
            found = self._kind.rows(self._leaves(params, one), index, self.out_shape, self.in_shape)
            return found.reshape(*idx.shape, self.out_features)

        return self._over(chosen, self._index(layer, params))

    # --- what asks for W ---------------------------------------------------------------------------------------------

    @property
    def _W_shape(self) -> Shape:
        return (*self._lead, self.in_features, self.out_features)

    def _violation(self, W: Tensor) -> Tensor:
        found = self._kind.unfoldings(W, self.ranks, self.n_layers, self.out_shape, self.in_shape)
        tails = [lapack.svdvals(M)[r:] for M, r in found if r < min(M.shape)]
        return frobenius(*tails) if tails else 0 * W.real.sum()

    @typed
    def norm(self, params: Params) -> Tensor:
        """The Frobenius norm of W, or of all W together, without forming them.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 2), factorization="cp", rank=3)
        >>> params = spec.init(torch.Generator())
        >>> torch.allclose(spec.norm(params), spec.effective_W(params).norm())
        True
        """
        self._check(params)
        square = self._kind.squared_norm(self._up(params, always=True)).clamp(min=0.0)
        return self._down(positive_root(square), params)
