"""Rules for matrix products and biases: linear, matmul, addmm, add."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from fisher.collector.rules.contractions import LETTERS, contraction, product
from fisher.collector.rules.elementwise import broadcasts, mul, own_shape
from fisher.collector.rules.forms import Elementwise, Form
from fisher.collector.rules.lookup import positions
from fisher.collector.rules.match import Lookup, Match, View, bind, is_input, spoken


def linear(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.linear(x, W, b)`: y = x W' + b."""
    x, w, b = bind(("input", "weight", "bias"), args, kwargs, (None, None, None))
    seen = view(w)
    if not is_input(x) or w.ndim != 2:
        return None
    bias = view(b) if b is not None else None
    if seen is None:
        return Match("bias", None, bias, None) if bias is not None else None
    _check_features(x, w.shape[1], seen)
    if seen.shape is not None:
        lead = LETTERS[: x.ndim - 1]
        match = contraction("linear", (lead + "Y", "XY", lead + "X"), x, w, seen)
        return None if match is None else dataclasses.replace(match, bias=bias)
    if seen.transposed and seen.rows is not None:
        return None
    return Match("linear", seen, bias, x, Form(seen.transposed))


def matmul(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`x @ W`: y = x W, the weight as it stands in the call is [in, out]."""
    x, w = bind(("input", "other"), args, kwargs, (None, None))
    seen = view(w)
    if seen is None or not is_input(x) or w.ndim != 2 or seen.shape is not None:
        return product((x, w), {}, view)
    _check_features(x, w.shape[0], seen)
    if not seen.transposed and seen.rows is not None:
        return None
    return Match("matmul", seen, None, x, Form(not seen.transposed))


def mm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.mm(x, W)`."""
    return matmul(bind(("input", "mat2"), args, kwargs, (None, None)), {}, view)


def addmm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.addmm(b, x, W)`: y = b + x W."""
    b, x, w, beta, alpha = bind(("input", "mat1", "mat2", "beta", "alpha"), args, kwargs, (None, None, None, 1, 1))
    match = matmul((x, w), {}, view) if beta == 1 and alpha == 1 else None
    if match is None:
        return None
    return dataclasses.replace(match, bias=view(b) if b.ndim == 1 else None)


def add(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`z + b` with b one number per feature: a bias."""
    z, b, alpha = bind(("input", "other", "alpha"), args, kwargs, (None, None, 1))
    if alpha != 1 or not isinstance(z, Tensor) or not isinstance(b, Tensor):
        return None
    if view(b) is None:
        z, b = b, z
    seen = view(b)
    if seen is None or view(z) is not None or z.ndim < 2:
        return None
    shape = own_shape(b, seen)
    if shape and b.ndim <= z.ndim and z.shape[-1] == shape[-1] == math.prod(shape) and not seen.transposed:
        return Match("bias", None, seen, None, added_to=z)
    if (table := positions(z, shape, seen)) is not None:
        return table
    if seen.index is not None or seen.transposed or seen.rows is not None or not broadcasts(shape, z):
        return None
    return Match("shift", None, seen, None, Elementwise(shape=shape))


def iadd(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`z += b`: a bias, recognised where z is the output of a layer."""
    if view(args[0]) is not None:
        return None
    match = add(args, kwargs, view)
    return dataclasses.replace(match, in_place=True) if match is not None and match.kind == "bias" else None


def addcmul(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.addcmul(b, x, w)`: b + x w, a scale with its shift."""
    b, x, w, value = bind(("input", "tensor1", "tensor2", "value"), args, kwargs, (None, None, None, 1))
    match = mul((x, w), {}, view) if value == 1 else None
    if match is None or match.weight is None:
        return None
    seen = view(b)
    if seen is not None and own_shape(b, seen) != match.form.shape:  # type: ignore[attr-defined]
        return None
    return dataclasses.replace(match, bias=seen)


def _check_features(x: Tensor, size: int, weight: View) -> None:
    if x.shape[-1] != size:
        raise ValueError(
            f"{spoken(weight.path)}: the layer's input has shape {tuple(x.shape)}, expected [..., {size}]; the last axis of "
            "x (or of the layer before) does not fit this weight"
        )
