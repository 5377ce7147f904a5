"""What a spec says when it is misused: a mixin that holds its options, params and inputs against what they must be."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from linmaps.checks import Params, Shape, alike, floating, homogeneous, one_kind, room
from linmaps.checks.arguments import LARGEST
from linmaps.checks.doors import method_door

STATIC = ("plan", "shapes")  # compute with sizes alone


class Checked:
    """What a spec says when it is misused: the options at construction, params and inputs at each call."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Public methods go through `linmaps.checks.doors`, and torch's errors in them are explained."""
        super().__init_subclass__(**options)
        for name, method in list(vars(cls).items()):
            if isinstance(method, FunctionType) and not name.startswith("_") and name not in STATIC:
                setattr(cls, name, method_door(method))

    if TYPE_CHECKING:
        name: ClassVar[str]
        bias: bool
        in_features: int
        out_features: int

        @property
        def n_params(self) -> int: ...

        complex_W: ClassVar[bool]

        def shapes(self) -> dict[str, Any]: ...

        def _up(self, params: Params) -> Params: ...

    @functools.cached_property
    def _known_shapes(self) -> dict[str, Any]:
        """`shapes()`, found once."""
        return self.shapes()

    def _expected(self) -> dict[str, Any]:
        """`shapes()`, which each call looks at; torch.compile cannot enter the lock of a cached property."""
        if torch.compiler.is_dynamo_compiling():
            return self.shapes()
        return self._known_shapes

    def __getstate__(self) -> dict[str, Any]:  # the fields alone: what is found of them is found again
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @property
    def _title(self) -> str:
        return f"{type(self).__name__}({self.in_features}, {self.out_features})"

    @property
    def _W_shape(self) -> Shape:
        return (self.in_features, self.out_features)

    def _expect(self, fine: bool, key: str, expected: str, *, error: type[Exception] = ValueError) -> None:
        if not fine:
            raise error(f"{type(self).__name__}.{key}: got {getattr(self, key)!r}, expected {expected}")

    def _expect_int(self, key: str, low: int, high: int | None) -> None:
        value = getattr(self, key)
        integer = isinstance(value, int) and not isinstance(value, bool)
        self._expect(integer, key, "a positive int; convert with int(...)", error=TypeError)
        bounds = "a positive int" if high is None else f"an int from {low} to {high}, or None"
        self._expect(value >= low and (high is None or value <= high), key, bounds)

    def _expect_number(self, key: str, low: float | None = None, *, above: bool = False) -> None:
        """A finite number, at least `low`, or above it."""
        value = getattr(self, key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        self._expect(number, key, "a number", error=TypeError)
        fine = math.isfinite(value) and (low is None or (value > low if above else value >= low))
        self._expect(fine, key, "a finite number" + ("" if low is None else f" {'>' if above else '>='} {low}"))

    def _check_room(self, numbers: int, what: str, cure: str = "smaller sizes or ranks") -> None:
        if numbers > LARGEST:
            room(numbers, self._title, what, cure)

    def _check(self, params: Params) -> None:
        shapes = self._expected()
        if not (type(params) is dict or isinstance(params, Mapping)) or params.keys() != shapes.keys():
            self._refuse(params, shapes)
        leaves = []
        for key, shape in shapes.items():
            t = params[key]
            if not isinstance(t, Tensor) or t.shape != shape:
                self._refuse(params, shapes)
            leaves.append(t)
        if leaves and not (leaves[0].is_floating_point() and (len(leaves) == 1 or one_kind(leaves))):
            homogeneous(params, leaves, self._title)

    def _check_x(self, params: Params, x: Tensor, axis: str, what: str) -> None:
        n = getattr(self, axis)
        if (
            isinstance(x, Tensor)
            and x.ndim
            and x.shape[-1] == n
            and x.is_floating_point()
            and one_kind([x, *params.values()])
        ):
            return  # as nearly always
        name = f"{self._title}.{what}"
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: got {type(x).__name__}, expected a tensor [..., {n}]")
        if x.ndim == 0 or x.shape[-1] != n:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected [..., {n}]; the last axis is {axis}")
        floating(x, name, "x.to(...)")
        alike(x, name, self._up(params) if self.complex_W and x.is_complex() else params, "params")

    def _check_matrix(self, W: Tensor, what: str) -> None:
        expected = self._W_shape
        if not isinstance(W, Tensor):
            raise TypeError(f"{self._title}.{what}: W is {type(W).__name__}, expected a tensor of shape {expected}")
        if tuple(W.shape) != expected:
            cure = f"; use torch.func.vmap(spec.{what})(stacked)" if tuple(W.shape[1:]) == expected else ""
            raise ValueError(f"{self._title}.{what}: W has shape {tuple(W.shape)}, expected {expected}{cure}")
        floating(W, f"{self._title}.{what}: W", "W.to(...)")

    def _check_square(self, what: str, cure: str) -> None:
        if self.in_features != self.out_features:
            raise ValueError(
                f"{self._title}.{what}: W is {self.in_features} x {self.out_features}, expected a square map; {cure}"
            )

    def _refuse(self, params: Params, shapes: dict[str, Any]) -> None:
        if not isinstance(params, Mapping):
            raise TypeError(
                f"{self._title}: params is {type(params).__name__}, expected a dict with leaves {self.shapes()}; "
                "make one with spec.init(generator)"
            )
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
