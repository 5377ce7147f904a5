"""Checks at the door: of numbers, sizes and dtypes that any function is given, and of what a map is given.

They look at a tensor's values only to raise: no result depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from linmaps import trees
from linmaps.door import door
from linmaps.explained import explained

Params = Mapping[str, Any]  # of tensors; the maps made of maps nest the params of their parts
Shape = tuple[int, ...]


def values(t: Tensor) -> Tensor | None:
    """The values under every transform; None where there are none to look at (a meta tensor, a traced function).

    >>> values(torch.ones(2)), values(torch.ones(2, device="meta"))
    (tensor([1., 1.]), None)
    """
    if torch.compiler.is_compiling() or get_proxy_mode() is not None:
        return None
    plain = torch.func.debug_unwrap(t, recurse=True)
    return plain.detach() if type(plain) in (Tensor, torch.nn.Parameter) and plain.device.type != "meta" else None


def number(
    value: Any,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    below: bool = False,
    tensor: bool = True,
    cure: str = "",
) -> None:
    """Raise unless value is a finite number from low to high (above, below: without that end), or a real tensor without axes.

    tensor: whether a tensor is taken; under a transform every member's value is looked at.  TypeError for another type,
    ValueError for another shape or value.

    >>> number(-1.0, "regul", low=0)
    Traceback (most recent call last):
    ValueError: regul: got -1.0, expected a finite number >= 0
    """
    bounds = [f"{'>' if above else '>='} {low}"] * (low > -math.inf) + [f"{'<' if below else '<='} {high}"] * (
        high < math.inf
    )
    expected = " ".join(["a finite number", " and ".join(bounds)]).strip() + (f"; {cure}" if cure else "")
    if isinstance(value, Tensor) and tensor:
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{name}: got a tensor of {value.dtype}, expected {expected}")
        if value.ndim:
            raise ValueError(
                f"{name}: got a tensor of shape {tuple(value.shape)}, expected {expected}, or a tensor without axes"
            )
        found = values(value)
        if found is None:
            return
        fine = (
            found.isfinite()
            & ((found > low) if above else (found >= low))
            & ((found < high) if below else (found <= high))
        )
        if not bool(fine.all()):
            raise ValueError(
                f"{name}: got {found[~fine].flatten()[0].item() if found.ndim else found.item()}, expected {expected}"
            )
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}")
    real: Any = value
    inside = (real > low if above else real >= low) and (real < high if below else real <= high)
    if not (math.isfinite(real) and inside):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def size(value: Any, name: str, low: int = 0, high: int | None = None, *, cure: str = "") -> None:
    """Raise unless value is an int from low to high: TypeError for another type, ValueError for another number.

    >>> size(2.0, "k")
    Traceback (most recent call last):
    TypeError: k: got float, expected an int >= 0
    """
    expected = f"an int >= {low}" if high is None else f"an int from {low} to {high}"
    expected += f"; {cure}" if cure else ""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def alike(tree: Any, name: str, like: Any, like_name: str, *, strict: bool = False) -> None:
    """Raise a TypeError that names both unless all floating tensors of tree have a dtype and the device of like's.

    Integer and bool tensors may have any dtype, but must be on that device.  strict: every leaf must be a dense tensor of such
    a dtype itself: no integer, no complex number beside real ones, no text.

    >>> alike({"a": torch.ones(1, dtype=torch.float64)}, "v", [torch.ones(1)], "params")
    Traceback (most recent call last):
    TypeError: v: a: got torch.float64, expected torch.float32 as params; convert one with .to(...)
    """
    inexact = lambda t: isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
    references = [t for t in trees.leaves(like) if inexact(t)]
    if not references:
        return
    of = (lambda t: t.dtype) if strict else (lambda t: t.dtype.to_real())
    kinds, device = {of(t): None for t in references}, references[0].device

    def wrong(t: Any) -> str:
        if not isinstance(t, Tensor):
            return f"got {type(t).__name__}, expected a tensor of {next(iter(kinds))} as {like_name}" if strict else ""
        if strict and t.layout != torch.strided:
            return (
                f"got a tensor of layout {t.layout}, expected a dense one as {like_name}; convert it with .to_dense()"
            )
        if (strict or inexact(t)) and of(t) not in kinds:
            return f"got {t.dtype}, expected {' or '.join(map(str, kinds))} as {like_name}; convert one with .to(...)"
        if t.device != device:
            return f"got {t.device}, expected {device} as {like_name}; move one with .to(...)"
        return ""

    for i, t in enumerate(trees.leaves(tree)):
        if found := wrong(t):
            path = trees.paths(tree)[i]
            raise TypeError(f"{name}: {trees.path_str(path)}: {found}" if path else f"{name}: {found}")


STATIC = ("plan", "shapes")  # compute with sizes alone


LARGEST = 2**33  # numbers: 34 GB of float32


def room(numbers: int, name: str, what: str, cure: str) -> None:
    """Raise a ValueError for more numbers than one tensor or one map may have, before anything is allocated.

    >>> room(10**18, "Linear(1000000000, 1000000000).init", "parameters", "a map of fewer, such as linmaps.LowRank")
    Traceback (most recent call last):
    ValueError: Linear(1000000000, 1000000000).init: asks for 1.0e+18 parameters, expected at most 8,589,934,592; use a map...
    """
    if numbers > LARGEST:
        raise ValueError(f"{name}: asks for {numbers:.1e} {what}, expected at most {LARGEST:,}; use {cure}")


def floating(t: Tensor, name: str, cure: str) -> None:
    """Raise a TypeError unless t is of a floating or complex dtype.

    >>> floating(torch.ones(1, dtype=torch.int64), "x", "x.float()")
    Traceback (most recent call last):
    TypeError: x is torch.int64, expected a floating dtype; use x.float()
    """
    if not (t.is_floating_point() or t.is_complex()):
        raise TypeError(f"{name} is {t.dtype}, expected a floating dtype; use {cure}")


def homogeneous(params: Params, leaves: list[Tensor], name: str) -> None:
    """Raise a TypeError unless the leaves of params have one floating dtype and are on one device."""
    if leaves and not leaves[0].is_floating_point():
        floating(leaves[0], f"{name}: a leaf of params", "spec.init(generator, dtype=...)")
    if not _same(leaves):
        first = trees.path_str(trees.paths(params)[0])
        alike(params, f"{name}: params", trees.leaves(params)[:1], f"leaf {first}")


def _same(tensors: list[Any]) -> bool:
    first = tensors[0] if tensors else None
    return all(isinstance(t, Tensor) and t.dtype == first.dtype and t.device == first.device for t in tensors)  # type: ignore[union-attr]


class Checked:
    """What a spec says when it is misused: the options at construction, params and inputs at each call."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Public methods go through `linmaps.door`, and torch's errors in them are explained."""
        super().__init_subclass__(**options)
        for name, method in list(vars(cls).items()):
            if isinstance(method, FunctionType) and not name.startswith("_") and name not in STATIC:
                setattr(cls, name, door(explained(method)))

    if TYPE_CHECKING:
        in_features: int
        out_features: int

        def shapes(self) -> dict[str, Any]: ...

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
        room(numbers, self._title, what, cure)

    def _check(self, params: Params) -> None:
        shapes = self.shapes()
        if not (
            isinstance(params, Mapping)
            and params.keys() == shapes.keys()
            and all(isinstance(t := params[k], Tensor) and t.shape == shape for k, shape in shapes.items())
        ):
            self._refuse(params, shapes)
        homogeneous(params, list(params.values()), self._title)

    def _check_x(self, params: Params, x: Tensor, axis: str, what: str) -> None:
        n, name = getattr(self, axis), f"{self._title}.{what}"
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: got {type(x).__name__}, expected a tensor [..., {n}]")
        if x.ndim == 0 or x.shape[-1] != n:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected [..., {n}]; the last axis is {axis}")
        if not (x.is_floating_point() and _same([x, *params.values()])):
            floating(x, name, "x.to(...)")
            alike(x, name, params, "params")

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
