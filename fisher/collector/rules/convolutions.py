"""Rules for convolutions and transposed convolutions in one to three dimensions; groups exactly, padding as numbers or names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fisher.collector.rules.forms import Convolution
from fisher.collector.rules.match import Lookup, Match, Rule, bind, is_input

_FORWARD = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_BACK = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


def convolution(n: int) -> Rule:
    """The rule for `F.conv{n}d`."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
        x, w, b, stride, padding, dilation, groups = bind(_FORWARD, args, kwargs, (None, None, None, 1, 0, 1, 1))
        if not _fits(x, w, b, view, n):
            return None
        kernel, dilation = tuple(w.shape[2:]), _each(dilation, n)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, kernel)]
            pads = tuple((t // 2, t - t // 2) for t in total)
        else:
            pads = tuple((p, p) for p in _each(0 if padding == "valid" else padding, n))
        form = Convolution(False, kernel, _each(stride, n), pads, dilation, groups, weight=_other(w, view))
        return Match(f"conv{n}d", view(w), view(b) if b is not None else None, x, form)

    rule.__name__ = f"conv{n}d"
    return rule


def transposed_convolution(n: int) -> Rule:
    """The rule for `F.conv_transpose{n}d`."""

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
        defaults = (None, None, None, 1, 0, 0, 1, 1)
        x, w, b, stride, padding, extra, groups, dilation = bind(_BACK, args, kwargs, defaults)
        if not _fits(x, w, b, view, n):
            return None
        kernel, dilation = tuple(w.shape[2:]), _each(dilation, n)
        reach = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, _each(padding, n))]
        pads = tuple((r, r + e) for r, e in zip(reach, _each(extra, n)))
        form = Convolution(False, kernel, _each(stride, n), pads, dilation, groups, True, _other(w, view))
        return Match(f"conv_transpose{n}d", view(w), view(b) if b is not None else None, x, form)

    rule.__name__ = f"conv_transpose{n}d"
    return rule


def _fits(x: Any, w: Any, b: Any, view: Lookup, n: int) -> bool:
    """Whether the weight is a leaf in full, and x has a batch axis."""
    seen = view(w)
    whole = seen is not None and not seen.transposed and seen.rows is None and seen.shape in (None, tuple(w.shape))
    return whole and is_input(x) and isinstance(b, (Tensor, type(None))) and x.ndim == n + 2


def _other(w: Tensor, view: Lookup) -> tuple[int, ...] | None:
    """The shape of the kernel, where the leaf has another."""
    seen = view(w)
    return None if seen is None else seen.shape


def _each(value: Any, n: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * n
    return tuple(value) * n if len(value) == 1 else tuple(value)
