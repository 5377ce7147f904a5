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
from linmaps.checks import Params, Shape, size
from linmaps.checks.annotations import typed
from linmaps.checks.precision import HALF
from linmaps.factorized.kinds import ALIASES, KINDS, Fitting, Kind
from linmaps.factorized.kinds.names import IMPLEMENTATIONS, FactorizationName, Implementation
from linmaps.factorized.reshaping import Reshaped
from linmaps.factorized.tensors.ranks import Rank
from linmaps.families.patterns.arrays import OfArrays
from linmaps.numerics import lapack
from linmaps.numerics.draws import uniform
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.numeric import frobenius, positive_root


@functools.lru_cache(maxsize=1024)
def _ranks(name: str, rank: Any, L: int, O: Shape, I: Shape, compat: bool) -> Any:
    return KINDS[name].ranks(rank, L, O, I, compat)


@functools.lru_cache(maxsize=1024)
def _shapes(name: str, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]:
    return KINDS[name].shapes(r, L, O, I)


@register
@dataclass(frozen=True)
class Factorized(Reshaped, OfArrays):
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
    at_zero: ClassVar[str] = "0"
    complex_ready: ClassVar[bool] = True
    _sizes: ClassVar[str] = "a tuple of ints, the sizes of the modes; linmaps.tensorized_shape(n, n_modes) makes one"

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...] = None  # type: ignore[assignment]
    in_features: int = field(init=False, repr=False)
    out_features: int = field(init=False, repr=False)
    factorization: FactorizationName = field(default="tucker", kw_only=True)
    rank: Rank = field(default="same", kw_only=True)
    implementation: Implementation = field(default="auto", kw_only=True)
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
        drawn = working_dtype(dtype)
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
        n_power: int = 1,
    ) -> tuple[dict[str, Any], Tensor]:
        """Params whose matrix is close to a given W [in, out] ([L, in, out] for several layers), and the distance.

        n_sweeps: of tucker and cp.  sketch: Gaussian matrices, from `linmaps.factorized.sketches`, for a randomized
        decomposition, which takes less time and memory for ranks far below the sizes and has derivatives everywhere; of cp
        the sweeps are then on a small core.  n_power: power iterations of it, for singular values that decay slowly.
        start: factors for cp, in place of singular vectors.  bias: zeros unless given.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 2), factorization="tt", rank="same", bias=False)
        >>> params, distance = spec.from_matrix(torch.arange(16.0).reshape(4, 4))
        >>> bool(distance < 1e-5)
        True
        """
        size(n_power, f"{self._title}.from_matrix: n_power", 0, 100)
        how, sizes = Fitting(n_sweeps, sketch, start, n_power), (self.n_layers, self.out_shape, self.in_shape)
        return self._fit(W, bias, lambda raised: self._kind.decompose(raised, self.ranks, *sizes, how))

    # --- what asks for W ---------------------------------------------------------------------------------------------

    @property
    def _W_shape(self) -> Shape:
        return (*self._lead, self.in_features, self.out_features)

    def _singular_values(self, params: Params) -> Tensor:
        if self.n_layers > 1:
            return super()._singular_values(params)
        return self._kind.singular_values(params, self.out_shape, self.in_shape)

    def _violation(self, W: Tensor) -> Tensor:
        found = self._kind.unfoldings(W, self.ranks, self.n_layers, self.out_shape, self.in_shape)
        tails = [lapack.svdvals(M)[r:] for M, r in found if r < min(M.shape)]
        return frobenius(*tails) if tails else (0 * W.real).sum()

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
