"""Calls whose result is a leaf in another guise: its transpose, some of its rows; and calls that carry no gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TRANSPOSED_ALWAYS = {torch.Tensor.T.__get__, torch.Tensor.mT.__get__, torch.Tensor.t, torch.t}  # type: ignore[attr-defined]
_TRANSPOSED_BY = {torch.Tensor.transpose, torch.transpose, torch.swapaxes, torch.Tensor.swapaxes}
_PERMUTED_BY = {torch.Tensor.permute, torch.permute}


def is_transpose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Does this call give the transpose of its first argument, a matrix?"""
    if not args or not isinstance(args[0], Tensor) or args[0].ndim != 2:
        return False
    if func in _TRANSPOSED_ALWAYS:
        return True
    numbers = [
        a for part in (*args[1:], *kwargs.values()) for a in (part if isinstance(part, (tuple, list)) else (part,))
    ]
    if func in _TRANSPOSED_BY:
        return sorted(n % 2 for n in numbers) == [0, 1]
    return func in _PERMUTED_BY and [n % 2 for n in numbers] == [1, 0]


_GUISES = {
    func
    for space in (torch, torch.Tensor)
    for name in """
        to float double half bfloat16 type type_as cpu cuda contiguous clone positive view view_as reshape reshape_as flatten
        unflatten ravel squeeze unsqueeze expand expand_as broadcast_to repeat tile add __add__ __radd__ sub __sub__ __getitem__
    """.split()  # noqa: SIM905
    if (func := getattr(space, name, None)) is not None
}
SIZED_BY = {  # of a second tensor they take the dtype, the device or the shape
    getattr(torch.Tensor, name) for name in ("to", "type_as", "view_as", "reshape_as", "expand_as")
}
_REPEATS = {torch.Tensor.repeat, torch.tile, torch.Tensor.tile}  # copies, where they do what expand does
_EXPANDS = {torch.Tensor.expand, torch.Tensor.expand_as, torch.Tensor.broadcast_to, torch.broadcast_to}


def repeats(func: Any) -> bool:
    """Whether a call repeats a tensor along some of its axes."""
    return func in _EXPANDS or func in _REPEATS


