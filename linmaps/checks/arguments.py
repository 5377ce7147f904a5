"""Numbers, sizes, dtypes and devices of what a function is given, and the room that a result takes.

They look at a tensor's values only to raise: no result depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.trees.graphs.tracing import traced

Params = Mapping[str, Any]  # of tensors; the maps made of maps nest the params of their parts
Shape = tuple[int, ...]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = {t: t.to_complex() for t in FLOATS}  # tables, as torch.compile cannot ask
REAL = {t: t.to_real() for t in (torch.complex32, torch.complex64, torch.complex128)}


def values(t: Tensor) -> Tensor | None:
    """The values under every transform; None where there are none to look at (a meta tensor, a traced function).

    >>> values(torch.ones(2)), values(torch.ones(2, device="meta"))
    (tensor([1., 1.]), None)
    """
    if traced():
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
    if type(value) in (float, int) and math.isfinite(value) and low < value < high:
        return  # as nearly always
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
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}{_plain(value)}")
    real: Any = value
    inside = (real > low if above else real >= low) and (real < high if below else real <= high)
    if not (math.isfinite(real) and inside):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def _plain(value: Any) -> str:
    """How a tensor without axes becomes the number of Python that is asked for."""
    return "; of a tensor without axes give t.item()" if isinstance(value, Tensor) and not value.ndim else ""


def size(value: Any, name: str, low: int = 0, high: int | None = None, *, cure: str = "") -> None:
    """Raise unless value is an int from low to high: TypeError for another type, ValueError for another number.

    >>> size(2.0, "k")
    Traceback (most recent call last):
    TypeError: k: got float, expected an int >= 0
    """
    expected = f"an int >= {low}" if high is None else f"an int from {low} to {high}"
    expected += f"; {cure}" if cure else ""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}{_plain(value)}")
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
    if _of_one(tree, like):
        return  # as nearly always
    inexact = lambda t: isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
    references = [t for t in trees.leaves(like) if inexact(t)]
    if not references:
        return
    of = (lambda t: t.dtype) if strict else (lambda t: REAL.get(t.dtype, t.dtype))
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


def _of_one(tree: Any, like: Any) -> bool:
    """Whether all leaves are dense tensors of the floating dtype and the device of one tensor in like."""
    one = some_floating(like)
    if one is None:
        return False
    dtype, device = one.dtype, one.device
    for t in trees.leaves(tree):
        if not isinstance(t, Tensor) or t.dtype is not dtype or t.device != device or t.layout is not torch.strided:
            return False
    return True


def some_floating(like: Any) -> Tensor | None:
    """A tensor in a record or a container, found without flattening it; None where it is not of a real floating dtype.

    >>> some_floating({"a": (torch.ones(1), torch.zeros(1))})
    tensor([1.])
    """
    one = _some(like)
    return one if one is not None and one.is_floating_point() else None


def _some(node: Any) -> Tensor | None:
    if isinstance(node, Tensor):
        return node
    if isinstance(node, (dict, list, tuple)):
        for v in node.values() if isinstance(node, dict) else node:
            if (t := _some(v)) is not None:
                return t
        return None
    for name in getattr(type(node), "__dataclass_fields__", ()):
        v = getattr(node, name, None)
        if isinstance(v, (Tensor, dict, list, tuple)) and (t := _some(v)) is not None:
            return t
    return None


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
    if not one_kind(leaves):
        first = trees.path_str(trees.paths(params)[0])
        alike(params, f"{name}: params", trees.leaves(params)[:1], f"leaf {first}")


def require(fine: bool, error: type[Exception], message: str) -> None:
    """Raise the error with this message unless all is fine."""
    if not fine:
        raise error(message)


def one_kind(tensors: list[Any]) -> bool:
    """Whether they are tensors of one dtype and device."""
    first = tensors[0] if tensors else None
    for t in tensors:
        if not isinstance(t, Tensor) or (t is not first and (t.dtype != first.dtype or t.device != first.device)):  # type: ignore[union-attr]
            return False
    return True
