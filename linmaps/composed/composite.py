"""The base of maps made of maps, and how a part is applied: params are a dict of the params of the parts."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base import Map, Use, product
from linmaps.base import matrix as matrix_of
from linmaps.checks import Params, homogeneous
from linmaps.numerics.draws import uniform
from linmaps.numerics.dtypes import lowered, working_dtype
from linmaps.numerics.linalg import solve
from linmaps.numerics.numeric import eye_like, led

R = TypeVar("R")


def matrix(part: Map, params: Params, like: Tensor) -> Tensor:
    """W of a part; a part without leaves follows `like` in dtype and device."""
    if not trees.leaves(params):
        return part._apply(params, eye_like(like, part.in_features))
    return part._weight(params) if isinstance(part, Composite) else matrix_of(_use(part), params)


def following(result: R, params: Params, like: Tensor) -> R:
    """What a part computed from its params; without leaves among them, in the dtype and on the device of `like`."""
    if trees.leaves(params):
        return result
    real, imaginary = like.dtype.to_real(), like.dtype.to_complex()
    return trees.map(lambda t: t.to(dtype=imaginary if t.is_complex() else real, device=like.device), result)


def times(part: Map, params: Params, x: Tensor) -> Tensor:
    """`x @ W` of a part, for x [..., in]."""
    return _times(part, params, x) if isinstance(part, Composite) else product(_use(part), params, x)


def _use(part: Map) -> Use:
    return Use(part.name, lambda params, x: _times(part, params, x), part._weight, part._W_shape)


def _times(part: Map, params: Params, x: Tensor) -> Tensor:
    return part._by_planes(part._apply, params, x)


def times_transpose(part: Map, params: Params, x: Tensor) -> Tensor:
    """`x @ W'` of a part, for x [..., out]."""
    if isinstance(part, Composite):
        return part._apply_t(params, x)
    W = matrix(part, params, x)
    dtype = torch.promote_types(x.dtype, W.dtype)
    return x.to(dtype) @ W.mT.to(dtype)


def times_inverse(part: Map, params: Params, y: Tensor) -> Tensor:
    """`y @ W^-1` of a square part, for y [..., out]."""
    return part._by_planes(part._solve, params, y)


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
            bias = uniform(generator, (self.out_features,), self.in_features**-0.5, working_dtype(real))
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
        homogeneous(params, trees.leaves(params), self._title)

    def _each(self, params: Params, fn: Callable[[Map, Params], R]) -> list[R]:
        """fn of each part and its params; what a part without leaves gives follows the leaves of the others."""
        like = self._like(params)
        return [fn(part, led(params[key], like)) for key, part in self._parts.items()]

    def _matrices(self, params: Params) -> list[Tensor]:
        like = self._like(params)
        return [matrix(part, params[key], like) for key, part in self._parts.items()]

    def _product(self, params: Params, x: Tensor) -> Tensor:  # its parts are products of their own
        return self._multiplied(params, x)

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
        return params if self.half_ready and not always else trees.map(lambda t: t.to(working_dtype(t.dtype)), params)

    def _formed(self, params: Params) -> Tensor:
        return self._down(self._weight(self._up(params)), params)

    def _down(self, result: Any, params: Params) -> Any:
        if not trees.leaves(params):
            return following(result, params, torch.empty(()))
        dtype = self._like(params).dtype
        return trees.map(lambda t: lowered(t, dtype), result)

    @staticmethod
    def _like(params: Params) -> Tensor:
        leaves = trees.leaves(params)
        return (
            leaves[0] if leaves else torch.empty((), dtype=torch.float64)
        )  # of no leaves, numbers are cast in the end


@dataclass(frozen=True, init=False, repr=False)
class OfSeveral(Composite):
    """A map made of several in a row, with params {"0": params of the first, ...}."""

    maps: tuple[Map, ...]

    def __init__(self, *parts: Map, maps: Sequence[Map] = ()) -> None:
        object.__setattr__(self, "maps", (*parts, *maps))  # by keyword for dataclasses.replace
        if len(self.maps) < 2:
            raise ValueError(
                f"{type(self).__name__}: got {len(self.maps)} maps, expected at least two: spec(a, b, ...)"
            )
        self.__post_init__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.maps))})"

    @property
    def _parts(self) -> dict[str, Map]:
        return {str(i): part for i, part in enumerate(self.maps)}

    def _violation(self, W: Tensor) -> Tensor:
        return W.new_zeros((), dtype=W.dtype.to_real())