def sized(func: Any, out: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """`(call, arguments)` of which `call(t, *arguments)` does what `t.to(x)`, `t.view_as(x)` and so on did, without x."""
    if func in (torch.Tensor.to, torch.Tensor.type_as):
        return torch.Tensor.to, (out.device, out.dtype)
    return (torch.Tensor.expand if func is torch.Tensor.expand_as else torch.Tensor.reshape), (tuple(out.shape),)


def writes(func: Any) -> bool:
    """Whether a call writes into its first argument, by its name."""
    name = getattr(func, "__name__", "")
    return name in _WRITES or (name.endswith("_") and not name.endswith("__"))


_WRITES = {"__setitem__", *(f"__i{n}__" for n in "add sub mul div truediv pow matmul and or xor".split())}  # noqa: SIM905


def guise(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> tuple[int, ...] | None:
    """The shape of a result that has the entries of its first tensor in their order, up to a constant number that is added:
    a cast, a copy, a view, another shape.  Axes along which they are repeated count as 1.  None for any other call.
    """
    given = [a for a in args if isinstance(a, Tensor)]
    if func not in _GUISES or not given or not isinstance(out, Tensor):
        return None
    t, rest = given[0], (*args[1:], *kwargs.values())
    own = getattr(func, "__name__", "")
    if "add" in own or "sub" in own:  # w + 1 and 1 + w, not 1 - w
        constant = len(args) == 2 and args[0] is t and isinstance(args[1], (int, float)) and not kwargs
        return tuple(out.shape) if constant else None
    if own == "__getitem__" and not all(i is None or i is ... or i == slice(None) for i in _indices(args[1])):
        return None
    if own == "view" and any(isinstance(a, torch.dtype) for a in rest):  # bits, not numbers
        return None
    if func in _EXPANDS or func in _REPEATS:
        known = (1,) * (out.ndim - t.ndim) + tuple(t.shape)
        if any(n not in (1, m) for n, m in zip(known, out.shape)):
            return None
        return tuple(n if n == m else 1 for n, m in zip(known, out.shape))
    return tuple(out.shape) if out.numel() == t.numel() else None


_TIMES = {getattr(torch.Tensor, n) for n in ("mul", "__mul__", "__rmul__", "multiply")} | {torch.mul, torch.multiply}
_OVER = {getattr(torch.Tensor, n) for n in ("div", "__truediv__", "divide")} | {torch.div, torch.divide}
_MINUS = {torch.neg, torch.negative, torch.Tensor.neg, torch.Tensor.__neg__, torch.Tensor.negative}


def multiple(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """The number c of a call that gives c times a tensor; None for any other call."""
    if func in _MINUS and len(args) == 1 and not kwargs:
        return -1.0
    numbers = [a for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    if len(args) != 2 or len(numbers) != 1 or kwargs:
        return None
    (c,) = numbers
    if func in _TIMES:
        return float(c)
    return 1.0 / c if func in _OVER and args[1] is c and c else None


def _indices(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


DETACH = (torch.Tensor.detach, torch.detach)
_NO_GRADIENT = {
    torch.zeros_like,
    torch.ones_like,
    torch.empty_like,
    torch.full_like,
    torch.Tensor.new_zeros,
    torch.Tensor.new_ones,
    torch.Tensor.new_full,
    torch.Tensor.new_empty,
    torch.Tensor.new_tensor,
    torch.Tensor.detach,
    torch.detach,
    torch.Tensor.data.__get__,  # type: ignore[attr-defined]
}


def carries_no_gradient(func: Any) -> bool:
    """Is the result of this call constant in its tensor arguments?"""
    return func in _NO_GRADIENT


_SPLITS = {
    torch.split,
    torch.Tensor.split,
    torch.chunk,
    torch.Tensor.chunk,
    torch.tensor_split,
    torch.Tensor.tensor_split,
}
_NARROWS = {torch.narrow, torch.Tensor.narrow}


def slices(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[tuple[Tensor, int]] | None:
    """`(result, its first row)` of a call that cuts its first argument along axis 0; None for any other call."""
    if not args or not isinstance(args[0], Tensor):
        return None
    rest = dict(zip(("sizes", "dim", "length"), args[1:])) | kwargs
    if func in _SPLITS and rest.get("dim", 0) == 0:
        found, start = [], 0
        for part in out:
            found.append((part, start))
            start += part.shape[0]
        return found if start == args[0].shape[0] else None
    if func in _NARROWS and rest.get("sizes", rest.get("dim")) == 0:
        begin = kwargs.get("start", args[2] if len(args) > 2 else None)
        return [(out, begin)] if isinstance(begin, int) and begin >= 0 else None
    if func is torch.Tensor.__getitem__ and isinstance(args[1], slice) and args[1].step in (None, 1):
        return [(out, args[1].indices(args[0].shape[0])[0])]
    return None


def picks(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[tuple[Tensor, int]] | None:
    """`(result, its row)` of a call that takes single entries along axis 0, `w[k]` or all of them; None for any other."""
    if not args or not isinstance(args[0], Tensor) or args[0].ndim < 2:
        return None
    if func is torch.Tensor.__getitem__ and type(args[1]) is int:
        return [(out, args[1] % args[0].shape[0])]
    if func in _UNBINDS and (*args[1:], *kwargs.values()) in ((), (0,)):
        return [(part, k) for k, part in enumerate(out)]
    if func in _SELECTS and len(args) == 3 and args[1] == 0 and type(args[2]) is int:
        return [(out, args[2] % args[0].shape[0])]
    return None


_UNBINDS = {torch.unbind, torch.Tensor.unbind}
_SELECTS = {torch.select, torch.Tensor.select}


ADDS = {torch.add, *(getattr(torch.Tensor, name) for name in ("add", "__add__", "__radd__"))}
JOINS = {getattr(torch, name) for name in ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")}


def chosen(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether what a call of data gives has as many entries as the data say: positions, or what is at them."""
    if func in _CHOICES or (func is torch.where and len(args) == 1):
        return True
    index = args[1] if func is torch.Tensor.__getitem__ else None
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in _indices(index))


def put_back(func: Any) -> bool:
    """Whether a call gives its first argument with other entries: shapes are those of that one alone."""
    return getattr(func, "__name__", "").strip("_") in _PUTS


_CHOICES = {
    getattr(space, name)
    for space in (torch, torch.Tensor)
    for name in ("nonzero", "masked_select", "argwhere", "unique", "unique_consecutive")
    if hasattr(space, name)
}
_PUTS = {
    "index_add",
    "index_copy",
    "index_put",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "masked_scatter",
    "index_fill",
}


def packed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, int]]:
    """`(tensor, number of weights in it)` for a call that packs several weights into one: attention's in-projection."""
    if func is not F.multi_head_attention_forward:
        return []
    names = ("in_proj_weight", "in_proj_bias")
    found = dict(zip(names, args[5:7])) | {k: kwargs[k] for k in names if k in kwargs}
    return [(t, 3) for t in found.values() if isinstance(t, Tensor)]
