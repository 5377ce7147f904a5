"""Products of a gate and another layer: which activation the gate has, and does f compute that product and nothing else?

B batch, S positions, p hidden units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fisher import LayerCollection
from fisher.checks.agreement import generic
from fisher.checks.axes import batch_size
from fisher.collector.taps import column_rows, pull
from growth.reading.activations import USUAL, Activation, applied, gap
from growth.reading.between import LOOSE, TF32, verify, written_out
from growth.reading.calls import ungrown
from growth.reading.gated_pairs import Gated
from growth.reading.layers import Layer, layers_of
from growth.reading.locate import Place, located
from growth.reading.pairs import Pair
from growth.reading.probe import check_silent, one_width, with_unit
from linmaps.numerics.dtypes import working
from linmaps.trees.graphs.tracing import traced


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What f computes at a gated pair: inputs of gate and up, z of both, h that enters `after`; gradients at these."""

    inputs: tuple[Tensor, Tensor]
    gate: Tensor
    up: Tensor
    h: Tensor
    at_gate: Tensor
    at_up: Tensor
    at_h: Tensor
    accuracy: float


def with_activations(
    f: Callable[..., Tensor], params: Any, pairs: Sequence[Pair], layers: LayerCollection, x: Any
) -> list[Pair]:
    """The pairs, gated ones with the activation that f applies to their gate, and others with one that f writes out in calls
    that are no chain, as the GELU of GPT-2, found among the usual ones.

    Compared are values at these parameters and at the opposite gate, where other halves of an activation are seen.
    """
    return [
        _named(f, params, p, layers, x)
        if isinstance(p, Gated) and p.activation is None
        else written_out(f, params, p, layers, x)
        for p in pairs
    ]


def _named(f: Callable[..., Tensor], params: Any, pair: Gated, layers: LayerCollection, x: Any) -> Gated:
    if traced():
        raise ValueError(
            f"{pair}: its activation is found among numbers, which there are none of while a graph is made, expected its name; "
            "give Gated(..., activation=...)"
        )
    params, layers = _there(f, params, pair, layers, x)
    before, _ = layers_of(params, pair)
    gate = cast(Layer, before.gate)
    turned = gate.put_bias(gate.put(params, -gate.weight), None if gate.bias is None else -gate.bias)
    sides = [_look(f, p, layers, pair, x) for p in (params, turned)]
    gaps = [max(gap(side.h, sigma(side.gate) * side.up) for side in sides) for sigma in USUAL]
    best = min(range(len(USUAL)), key=gaps.__getitem__)
    if not gaps[best] <= sides[0].accuracy:
        if (words := ungrown(f, params, pair, x)) is not None:
            raise ValueError(words)
        _not_swapped(pair, sides, USUAL)
        names = ["identity", *(getattr(sigma, "__name__", "").strip("_") for sigma in USUAL[1:])]
        raise ValueError(
            f"{pair}: the input of the layer after is not the product of up and an activation of gate, for none of {names}; "
            "expected h = sigma(gate x) * (up x) and nothing else between; if sigma is another name it: "
            "Gated(gate, up, after, activation=...), which is compared with what f does"
        )
    return dataclasses.replace(pair, activation=USUAL[best])


def verify_all(
    f: Callable[..., Tensor],
    params: Any,
    pairs: Sequence[Pair],
    layers: LayerCollection,
    places: Sequence[Place],
    x: Any,
) -> None:
    """`verify` for pairs, and its like for gated ones, whose activations are known."""
    plain = [(p, place) for p, place in zip(pairs, places) if not isinstance(p, Gated)]
    if plain:
        verify(f, params, [p for p, _ in plain], layers, [place for _, place in plain], x)
    for p in pairs:
        if isinstance(p, Gated):
            verify_gated(f, params, p, layers, x)


