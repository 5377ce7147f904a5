"""Rules: which torch call uses a parameter leaf how.  One rule per kind of call.

A rule looks at one call and answers with a `Match`: the leaf in the role of the weight, the leaf in the role of the
bias, and the tensor that enters the layer.  Everything else (taps, factors, blocks) follows from the match.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linmaps.trees import Path, path_str


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor object that is a leaf, or a leaf transposed."""

    path: Path
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class Match:
    """What a call does with leaves: `y = x W' + b`, with x `[..., I]` and y `[..., O]`.

    weight, bias: views of the leaves; stored_in_out: the weight leaf is stored `[in, out]`, not torch's `[out, in]`.
    inputs: the tensor x (None for a bias alone); added_to: for a bias alone, the tensor that it is added to.
    """

    kind: str
    weight: View | None
    bias: View | None
    inputs: Tensor | None
    stored_in_out: bool = False
    added_to: Tensor | None = None
    in_place: bool = False


Lookup = Callable[[Any], View | None]
Rule = Callable[[tuple[Any, ...], dict[str, Any], Lookup], Match | None]


def linear(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.linear(x, W, b)`: y = x W' + b."""
    x, w, b = _bind(("input", "weight", "bias"), args, kwargs, (None, None, None))
    seen = view(w)
    if not _is_input(x) or w.ndim != 2:
        return None
    bias = view(b) if b is not None else None
    if seen is None:
        return Match("bias", None, bias, None) if bias is not None else None
    _check_features(x, w.shape[1], seen)
    return Match("linear", seen, bias, x, stored_in_out=seen.transposed)


def matmul(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`x @ W`: y = x W, the weight as it stands in the call is [in, out]."""
    x, w = _bind(("input", "other"), args, kwargs, (None, None))
    seen = view(w)
    if seen is None or not _is_input(x) or w.ndim != 2:
        return None
    _check_features(x, w.shape[0], seen)
    return Match("matmul", seen, None, x, stored_in_out=not seen.transposed)


def mm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.mm(x, W)`."""
    return matmul(_bind(("input", "mat2"), args, kwargs, (None, None)), {}, view)


def addmm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.addmm(b, x, W)`: y = b + x W."""
    b, x, w, beta, alpha = _bind(("input", "mat1", "mat2", "beta", "alpha"), args, kwargs, (None, None, None, 1, 1))
    match = matmul((x, w), {}, view) if beta == 1 and alpha == 1 else None
    if match is None:
        return None
    return dataclasses.replace(match, bias=view(b) if b.ndim == 1 else None)


def add(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`z + b` with b one number per feature: a bias."""
    z, b, alpha = _bind(("input", "other", "alpha"), args, kwargs, (None, None, 1))
    if alpha != 1 or not isinstance(z, Tensor) or not isinstance(b, Tensor):
        return None
    if view(b) is None:
        z, b = b, z
    seen = view(b)
    if seen is None or view(z) is not None or b.ndim != 1 or z.ndim < 2 or z.shape[-1] != b.shape[0]:
        return None
    return Match("bias", None, seen, None, added_to=z)


def iadd(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`z += b`: a bias, recognised where z is the output of a layer."""
    if view(args[0]) is not None:
        return None
    match = add(args, kwargs, view)
    return None if match is None else dataclasses.replace(match, in_place=True)


def _bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], defaults: tuple[Any, ...]) -> tuple:
    bound = dict(zip(names, defaults)) | dict(zip(names, args)) | kwargs
    return tuple(bound.get(n) for n in names)


def _is_input(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim >= 2


def _check_features(x: Tensor, size: int, weight: View) -> None:
    if x.shape[-1] != size:
        raise ValueError(
            f"{path_str(weight.path)}: the layer's input has shape {tuple(x.shape)}, expected [..., {size}]; the last axis of "
            "x (or of the layer before) does not fit this weight"
        )


RULES: dict[Any, Rule] = {
    F.linear: linear,
    torch.matmul: matmul,
    torch.Tensor.matmul: matmul,
    torch.Tensor.__matmul__: matmul,
    torch.mm: mm,
    torch.Tensor.mm: mm,
    torch.addmm: addmm,
    torch.Tensor.addmm: addmm,
    torch.add: add,
    torch.Tensor.add: add,
    torch.Tensor.__add__: add,
    torch.Tensor.__radd__: add,
    torch.Tensor.__iadd__: iadd,
    torch.Tensor.add_: iadd,
}


def register(call: Callable[..., Any], rule: Rule) -> None:
    """Teach the collector how a torch call uses a leaf.

    `rule(args, kwargs, view) -> Match | None`, where `view(t)` says which leaf a tensor of the call is (None: no leaf),
    and None as the answer means that the rule does not cover this form of the call.  The call must be one that torch
    dispatches through `__torch_function__`.  A second rule for the same call is refused.

    >>> import torch, fisher
    >>> fisher.rules.register(torch.matmul, fisher.rules.matmul)
    Traceback (most recent call last):
    ValueError: torch.matmul: has a rule already (matmul); expected a call without one
    """
    if call in RULES:
        name = torch.overrides.resolve_name(call) or repr(call)
        raise ValueError(f"{name}: has a rule already ({RULES[call].__name__}); expected a call without one")
    RULES[call] = rule


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
}


def carries_no_gradient(func: Any) -> bool:
    """Is the result of this call constant in its tensor arguments?"""
    return func in _NO_GRADIENT
