"""The base spec `Map`: sizes and options in a frozen record, params in a dict, pure functions between the two.

W [in, out] is used as `x @ W + b`; x [..., in]; leaves of params are float tensors without an ensemble axis.
A concrete map fills the hooks `_shapes`, `_init`, `_weight`, `_violation`, and those of the others it can do better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, overload

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base.hooks import Hooks
from linmaps.base.products import matrix, watched
from linmaps.checks import Params, Shape, alike
from linmaps.numerics.draws import uniform
from linmaps.numerics.dtypes import lowered, working_dtype
from linmaps.numerics.numeric import frobenius, led, nan_where


@dataclass(frozen=True)
class Map(Hooks):
    """A linear map whose matrix `W = effective_W(params)`, of shape [in_features, out_features], keeps a promise.

    A spec is hashable and holds no tensor.  Params are a dict of trainable tensors only, made by `init`; any values of
    them, zeros and outliers included, give a matrix that keeps the promise where `hard` is True.  An ensemble is
    `torch.func.vmap(spec.effective_W)(stacked_params)`.

    out_features: in_features unless given; square maps allow nothing else.
    bias: adds a leaf "bias" [out], used by `apply` and by nothing else.

    ValueError or TypeError at construction for sizes that are not positive ints, or options that contradict.
    """

    name: ClassVar[str]
    promise: ClassVar[str]
    at_zero: ClassVar[str] = ""  # the W of params that are all 0, in words: where weight decay of the params leads
    time: ClassVar[str] = ""  # "discrete" for promises about x W^t, "continuous" for those about x exp(W t)

    in_features: int
    out_features: int = None  # type: ignore[assignment]  # filled below, so that readers always see an int
    bias: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if vars(self)["out_features"] is None:
            object.__setattr__(self, "out_features", self.in_features)
        for key in ("in_features", "out_features"):
            if self.square and type(size := getattr(self, key)) is float and not size.is_integer():
                cure = "a positive int; bounds come after both sizes, or by name, as sigma_min=0.1"
                self._expect(False, key, cure, error=TypeError)
            self._expect_int(key, 1, None)
        self._expect(isinstance(self.bias, bool), "bias", "a bool", error=TypeError)
        cure = f"in_features={self.in_features}, since this map is square; leave out_features out"
        self._expect(not self.square or self.in_features == self.out_features, "out_features", cure)

    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each leaf of params.

        >>> import linmaps
        >>> linmaps.Symmetric(3, bias=True).shapes()
        {'upper': (6,), 'bias': (3,)}
        """
        return self._shapes() | ({"bias": (self.out_features,)} if self.bias else {})

    @property
    def guaranteed(self) -> bool:
        """Whether these very options keep the promise at any params: `hard`, unless an option makes the map soft.

        >>> import linmaps
        >>> linmaps.Symmetric(3).guaranteed, linmaps.SVD(3).guaranteed
        (True, False)
        """
        return self.hard

    @property
    def n_params(self) -> int:
        """Number of trainable entries.

        >>> import linmaps
        >>> linmaps.Linear(8, 5, bias=True).n_params
        45
        """
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def _square(self) -> bool:
        return self.in_features == self.out_features

    def init(
        self,
        generator: torch.Generator,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """Random params: each map documents its law; "bias" is U(-1/sqrt(in), 1/sqrt(in)).

        dtype: a real floating dtype, torch's default unless given.  device: the generator's unless given; numbers are
        always drawn on the generator's device, so that a seed means the same params wherever they go.

        TypeError without a torch.Generator (the global one is never read), or for a dtype that is not real floating.

        >>> import torch, linmaps
        >>> params = linmaps.Linear(3, 2).init(torch.Generator().manual_seed(0))
        >>> {name: tuple(leaf.shape) for name, leaf in params.items()}
        {'W': (3, 2)}
        """
        dtype = self._init_dtype(generator, dtype)
        params = self._init(generator, working_dtype(dtype.to_real()))
        if self.bias:
            params["bias"] = uniform(
                generator, (self.out_features,), self.in_features**-0.5, working_dtype(dtype.to_real())
            )
        return self._moved(params, dtype, device)

    def effective_W(self, params: Params) -> Tensor:
        """The matrix `W` [in, out] with `apply(params, x) = x @ W + b`; never contains the bias.

        ValueError or TypeError for params that do not have the leaves and shapes of `shapes()`.

        >>> import torch, linmaps
        >>> spec = linmaps.Symmetric(2)
        >>> spec.effective_W({"upper": torch.tensor([1.0, 2.0, 3.0])})
        tensor([[1., 2.],
                [2., 3.]])
        """
        self._check(params)
        self._check_room(self.in_features * self.out_features, "entries of W", "apply, which need not form it")
        return matrix(self._use, params) if watched(params) else self._formed(params)

    def apply(self, params: Params, x: Tensor) -> Tensor:
        """`x @ W + b` for x [..., in], by the cheaper of the ways the map knows; the result is [..., out].

        ValueError or TypeError for params of another spec, or another last axis of x.

        >>> import torch, linmaps
        >>> spec = linmaps.RightStochastic(3, 2)
        >>> params = spec.init(torch.Generator().manual_seed(0))
        >>> spec.apply(params, torch.ones(4, 7, 3)).shape
        torch.Size([4, 7, 2])
        """
        self._check(params)
        self._check_x(params, x, "in_features", "apply: x")
        y = self._product(params, x)
        return y + params["bias"] if self.bias else y

    def reg_error(self, params: Params) -> Tensor:
        """The penalty of the map, a scalar >= 0 in params' dtype; 0 exactly when satisfied, so always for hard maps.

        >>> import torch, linmaps
        >>> spec = linmaps.Linear(2)
        >>> spec.reg_error(spec.init(torch.Generator()))
        tensor(0.)
        """
        self._check(params)
        return self._down(self._reg_error(self._up(params)), params)

    @overload
    def eig(self, params: Params, vectors: Literal[False] = False) -> Tensor: ...
    @overload
    def eig(self, params: Params, vectors: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def eig(self, params: Params, vectors: bool = False) -> Any:
        """Eigenvalues [n] of W; with `vectors=True` the pair (eigenvalues, V) with `W @ V = V * eigenvalues`.

        Real and ascending, with orthonormal V, for maps that are symmetric; else complex, in LAPACK's order.  Functions
        of V that do not see its phases have derivatives, but torch gives NaN for reverse mode over forward mode of V.

        ValueError for a map that is not square.

        >>> import torch, linmaps
        >>> linmaps.Symmetric(2).eig({"upper": torch.tensor([0.0, 1.0, 0.0])})
        tensor([-1.,  1.])
        """
        self._check(params)
        self._check_square("eig", "use singular_values")
        values, right = self._eig(self._up(params, always=True), vectors)
        if not values.is_complex():  # complex results of half precision stay complex64: complex half has no solvers
            values, right = self._down(values, params), right if right is None else self._down(right, params)
        return (values, right) if vectors else values

    def singular_values(self, params: Params) -> Tensor:
        """Singular values [min(in, out)] of W, descending.

        >>> import torch, linmaps
        >>> linmaps.Linear(1, 2).singular_values({"W": torch.tensor([[3.0, 4.0]])})
        tensor([5.])
        """
        self._check(params)
        values = self._singular_values(self._up(params, always=True))
        return self._down(nan_where(self._of_W(params), values), params)

    def solve(self, params: Params, y: Tensor) -> Tensor:
        """x [..., in] with `apply(params, x) = y` for y [..., out] and a square map: `(y - b) W^-1`, as cheap as W allows.

        ValueError for a map that is not square, or another last axis of y.  A singular W gives infinities.

        >>> import torch, linmaps
        >>> spec = linmaps.Circulant(2)
        >>> spec.solve({"first": torch.tensor([2.0, 0.0])}, torch.tensor([2.0, 4.0]))
        tensor([1., 2.])
        """
        self._check(params)
        self._check_square("solve", "use torch.linalg.lstsq with effective_W")
        self._check_x(params, y, "out_features", "solve: y")
        raised = y - params["bias"] if self.bias else y
        raised = raised.to(working_dtype(raised.dtype))
        return lowered(self._by_planes(self._solve, self._up(params, always=True), raised), y.dtype)

    def inverse(self, params: Params) -> Tensor:
        """W^-1 [out, in] of a square map, as cheap as its structure allows.

        >>> import torch, linmaps
        >>> linmaps.Symmetric(1).inverse({"upper": torch.tensor([4.0])})
        tensor([[0.2500]])
        """
        self._check(params)
        self._check_square("inverse", "use torch.linalg.pinv of effective_W")
        return self._down(self._inverse(self._up(params, always=True)), params)

    def logabsdet(self, params: Params) -> Tensor:
        """log |det W| of a square map, a scalar, as cheap as its structure allows; -inf for a singular W.

        >>> import torch, linmaps
        >>> linmaps.Orthogonal(3).logabsdet(linmaps.Orthogonal(3).init(torch.Generator().manual_seed(0)))
        tensor(0.)
        """
        self._check(params)
        self._check_square("logabsdet", "only square maps have a determinant")
        value = self._logabsdet(self._up(params, always=True))
        return self._down(nan_where(self._of_W(params), value), params)

    def violation(self, W: Tensor) -> Tensor:
        """How far a matrix W [in, out] is from the promised set: a scalar >= 0, and 0 (up to rounding) on the set.

        ValueError for another shape.

        >>> import torch, linmaps
        >>> linmaps.Symmetric(2).violation(torch.tensor([[1.0, 5.0], [2.0, 1.0]]))
        tensor(4.2426)
        """
        self._check_matrix(W, "violation")
        return nan_where([W], self._violation(W.to(working_dtype(W.dtype)))).to(W.dtype.to_real())

    def project(self, params: Params) -> dict[str, Any]:
        """Params moved to where the map wants them after an optimizer's step; unchanged for all maps but a few.

        These are Lasso, LassoReLU and NonNegative(method="relu"), for which the step is projected gradient descent and
        leaves exact zeros, and L0, whose gates are kept from saturating.

        >>> import torch, linmaps
        >>> linmaps.Lasso(1).project({"u": torch.tensor([[-1.0]]), "v": torch.tensor([[2.0]])})
        {'u': tensor([[0.]]), 'v': tensor([[2.]])}
        """
        self._check(params)
        return self._project(params)

    def from_matrix(self, W: Tensor, *, bias: Tensor | None = None) -> tuple[dict[str, Any], Tensor]:
        """Params whose matrix is, or is close to, a given W [in, out], and the distance `|effective_W(params) - W|`.

        The distance (Frobenius norm, a scalar tensor) is 0 up to rounding when the map can represent W; each map says
        what it does with another W.  Free parameters of bounded quantities stay 1e-6 of the range away from the bounds,
        where they would have no gradient.  bias: becomes the leaf "bias" of a map that has one; zeros unless given.

        ValueError for a map without such a closed form (fit its params by descent on the distance), another shape of W or
        bias, or a bias for a map that has none.

        >>> import torch, linmaps
        >>> params, distance = linmaps.Symmetric(2).from_matrix(torch.tensor([[1.0, 5.0], [1.0, 2.0]]))
        >>> params["upper"], distance
        (tensor([1., 3., 2.]), tensor(2.8284))
        """
        return self._fit(W, bias, self._from_matrix)

    def _fit(
        self, W: Tensor, bias: Tensor | None, closed_form: Callable[[Tensor], Params]
    ) -> tuple[dict[str, Any], Tensor]:
        self._check_matrix(W, "from_matrix")
        shape = self.shapes().get("bias")
        if bias is not None and tuple(bias.shape) != shape:
            expected = f"a tensor of shape {shape}" if self.bias else "None, since the map has bias=False"
            raise ValueError(f"{self._title}.from_matrix: bias has shape {tuple(bias.shape)}, expected {expected}")
        alike(bias, f"{self._title}.from_matrix: bias", W, "W")
        raised = W.to(working_dtype(W.dtype))
        params = dict(closed_form(raised))
        if shape is not None:
            kind = W.dtype.to_real() if self.complex_W else W.dtype
            params["bias"] = W.new_zeros(shape, dtype=kind) if bias is None else bias
        distance = frobenius(self._weight(led(params, raised)) - raised).to(W.dtype.to_real())
        return trees.map(lambda t: self._down(t, {"W": W}), params), distance

    @classmethod
    def _of_size(cls, rows: int, columns: int, **options: Any) -> Self:
        """The map for these sizes or the nearest ones, not larger where possible, at which it exists."""
        return cls(rows, rows if cls.square else columns, **options)