def verify_gated(f: Callable[..., Tensor], params: Any, pair: Gated, layers: LayerCollection, x: Any) -> None:
    """Raise a ValueError unless, on x, the input of `after` is sigma(output of gate) * output of up, and nothing else is.

    Of values, and of the gradients at the outputs of gate and up with what comes back from `after`, which see every other
    way that leads away from there.
    """
    seen = _look(f, *_there(f, params, pair, layers, x), pair, x)
    first, second = seen.inputs
    accuracy = seen.accuracy
    if first.shape != second.shape or gap(first, second) > accuracy:
        raise ValueError(
            f"{pair}: the inputs of gate and up differ, expected the same: a new unit has a row for them in both; give a pair "
            "whose two layers read one tensor"
        )
    sigma, slope = applied(pair.activation, seen.gate)  # type: ignore[arg-type]
    if seen.h.shape != sigma.shape or gap(seen.h, sigma * seen.up) > accuracy:
        _not_swapped(pair, [seen], [cast(Activation, pair.activation)])
        name = getattr(pair.activation, "__name__", str(pair.activation))
        raise ValueError(
            f"{pair}: the input of the layer after is not the named activation ({name}) of gate times up, expected "
            "h = sigma(gate x) * (up x) and nothing else between"
        )
    step = 16 * accuracy**2 * seen.gate.detach().abs().amax() if seen.gate.numel() else 0.0
    low, high = (applied(pair.activation, seen.gate + d)[1] for d in (-step, step))  # type: ignore[arg-type]
    smooth = (high - low).abs() <= accuracy * (1 + slope.detach().abs())
    ways = [(seen.at_up, seen.at_h * sigma), (torch.where(smooth, seen.at_gate, 0.0), seen.at_h * seen.up * slope)]
    ways[1] = (ways[1][0], torch.where(smooth, ways[1][1], 0.0))
    if any(gap(got, came) > accuracy for got, came in ways):
        raise ValueError(
            f"{pair}: the product that enters the layer after is not the only thing that gate, up or their product are used "
            "for, expected nothing else: a new unit would change that too; choose another pair"
        )
    check_silent(f, params, pair, x, f(params, x))


def _not_swapped(pair: Gated, sides: Sequence[_Seen], activations: Sequence[Activation]) -> None:
    """Raise a ValueError if the halves of a packed layer are what f computes, but in the other order."""
    if pair.packed is None:
        return
    for sigma in activations:
        if all(gap(side.h, applied(sigma, side.up)[0] * side.gate) <= side.accuracy for side in sides):
            raise ValueError(
                f"{pair}: f applies the activation to the other half of the packed layer, expected order={pair.order!r}; give "
                f"{pair.swapped}"
            )


def _there(
    f: Callable[..., Tensor], params: Any, pair: Gated, layers: LayerCollection, x: Any
) -> tuple[Any, LayerCollection]:
    """params and layers, with a unit if there is none yet."""
    if layers_of(params, pair)[0].weight.shape[0]:
        return params, layers
    params = with_unit(params, pair)
    try:
        return params, LayerCollection.from_function(f, params, x)
    except (RuntimeError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(one_width(pair, error, "with one more hidden unit")) from error


def _look(f: Callable[..., Tensor], params: Any, layers: LayerCollection, pair: Gated, x: Any) -> _Seen:
    place = located(layers, params, pair)
    uses = (place.before[0], cast(int, place.gate), place.after[0])
    y, inputs, back = pull(f, params, x, layers, tuple(sorted(set(uses))), lambda _, a: a)
    rows = column_rows(layers, back(generic(y)[None]), batch_size(x))
    before, after = layers_of(params, pair)
    up, gate, h = (working(inputs[k]) for k in uses)
    at_up, at_gate, at_after = (working(rows[k][0]) for k in uses)
    at_up, at_gate = before.own(at_up), cast(Layer, before.gate).own(at_gate)
    return _Seen(
        inputs=(gate, up),
        gate=_output(gate, cast(Layer, before.gate)),
        up=_output(up, before),
        h=h,
        at_gate=at_gate,
        at_up=at_up,
        at_h=at_after @ working(after.weight),
        accuracy=_accuracy(inputs[uses[2]]),
    )


def _output(a: Tensor, layer: Layer) -> Tensor:
    z = a @ working(layer.weight).mT
    return z if layer.bias is None else z + working(layer.bias)


def _accuracy(t: Tensor) -> float:
    eps = torch.finfo(t.dtype).eps
    return min(LOOSE, 10 * max(eps, TF32 if t.device.type != "cpu" and t.dtype == torch.float32 else 0.0) ** 0.5)
