"""Bring a growth step to the scale of the network: factors for the delta and both sides of the new units.

k new units between `before` U `[p, r]` and `after` W `[q, p]`; ΔW the delta, A fan_in, Ω fan_out.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fisher.checks.finiteness import finite
from growth.checks.doors import door
from growth.checks.records import owned
from growth.closed_form.delta import Delta
from growth.closed_form.select import scale_neurons
from growth.closed_form.units import Neurons, check_units, live
from growth.reading.layers import Layer
from growth.reading.locate import plain_layers, unmapped
from growth.reading.pairs import Pair
from linmaps.checks import number
from linmaps.numerics.numeric import positive_root

Kind = Literal["after", "units", "match", "fan_in", "gradmax"]
KINDS = get_args(Kind)


@door()
def normalize(
    new: Neurons | None,
    delta: Delta | None,
    params: Any,
    pair: Pair,
    *,
    kind: Kind = "after",
    std: float | Tensor | None = None,
    gradmax_scale: float | Tensor = 1.0,
) -> tuple[Neurons | None, Delta | None]:
    """(new, delta) with ΔW, Ω and A times factors c_Δ, c_Ω, c_A that set their standard deviations.

        kind        c_Δ           c_Ω                     c_A             known as
        "after"     t / std ΔW    t / std Ω               c_Δ / c_Ω       equalize_second_layer
        "units"     c_Ω c_A       t / std Ω               t / std A       equalize_extensions
        "match"     std W/std ΔW  std W / std Ω           std U / std A   match_extending_layer
        "fan_in"    t / std ΔW    1                       t / std Ω       legacy_normalization
        "gradmax"   1             s mean_i |W_i| / |Ω_j|  1               gradmax_normalization

    t is `std`, or else std W; s is `gradmax_scale`, |W_i| the norm of an old column, |Ω_j| that of a new one.  Biases take
    part in the factors, not in the standard deviations (unbiased, over all entries of units that are not masked).  One
    that is zero or of a single entry is replaced by (inputs)^{-1/2}, inputs of ΔW, U and A being those of their layer,
    those of Ω the new units, and so those of W.  Zero columns Ω_j, and all where W is empty or zero, stay as they are.

    decrease -> c_Δ decrease, gains -> c_Ω c_A gains, eigenvalues -> sqrt(c_Ω c_A) eigenvalues, which are roots of
    decreases; but for "gradmax", where they are gradient norms: c_Ω eigenvalues.  "after" and "units" keep the direction
    of a step of delta and units together.  Either of new and delta may be None; its factors are then 1.

    Raises ValueError for an unknown kind, a std or gradmax_scale that is not positive, "gradmax" without new, and where
    new brings a joint delta.
    Source: Verbockhaven et al., "Growing tiny networks" (2024); Evci et al., "GradMax" (2022) for the last.

    >>> import torch, growth
    >>> params = {"a.weight": torch.eye(2), "b.weight": torch.tensor([[1.0, 3.0]])}
    >>> new = growth.initialize(
    ...     params,
    ...     growth.Pair("a", "b"),
    ...     1,
    ...     fan_in=lambda shape, *_: torch.ones(shape),
    ...     fan_out=lambda shape, *_: torch.ones(shape),
    ... )
    >>> normalize(new, None, params, growth.Pair("a", "b"), kind="gradmax")[0].fan_out
    tensor([[2.]])
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {list(KINDS)}")
    check_positive(std, "std")
    check_positive(gradmax_scale, "gradmax_scale")
    if new is not None:
        check_units(new)
        owned(new, "new", pair, Neurons, "optimal_neurons")
    if delta is not None:
        owned(delta, "delta", pair, Delta, "optimal_delta")
    unmapped(params, pair, "normalize")
    before, after = plain_layers(params, pair, "normalize")
    finite({"new": new, "delta": delta}, "normalize", "statistics of finite data give finite ones")
    finite(
        [layer.weight for layer in (before, after)], f"normalize: the weights of {pair}", "the training has diverged"
    )
    if kind == "gradmax":
        if new is None:
            raise ValueError('new: got None, expected units; kind="gradmax" sets the norms of their columns')
        return _columns(new, before, after, gradmax_scale), delta
    c_delta, c_out, c_in = _factors(new, delta, before, after, kind, std)
    if new is not None:
        new = scale_neurons(new, fan_in=c_in, fan_out=c_out)
    if delta is not None:
        bias = None if delta.bias is None else c_delta * delta.bias
        delta = dataclasses.replace(delta, weight=c_delta * delta.weight, bias=bias, decrease=c_delta * delta.decrease)
    return new, delta


def deviation(t: Tensor, rows: Tensor | None = None) -> Tensor:
    """The unbiased standard deviation over all entries of t `[n, ...]`, or of some rows (bool `[n]`); 0 for one entry."""
    flat = t.flatten(1) if t.ndim > 1 else t[:, None]
    weight = torch.ones_like(flat) if rows is None else rows.to(flat.dtype)[:, None].expand_as(flat)
    count = weight.sum()
    mean = (weight * flat).sum() / count.clamp(min=1)
    return positive_root((weight * (flat - mean) ** 2).sum() / (count - 1).clamp(min=1))


def _factors(
    new: Neurons | None, delta: Delta | None, before: Layer, after: Layer, kind: Kind, std: float | Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    like = after.weight if new is None and delta is None else (delta.weight if new is None else new.fan_in)  # type: ignore[union-attr]
    one = like.new_ones(())
    W, U = (layer.weight.to(like) for layer in (after, before))
    units = one * after.weight[:1].numel() if new is None else live(new).sum().to(like)
    old = _or(deviation(W), units)
    target = old if std is None else std * one
    std_delta = None if delta is None else _or(deviation(delta.weight), one * delta.weight.shape[1])
    if new is None:
        at = one if kind == "units" or std_delta is None else (old if kind == "match" else target) / std_delta
        return at, one, one
    mask = live(new)
    std_out = _or(deviation(new.fan_out.mT, mask), units)
    std_in = _or(deviation(new.fan_in, mask), one * new.fan_in.shape[1])
    c_delta = one if std_delta is None else (old if kind == "match" else target) / std_delta
    if kind == "after":
        c_out = target / std_out
        return c_delta, c_out, c_delta / c_out
    if kind == "units":
        c_out, c_in = target / std_out, target / std_in
        return c_out * c_in, c_out, c_in
    if kind == "match":
        return c_delta, old / std_out, _or(deviation(U), one * U[:1].numel()) / std_in
    return c_delta, one, target / std_out


def _or(std: Tensor, inputs: Tensor) -> Tensor:
    """std, or inputs^{-1/2} where it is zero."""
    return torch.where(std > 0, std, inputs.clamp(min=1) ** -0.5)


def _columns(new: Neurons, before: Layer, after: Layer, scale: float | Tensor) -> Neurons:
    p = before.weight.shape[0]
    if p == 0:
        return new
    old = after.weight.to(new.fan_out).unflatten(1, (p, after.columns)).transpose(0, 1).flatten(1)
    size = scale * positive_root((old**2).sum(1)).mean()
    norms = positive_root((new.fan_out**2).sum(0))
    change = (norms > 0) & (size > 0)
    factors = torch.where(change, size / torch.where(change, norms, 1.0), 1.0)
    return dataclasses.replace(scale_neurons(new, fan_out=factors), eigenvalues=factors * new.eigenvalues)


def check_positive(value: float | Tensor | None, name: str) -> None:
    """Raise unless value is a positive number, a scalar tensor, or None."""
    if value is not None:
        number(value, name, low=0, above=True)
