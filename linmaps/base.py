"""The base spec `Map`: sizes and options in a frozen record, params in a dict, pure functions between the two.

W [in, out] is used as `x @ W + b`; x [..., in]; leaves of params are float tensors without an ensemble axis.
A concrete map fills the hooks `_shapes`, `_init`, `_weight`, `_violation`, and those of the others it can do better.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from linmaps.numeric import uniform, working

Params = Mapping[str, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Map(abc.ABC):
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
    square: ClassVar[bool] = False
    hard: ClassVar[bool] = True
    half_ready: ClassVar[bool] = (
        True  # False: the hooks factorize, so they are given float32 in place of half precision
    )

    in_features: int
    out_features: int = None  # type: ignore[assignment]  # filled below, so that readers always see an int
    bias: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if vars(self)["out_features"] is None:
            object.__setattr__(self, "out_features", self.in_features)
        for key in ("in_features", "out_features"):
            self._expect_int(key, 1, None)
        self._expect(isinstance(self.bias, bool), "bias", "a bool", error=TypeError)
        self._expect(
            not self.square or self.in_features == self.out_features,
            "out_features",
            f"in_features={self.in_features}, since this map is square; leave out_features out",
        )

    # --- public, pure ------------------------------------------------------------------------------------------------

    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each leaf of params.

        >>> import linmaps
        >>> linmaps.Symmetric(3, bias=True).shapes()
        {'upper': (6,), 'bias': (3,)}
        """
        return self._shapes() | ({"bias": (self.out_features,)} if self.bias else {})

    @property
    def n_params(self) -> int:
        """Number of trainable entries.

        >>> import linmaps
        >>> linmaps.Linear(8, 5, bias=True).n_params
        45
        """
        return sum(math.prod(shape) for shape in self.shapes().values())

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
        if not isinstance(generator, torch.Generator):
            raise TypeError(
                f"{self._title}.init: generator is {type(generator).__name__}, expected a torch.Generator; "
                "pass torch.Generator().manual_seed(seed)"
            )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"{self._title}.init: dtype is {dtype}, expected a real floating torch.dtype")
        params = self._init(generator, working(dtype))
        if self.bias:
            params["bias"] = uniform(generator, (self.out_features,), self.in_features**-0.5, working(dtype))
        return {k: t.to(device=device, dtype=dtype) for k, t in params.items()}

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
        return self._weight(self._up(params)).to(self._like(params).dtype)

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
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{self._title}.apply: x is {type(x).__name__}, expected a tensor [..., {self.in_features}]"
            )
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self._title}.apply: x has shape {tuple(x.shape)}, expected [..., {self.in_features}]; "
                f"the last axis of x is in_features"
            )
        raised = x if self.half_ready else x.to(working(x.dtype))
        y = self._apply(self._up(params), raised).to(x.dtype)
        return y + params["bias"] if self.bias else y

    def reg_error(self, params: Params) -> Tensor:
        """The penalty of the map, a scalar >= 0 in params' dtype; 0 exactly when satisfied, so always for hard maps.

        >>> import torch, linmaps
        >>> spec = linmaps.Linear(2)
        >>> spec.reg_error(spec.init(torch.Generator()))
        tensor(0.)
        """
        self._check(params)
        return self._reg_error(self._up(params)).to(self._like(params).dtype)

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
        if self.in_features != self.out_features:
            raise ValueError(
                f"{self._title}.eig: W is {self.in_features} x {self.out_features}, expected a square map; "
                "use singular_values"
            )
        values, right = self._eig(self._up(params, always=True), vectors)
        dtype = self._like(params).dtype
        if (
            not values.is_complex()
        ):  # complex results of half precision stay complex64: complex half cannot be factorized
            values, right = values.to(dtype), right if right is None else right.to(dtype)
        return (values, right) if vectors else values

    def singular_values(self, params: Params) -> Tensor:
        """Singular values [min(in, out)] of W, descending.

        >>> import torch, linmaps
        >>> linmaps.Linear(1, 2).singular_values({"W": torch.tensor([[3.0, 4.0]])})
        tensor([5.])
        """
        self._check(params)
        return self._singular_values(self._up(params, always=True)).to(self._like(params).dtype)

    def violation(self, W: Tensor) -> Tensor:
        """How far a matrix W [in, out] is from the promised set: a scalar >= 0, and 0 (up to rounding) on the set.

        ValueError for another shape.

        >>> import torch, linmaps
        >>> linmaps.Symmetric(2).violation(torch.tensor([[1.0, 5.0], [2.0, 1.0]]))
        tensor(4.2426)
        """
        expected = (self.in_features, self.out_features)
        if tuple(W.shape) != expected:
            cure = "; use torch.func.vmap(spec.violation)(stacked)" if tuple(W.shape[1:]) == expected else ""
            raise ValueError(f"{self._title}.violation: W has shape {tuple(W.shape)}, expected {expected}{cure}")
        return self._violation(W.to(working(W.dtype))).to(W.dtype)

    # --- hooks of a concrete map: params are checked, and raised to float32 where half precision would not do --------

    @abc.abstractmethod
    def _shapes(self) -> dict[str, Shape]:
        """Leaves of the map, without the bias."""

    @abc.abstractmethod
    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        """Leaves of the map, on the generator's device."""

    @abc.abstractmethod
    def _weight(self, params: Params) -> Tensor:
        """W [in, out]."""

    @abc.abstractmethod
    def _violation(self, W: Tensor) -> Tensor:
        """Scalar."""

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return x @ self._weight(params)

    def _reg_error(self, params: Params) -> Tensor:
        return self._like(params).new_zeros(())

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        W = self._weight(params)
        if not vectors:
            return torch.linalg.eigvals(W), None
        values, right = torch.linalg.eig(W)
        return values, right

    def _singular_values(self, params: Params) -> Tensor:
        return torch.linalg.svdvals(self._weight(params))

    # --- checks at the door, structural only -------------------------------------------------------------------------

    @property
    def _title(self) -> str:
        return f"{type(self).__name__}({self.in_features}, {self.out_features})"

    def _expect(self, fine: bool, key: str, expected: str, *, error: type[Exception] = ValueError) -> None:
        if not fine:
            raise error(f"{type(self).__name__}.{key}: got {getattr(self, key)!r}, expected {expected}")

    def _expect_int(self, key: str, low: int, high: int | None) -> None:
        value = getattr(self, key)
        integer = isinstance(value, int) and not isinstance(value, bool)
        self._expect(integer, key, "a positive int; convert with int(...)", error=TypeError)
        bounds = "a positive int" if high is None else f"an int from {low} to {high}, or None"
        self._expect(value >= low and (high is None or value <= high), key, bounds)

    def _check(self, params: Params) -> None:
        if not isinstance(params, Mapping):
            raise TypeError(
                f"{self._title}: params is {type(params).__name__}, expected a dict with leaves {self.shapes()}; "
                "make one with spec.init(generator)"
            )
        shapes = self.shapes()
        missing, unexpected = sorted(shapes.keys() - params.keys()), sorted(map(str, params.keys() - shapes.keys()))
        if missing or unexpected:
            raise ValueError(
                f"{self._title}: params of another spec: missing leaves {missing}, unexpected {unexpected}, "
                f"expected {shapes}; use the spec whose init made them"
            )
        for key, shape in shapes.items():
            leaf = params[key]
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"{self._title}: leaf {key} is {type(leaf).__name__}, expected a tensor of shape {shape}"
                )
            if tuple(leaf.shape) != shape:
                ensemble = all(tuple(params[k].shape[1:]) == s for k, s in shapes.items())
                raise ValueError(
                    f"{self._title}: leaf {key} has shape {tuple(leaf.shape)}, expected {shape}; "
                    + (
                        "for an ensemble with a leading axis use torch.func.vmap(spec.effective_W)(stacked)"
                        if ensemble
                        else "use the spec whose init made these params"
                    )
                )

    def _up(self, params: Params, always: bool = False) -> Params:
        if self.half_ready and not always:
            return params
        return {k: t.to(working(t.dtype)) for k, t in params.items()}

    @staticmethod
    def _like(params: Params) -> Tensor:
        """A tensor with the dtype and device that the result must have."""
        return next(iter(params.values()))
