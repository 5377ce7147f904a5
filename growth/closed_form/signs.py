"""The better sign of each new unit, for activations with a kink at 0.  k new units, other axes as in `statistics`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fisher import LayerCollection
from fisher.checks.finiteness import finite
from growth.checks.doors import door
from growth.checks.losses import Loss, LossName
from growth.checks.records import owned
from growth.closed_form.gates import check_gate
from growth.closed_form.units import Neurons
from growth.reading.activations import sloped
from growth.reading.along import joined
from growth.reading.layers import layers_of
from growth.reading.link import CENTRE, Taps
from growth.reading.maps import Passage
from growth.reading.observe import View, observed
from growth.reading.once import Reading
from growth.reading.pairs import Pair, as_list, bare, check_pairs
from linmaps.numerics.dtypes import working
from linmaps.trees.tree import Tree


@door("f", "loss")
def choose_sign(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Pair | Sequence[Pair],
    new: Tree,
    loss: LossName | Loss = "cross_entropy",
    *,
    layers: LayerCollection | Reading | None = None,
    taps: Taps = "all",
    progress: bool = False,
    check_finite: bool = True,
) -> Tree:
    """`new` with the better sign of each unit (A_j, Ω_j) or (-A_j, -Ω_j), and its exact one-sided gain.

        gain_j = -1/n Σ_i (G_i · Ω_j) ρ(A_j · b2_i),    ρ(u) = σ'(0+) u for u >= 0,  σ'(0-) u for u < 0

    is the slope of the mean loss in the amplitude t at 0+ when unit j is added as (√t A_j, √t Ω_j), for any activation
    (σ(0) being compensated); of a `Gated` pair ρ(u) = u, times what the unit's gate lets through.  Where σ is smooth at 0
    both signs have the same gain and the unit stays as it is.
    Of a table with a padding row the units get 0 there.  One more pass over data, of the cost of `statistics`.  Lists of pairs
    and of new units give a list.  layers, taps: as in `statistics` of these units.

    Raises ValueError where `statistics` does, for slopes that are not finite (check_finite), and for units whose shapes are
    not those of the layers.

    >>> import torch, growth
    >>> f = lambda p, x: torch.relu(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.zeros(1, 2), "b.weight": torch.zeros(1, 1)}
    >>> data, pair = (torch.eye(2), torch.tensor([[3.0], [-1.0]])), growth.Pair("a", "b")
    >>> new = growth.optimal_neurons(growth.statistics(f, p, data, pair, "squared_error"), 1)
    >>> growth.choose_sign(f, p, data, pair, new, "squared_error").gain.round(decimals=3), new.gain.round(decimals=3)
    (tensor(4.5000), tensor(2.5000))
    """
    pairs, alone = check_pairs(pair)
    units = as_list(new, len(pairs), "new")
    for p, n in zip(pairs, units):
        _check(params, p, n, taps)
    pairs = [joined(p, n) for p, n in zip(pairs, units)]
    slopes: list[tuple[Tensor, Tensor]] = []
    sums: list[tuple[Tensor, Tensor]] = []
    samples = 0
    known: list[Pair] = []
    for _, count, views in observed(f, params, data, pairs, loss, layers, progress, check_finite, taps):
        units = units if samples else [_padded(v, n) for v, n in zip(views, units)]
        w = [_back(v, n) for v, n in zip(views, units)]
        parts = [one_sided(n, v.b2, t, v.passage) for n, v, t in zip(units, views, w)]
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, parts)] if sums else parts
        slopes = slopes or [_sides(v) for v in views]
        known = known or [v.pair for v in views]
        samples += count
    out = []
    for n, both, (plus, minus), p in zip(units, sums, slopes, known):
        sides = signed_gains(both, plus, minus, samples)
        if check_finite:
            finite(sides, "choose_sign: the slopes", "new or the gradients of f overflow; or pass check_finite=False")
        out.append(dataclasses.replace(better_sign(n, *sides), pair=bare(p)))
    return cast(Tree, out[0] if alone else out)


def _sides(view: View) -> tuple[Tensor, Tensor]:
    """The slopes of the activation at 0+ and 0-; where `one_sided` has taken them in, 1 (0 of a map that is flat) and 0."""
    plus, minus = sloped(view.activation, view.b1, str(view.pair))[1:]
    return (plus, minus) if view.passage is None else (((plus != 0) | (minus != 0)).to(plus), torch.zeros_like(minus))


def _padded(view: View, new: Neurons) -> Neurons:
    """Units that are 0 at the padding row of a table."""
    if view.padding is None:
        return new
    column = torch.arange(new.fan_in.shape[1], device=new.fan_in.device)
    at = column == view.padding % len(column)
    return dataclasses.replace(new, fan_in=torch.where(at, 0.0, new.fan_in))


def _back(view: View, new: Neurons) -> Tensor:
    """G_i · Ω_j at the hidden positions, times what the unit's gate lets through."""
    w = view.link.back(view.g, working(new.fan_out).to(view.g.dtype))
    return w if new.gate is None else w * view.opened(new.gate, new.gate_bias)


def one_sided(new: Neurons, b2: Tensor, w: Tensor, passage: Passage | None = None) -> tuple[Tensor, Tensor]:
    """Σ_i w_ij max(u, 0) and Σ_i w_ij max(-u, 0) with u = A_j · b2_i, for w_ij = G_i · Ω_j over all positions i: `[k]` each.

    Where positions are joined in between: the slopes of Σ_i w_ij passage(t u)_i and of Σ_i w_ij passage(-t u)_i at t = 0+.
    """
    u = b2 @ working(new.fan_in).to(b2.dtype).mT
    if new.fan_in_bias is not None:
        u = u + working(new.fan_in_bias).to(u.dtype)
    if passage is not None:
        return passage.slope(u, w), passage.slope(-u, w)
    rows = tuple(range(u.ndim - 1))
    return (w * u.clamp(min=0)).sum(rows), (w * (-u).clamp(min=0)).sum(rows)


def signed_gains(sums: tuple[Tensor, Tensor], plus: Tensor, minus: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """The gains of units as they are and of their opposites, from `one_sided` and the slopes of σ at 0."""
    up, down = sums
    return (minus * down - plus * up) / samples, (plus * down - minus * up) / samples


def better_sign(new: Neurons, kept: Tensor, flipped: Tensor) -> Neurons:
    """Each unit, or its opposite where that gains more, with these gains."""
    flip = flipped > kept
    gains = torch.where(flip, flipped, kept).to(new.gains.dtype)

    def turn(t: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, -t, t)

    return dataclasses.replace(
        new,
        fan_in=turn(new.fan_in, flip[:, None]),
        fan_in_bias=None if new.fan_in_bias is None else turn(new.fan_in_bias, flip),
        fan_out=turn(new.fan_out, flip),
        gains=gains,
        gain=gains.sum(),
    )


def _check(params: Any, pair: Pair, new: Neurons, taps: Taps) -> None:
    owned(new, "new", pair, Neurons, "optimal_neurons")
    before, after = layers_of(params, pair)
    each = 1 if taps == CENTRE else after.taps
    want = (new.size, sum(layer.inputs for layer in before.all)), (after.weight.shape[0] * each, new.size)
    check_gate(pair, new)
    got = tuple(new.fan_in.shape), tuple(new.fan_out.shape)
    if got != want:
        raise ValueError(
            f"{pair}: new has fan_in {got[0]} and fan_out {got[1]}, expected {want[0]} and {want[1]}; give units made "
            "from statistics of this pair, and the same taps"
        )
