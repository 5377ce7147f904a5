"""Rules for scales and shifts: `x * w`, and the affine parts of layer, RMS, group, batch and instance norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fisher.collector.rules.forms import Channels, Elementwise, Form
from fisher.collector.rules.match import Lookup, Match, View, bind, is_input


def mul(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`x * w` with w broadcast over the examples: a scale."""
    x, w = bind(("input", "other"), args, kwargs, (None, None))
    if not isinstance(x, Tensor) or not isinstance(w, Tensor):
        return None
    if view(w) is None:
        x, w = w, x
    seen = view(w)
    if seen is None or view(x) is not None or seen.transposed or seen.rows is not None or not x.is_floating_point():
        return None
    shape = own_shape(w, seen)
    return Match("scale", seen, None, x, Elementwise(shape=shape)) if x.ndim and broadcasts(shape, x) else None


def imul(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`x *= w`: a scale that is written over x."""
    match = mul(args, kwargs, view) if view(args[0]) is None else None
    return dataclasses.replace(match, in_place=True) if match is not None else None


def own_shape(t: Tensor, seen: View) -> tuple[int, ...]:
    """The shape in which the entries of a leaf stand in a call, 1 where they are repeated."""
    return tuple(t.shape) if seen.shape is None else seen.shape


def broadcasts(shape: tuple[int, ...], x: Tensor) -> bool:
    """Whether entries of this shape are the same for all along x's first axis."""
    return len(shape) < x.ndim or (len(shape) == x.ndim and shape[0] == 1)


def prelu(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.prelu(x, w)`: max(x, 0) + w min(x, 0), with one w or one for each channel, axis 1."""
    x, w = bind(("input", "weight"), args, kwargs, (None, None))
    seen = view(w)
    if seen is None or view(x) is not None or seen.transposed or seen.rows is not None or not is_input(x):
        return None
    form = Channels() if w.numel() > 1 else Elementwise(shape=(1,))
    return Match("prelu", seen, None, x, form, lambda x: x.clamp(max=0.0))


def layer_norm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.layer_norm`: the factor of the weight is the normalized x."""
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    x, shape, w, b, eps = bind(names, args, kwargs, (None, None, None, None, 1e-5))
    return _norm(x, w, b, view, Elementwise(shape=tuple(shape)), lambda x: F.layer_norm(x, shape, None, None, eps))


def rms_norm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.rms_norm`."""
    x, shape, w, eps = bind(("input", "normalized_shape", "weight", "eps"), args, kwargs, (None,) * 4)
    return _norm(x, w, None, view, Elementwise(shape=tuple(shape)), lambda x: F.rms_norm(x, shape, None, eps))


def group_norm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.group_norm`, on any number of positions."""
    names = ("input", "num_groups", "weight", "bias", "eps")
    x, groups, w, b, eps = bind(names, args, kwargs, (None, 1, None, None, 1e-5))
    return _norm(x, w, b, view, Channels(), lambda x: F.group_norm(x, groups, None, None, eps))


def batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.batch_norm` in eval mode, with its own eps; in train mode it mixes examples and is refused."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    x, mean, var, w, b, training, _, eps = bind(names, args, kwargs, (None, None, None, None, None, False, 0.1, 1e-5))
    if training or mean is None:
        return None
    return _norm(x, w, b, view, Channels(), lambda x: F.batch_norm(x, mean, var, None, None, False, 0.0, eps))


def instance_norm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.instance_norm` by the statistics of each example."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    x, mean, var, w, b, own, momentum, eps = bind(names, args, kwargs, (None, None, None, None, None, True, 0.1, 1e-5))
    if own and mean is not None:  # updates its running statistics in place
        return None
    return _norm(x, w, b, view, Channels(), lambda x: F.instance_norm(x, mean, var, None, None, own, momentum, eps))


def _norm(x: Any, w: Any, b: Any, view: Lookup, form: Form, feature: Callable[[Tensor], Tensor]) -> Match | None:
    weight, bias = (view(t) if t is not None else None for t in (w, b))
    partial = [v for v in (weight, bias) if v is not None and (v.transposed or v.rows is not None)]
    if not is_input(x) or partial or (weight is None and bias is None):
        return None
    if w is not None and weight is None:
        return None  # scaled by something else: the shift alone is no affine part
    return Match("scale" if weight is not None else "shift", weight, bias, x, form, feature)
