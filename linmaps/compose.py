"""Maps made of maps, their params made of the params of their parts; here those of one: transpose, multiple, bias."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base import Map
from linmaps.checks import Params
from linmaps.linalg import solve
from linmaps.numeric import HALF, eye_like, uniform, working

R = TypeVar("R")


def matrix(part: Map, params: Params, like: Tensor) -> Tensor:
    """W of a part; a part without leaves follows `like` in dtype and device."""
    return part._weight(params) if trees.leaves(params) else part._apply(params, eye_like(like, part.in_features))


def following(result: R, params: Params, like: Tensor) -> R:
    """What a part computed from its params; without leaves among them, in the dtype and on the device of `like`."""
    if trees.leaves(params):
        return result
    real, imaginary = like.dtype.to_real(), like.dtype.to_complex()
    return trees.map(lambda t: t.to(dtype=imaginary if t.is_complex() else real, device=like.device), result)


def times(part: Map, params: Params, x: Tensor) -> Tensor:
    """`x @ W` of a part, for x [..., in]."""
    return _by_planes(part._apply, params, x)


def times_transpose(part: Map, params: Params, x: Tensor) -> Tensor:
    """`x @ W'` of a part, for x [..., out]."""
    if isinstance(part, Composite):
        return part._apply_t(params, x)
    W = matrix(part, params, x)
    dtype = torch.promote_types(x.dtype, W.dtype)
    return x.to(dtype) @ W.mT.to(dtype)


def times_inverse(part: Map, params: Params, y: Tensor) -> Tensor:
    """`y @ W^-1` of a square part, for y [..., out]."""
    return _by_planes(part._solve, params, y)


def _by_planes(fn: Callable[[Params, Tensor], Tensor], params: Params, x: Tensor) -> Tensor:
    """fn(params, x), for the real and the imaginary part of x in turn where the params are real: what a complex map
    gives to the next one."""
    if x.is_complex() and not any(leaf.is_complex() for leaf in trees.leaves(params)):
        return torch.complex(fn(params, x.real), fn(params, x.imag))
    return fn(params, x)


@dataclass(frozen=True)
class Composite(Map):
    """A map whose params are a dict of the params of its parts: {"0": ..., "1": ...}, or {"map": ...} of a single one.

    Sizes are those that the parts imply.  Parts have no bias; the penalty is the sum of the parts' penalties, and init
    draws the parts one after the other, each by its own law.
    """

    in_features: int = field(init=False, repr=False)
    out_features: int = field(init=False, repr=False)
    bias: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        name = type(self).__name__
        parts: dict[str, Any] = dict(self._parts)
        for key, part in parts.items():
            if not isinstance(part, Map):
                got = f"the class {part.__name__}" if isinstance(part, type) else type(part).__name__
                raise TypeError(f"{name}: part {key} is {got}, expected a map such as linmaps.Linear(3, 2)")
            if part.bias:
                cure = "" if self.bias else " and wrap the whole in Affine"
                raise ValueError(f"{name}: part {key} has bias=True; build it with bias=False{cure}")
        for key, size in zip(("in_features", "out_features"), self._sizes()):
            object.__setattr__(self, key, size)
        super().__post_init__()

    @property
    @abc.abstractmethod
    def _parts(self) -> dict[str, Map]:
        """The parts, by their keys in params."""

    @abc.abstractmethod
    def _sizes(self) -> tuple[int, int]:
        """in_features and out_features; ValueError for parts that do not fit together."""

    @abc.abstractmethod
    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        """`x @ W'` for x [..., out]."""

    @property
    def half_ready(self) -> bool:  # type: ignore[override]
        return all(part.half_ready for part in self._parts.values())

    @property
    def guaranteed(self) -> bool:
        """Whether all parts keep their promises at any params."""
        return all(part.guaranteed for part in self._parts.values())

    @property
    def n_params(self) -> int:
        """Number of trainable entries."""
        return sum(part.n_params for part in self._parts.values()) + (self.out_features if self.bias else 0)

    def init(
        self,
        generator: torch.Generator,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Any]:
        """Random params, drawn part after part; "bias" is U(-1/sqrt(in), 1/sqrt(in)).

        >>> import torch, linmaps
        >>> params = linmaps.Scale(linmaps.Linear(3, 2), 0.5).init(torch.Generator().manual_seed(0))
        >>> params["map"]["W"].shape
        torch.Size([3, 2])
        """
        dtype = torch.get_default_dtype() if dtype is None else dtype
        params = self._init(generator, dtype)
        if self.bias:
            real = dtype.to_real()
            bias = uniform(generator, (self.out_features,), self.in_features**-0.5, working(real))
            params["bias"] = bias.to(real)
        return trees.map(lambda t: t.to(device=device), params)

    def _shapes(self) -> dict[str, Any]:
        return {key: part.shapes() for key, part in self._parts.items()}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        return {key: part.init(generator, dtype=dtype) for key, part in self._parts.items()}

    def _check(self, params: Params) -> None:
        shapes = self.shapes()
        if not isinstance(params, Mapping) or params.keys() != shapes.keys():
            self._refuse(params, shapes)
        for key, part in self._parts.items():
            try:
                part._check(params[key])
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self._title}, part {key}: {error}") from None
        if self.bias:
            self._refuse({"bias": params["bias"]}, {"bias": shapes["bias"]})

    def _each(self, params: Params, fn: Callable[[Map, Params], R]) -> list[R]:
        """fn of each part and its params; what a part without leaves gives follows the leaves of the others."""
        like = self._like(params)
        return [following(fn(part, params[key]), params[key], like) for key, part in self._parts.items()]

    def _matrices(self, params: Params) -> list[Tensor]:
        like = self._like(params)
        return [matrix(part, params[key], like) for key, part in self._parts.items()]

    def _reg_error(self, params: Params) -> Tensor:
        return sum(self._each(params, lambda part, p: part._reg_error(p)), super()._reg_error(params))

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        W, rows, n = self._weight(params), y.reshape(-1, self.out_features), self.out_features
        if not (W.is_complex() or y.is_complex()):
            return solve(W.mT, rows.mT).mT.reshape(y.shape)
        dtype = W.dtype.to_complex()  # in real numbers, at twice the size
        W, rows = W.to(dtype), rows.to(dtype)
        planes = torch.cat([torch.cat([W.real, W.imag], 1), torch.cat([-W.imag, W.real], 1)])
        x = solve(planes.mT, torch.cat([rows.real, rows.imag], 1).mT).mT
        return torch.complex(x[:, :n], x[:, n:]).reshape(y.shape)

    def _logabsdet(self, params: Params) -> Tensor:
        value = super()._logabsdet(params)
        return value.real if value.is_complex() else value

    def _project(self, params: Params) -> dict[str, Any]:
        return {**params, **{key: part._project(params[key]) for key, part in self._parts.items()}}

    def _up(self, params: Params, always: bool = False) -> Params:
        return params if self.half_ready and not always else trees.map(lambda t: t.to(working(t.dtype)), params)

    def _down(self, result: Any, params: Params) -> Any:
        if not trees.leaves(params):
            return following(result, params, torch.empty(()))
        dtype = self._like(params).dtype
        return trees.map(lambda t: t.to(dtype), result) if dtype in HALF else result

    @staticmethod
    def _like(params: Params) -> Tensor:
        leaves = trees.leaves(params)
        return (
            leaves[0] if leaves else torch.empty((), dtype=torch.float64)
        )  # of no leaves, numbers are cast in the end


@dataclass(frozen=True)
class _OfOne(Composite):
    """A map made of one, with params {"map": params of it}; by default it has the same matrix."""

    map: Map

    @property
    def _parts(self) -> dict[str, Map]:
        return {"map": self.map}

    def _sizes(self) -> tuple[int, int]:
        return self.map.in_features, self.map.out_features

    def _weight(self, params: Params) -> Tensor:
        return self._matrices(params)[0]

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return times(self.map, params["map"], x)

    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        return times_transpose(self.map, params["map"], x)

    def _violation(self, W: Tensor) -> Tensor:
        return self.map._violation(W)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        return self._each(params, lambda part, p: part._eig(p, vectors))[0]

    def _singular_values(self, params: Params) -> Tensor:
        return self._each(params, lambda part, p: part._singular_values(p))[0]

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return times_inverse(self.map, params["map"], y)

    def _inverse(self, params: Params) -> Tensor:
        return self._each(params, lambda part, p: part._inverse(p))[0]

    def _logabsdet(self, params: Params) -> Tensor:
        return self._each(params, lambda part, p: part._logabsdet(p))[0]

    def _from_matrix(self, W: Tensor) -> Params:
        return {"map": self.map._from_matrix(W)}


@trees.static
@dataclass(frozen=True)
class Transpose(_OfOne):
    """The transpose `W'` [out, in] of a map's matrix W [in, out].

    Params are {"map": params of the map}.  `apply` goes block by block and factor by factor through maps made of maps,
    and multiplies by the transposed matrix of any other.  Eigenvalues, singular values and determinant are those of the
    map.  Outputs have in / out times the map's output variance at init, with the sizes of the map.  `violation(V)` is
    the map's of V'; from_matrix is the map's.

    ValueError for a map with a bias.

    >>> import torch, linmaps
    >>> spec = linmaps.Transpose(linmaps.RightStochastic(3, 2))
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0)))
    >>> W.shape, torch.allclose(W.sum(0), torch.ones(3))
    (torch.Size([2, 3]), True)
    """

    name: ClassVar[str] = "transpose"
    promise: ClassVar[str] = "that of the map, of W'"

    def _sizes(self) -> tuple[int, int]:
        return self.map.out_features, self.map.in_features

    def _weight(self, params: Params) -> Tensor:
        return super()._weight(params).mT

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return super()._apply_t(params, x)

    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        return super()._apply(params, x)

    def _violation(self, W: Tensor) -> Tensor:
        return super()._violation(W.mT)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        values, right = super()._eig(params, vectors)
        # real eigenvalues are how a map says that it is symmetric, and then its vectors are right and left ones
        return Map._eig(self, params, True) if vectors and values.is_complex() else (values, right)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        inverse = following(self._inverse(params), params, y)
        dtype = torch.promote_types(y.dtype, inverse.dtype)
        return y.to(dtype) @ inverse.to(dtype)

    def _inverse(self, params: Params) -> Tensor:
        return super()._inverse(params).mT

    def _from_matrix(self, W: Tensor) -> Params:
        return super()._from_matrix(W.mT)


@trees.static
@dataclass(frozen=True)
class Scale(_OfOne):
    """A fixed multiple of a map, `factor W`.

    Params are {"map": params of the map}.  Outputs have factor^2 times the map's output variance at init;
    `violation(V)` is |factor| times the map's of V / factor; from_matrix is the map's, of V / factor.

    ValueError for a factor that is 0 or not finite, or a map with a bias; TypeError for a factor that is no number.

    >>> import torch, linmaps
    >>> spec = linmaps.Scale(linmaps.Orthogonal(4), 0.9)
    >>> spec.singular_values(spec.init(torch.Generator().manual_seed(0)))
    tensor([0.9000, 0.9000, 0.9000, 0.9000])
    """

    name: ClassVar[str] = "scale"
    promise: ClassVar[str] = "that of the map, of W / factor"

    factor: float

    def __post_init__(self) -> None:
        number = isinstance(self.factor, (int, float)) and not isinstance(self.factor, bool)
        self._expect(number, "factor", "a number; a trainable one belongs into params", error=TypeError)
        self._expect(math.isfinite(self.factor) and self.factor != 0, "factor", "a finite number other than 0")
        super().__post_init__()

    def _weight(self, params: Params) -> Tensor:
        return self.factor * super()._weight(params)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return self.factor * super()._apply(params, x)

    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        return self.factor * super()._apply_t(params, x)

    def _violation(self, W: Tensor) -> Tensor:
        return abs(self.factor) * super()._violation(W / self.factor)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        values, right = super()._eig(params, vectors)
        if self.factor < 0 and not values.is_complex():  # ascending again
            values, right = values.flip(0), None if right is None else right.flip(1)
        return self.factor * values, right

    def _singular_values(self, params: Params) -> Tensor:
        return abs(self.factor) * super()._singular_values(params)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return super()._solve(params, y / self.factor)

    def _inverse(self, params: Params) -> Tensor:
        return super()._inverse(params) / self.factor

    def _logabsdet(self, params: Params) -> Tensor:
        return super()._logabsdet(params) + self.in_features * math.log(abs(self.factor))

    def _from_matrix(self, W: Tensor) -> Params:
        return super()._from_matrix(W / self.factor)


@trees.static
@dataclass(frozen=True)
class Affine(_OfOne):
    """A map with a bias, `x @ W + b`: for maps made of maps, whose parts have none.

    Params are {"map": params of the map, "bias": [out]}.  Everything but `apply` and `solve` is the map's; the bias
    adds 1 / (3 in) to the output variance at init.

    ValueError for a map that has a bias already.

    >>> import torch, linmaps
    >>> spec = linmaps.Affine(linmaps.Scale(linmaps.Identity(2), 3.0))
    >>> spec.apply({"map": {"map": {}}, "bias": torch.tensor([10.0, 20.0])}, torch.ones(2))
    tensor([13., 23.])
    """

    name: ClassVar[str] = "affine"
    promise: ClassVar[str] = "that of the map"

    bias: bool = field(init=False, repr=False, default=True)
