"""What f computes between the two layers of a pair, held against the pair: by values and by gradients.

B batch, m hidden positions, X positions of `after`, p hidden units, e taps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from fisher import LayerCollection
from fisher.checks.agreement import generic, side_by_side
from fisher.checks.axes import batch_size
from fisher.collector.blocks.uses import Use
from fisher.collector.rules.forms import Convolution
from fisher.collector.taps import column_rows, pull
from growth.reading.activations import USUAL, gap, valued
from growth.reading.along import norm_leaves
from growth.reading.calls import is_arithmetic, refusal
from growth.reading.gated_pairs import Gated
from growth.reading.layers import Layer, layers_of
from growth.reading.locate import Place, located, output_of
from growth.reading.pairs import Pair
from growth.reading.probe import check_silent, one_width, with_unit
from linmaps.checks import values
from linmaps.numerics.dtypes import working
from linmaps.trees import path_str
from linmaps.trees.graphs.tracing import traced

LOOSE = 0.1  # relative, of half precision
NORM_EPS = 2e-3  # what the eps of a batch norm does to a unit of variance 1
TF32 = 1e-3
ROUNDINGS, DIGITS = 100, 1e-8  # by which an activation that f writes out differs from torch's, and of its constants


def verify(
    f: Callable[..., Tensor],
    params: Any,
    pairs: Sequence[Pair],
    layers: LayerCollection,
    found: Sequence[Place],
    x: Any,
) -> None:
    """Raise a ValueError unless, on x, the input of each `after` is activation(output of `before`), and nothing else is.

    Two comparisons at the hidden units there are: of values, and of the gradient at the output of `before` with what comes
    back from `after`, which sees every other way that leads away from there.  Without a unit, behind a norm, and where the
    activation has numbers for each unit, at one more unit, for which the norm is the identity.
    Cost: one forward and one backward for all pairs.
    """
    there = [not _fresh(params, pair) for pair in pairs]
    uses = {k for place, old in zip(found, there) if old for k in (*place.before, place.after[0])}
    seen = _look(f, params, layers, uses, x) if uses else None
    for pair, place in zip(pairs, found):
        if seen is not None and not _fresh(params, pair):
            _compare(f, params, pair, layers, place, x, seen, 0)
        else:
            _compare_new(f, params, pair, x)
    old = f(params, x)
    for pair in pairs:
        check_silent(f, params, pair, x, old)


def written_out(f: Callable[..., Tensor], params: Any, pair: Pair, layers: LayerCollection, x: Any) -> Pair:
    """The pair with the usual activation that f computes where its calls are no chain, as z * sigmoid(z); as it is if none is.

    Of the usual ones that of the nearest values, at these parameters and at the opposite ones, and no farther than rounding,
    of values or of constants that are written to eight digits.
    """
    if pair.activation is not None or isinstance(pair, Gated) or traced():
        return pair
    if _fresh(params, pair) or _is_located(layers, params, pair):
        return pair
    known = dataclasses.replace(pair, activation=USUAL[0])
    before, after = layers_of(params, pair)
    if before.others or after.others or not _is_located(layers, params, known) or not is_arithmetic(f, params, pair, x):
        return pair
    turned = before.put_bias(before.put(params, -before.weight), None if before.bias is None else -before.bias)
    gaps, bound = [0.0 for _ in USUAL], math.inf
    for p in (params, turned):
        place, (first, last) = located(layers, p, known), layers_of(p, pair)
        (k,), n = place.before, place.after[0]
        inputs = _look(f, p, layers, {k, n}, x)[0]
        z, got = outputs([layers.uses[k]], [inputs[k]], first), working(inputs[n])
        shape = hidden_shape(layers.uses[k], batch_size(x))
        reached = lambda h: _arranged(h, layers.uses[k], layers.uses[n], last, shape)  # noqa: B023
        gaps = [max(far, gap(got, reached(valued(sigma, z)))) for far, sigma in zip(gaps, USUAL)]
        accuracy, eps = _accuracy([layers.uses[k].dtype, layers.uses[n].dtype, inputs[n].dtype], got.device, False)
        bound = min(bound, accuracy, max(ROUNDINGS * eps, DIGITS))
    best = min(range(len(USUAL)), key=gaps.__getitem__)
    return dataclasses.replace(pair, activation=USUAL[best]) if gaps[best] <= bound else pair


def _is_located(layers: LayerCollection, params: Any, pair: Pair) -> bool:
    try:
        located(layers, params, pair)
    except ValueError:
        return False
    return True


def _fresh(params: Any, pair: Pair) -> bool:
    between = pair.norm is not None or bool(pair.along) or pair.depthwise is not None
    return between or not layers_of(params, pair)[0].weight.shape[0]


def _compare_new(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> None:
    """The same at one more unit."""
    old = layers_of(params, pair)[0].weight.shape[0]
    params = with_unit(params, pair)
    try:
        layers = LayerCollection.from_function(f, params, x)
    except (RuntimeError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(
            one_width(pair, error, "with one more hidden unit")
            + "; of a module with batch norm its buffers grow too: fisher.functional(module, buffers=True)"
        ) from error
    place = located(layers, params, pair)
    seen = _look(f, params, layers, {*place.before, place.after[0]}, x)
    _compare(f, params, pair, layers, place, x, seen, old)


Seen = tuple[dict[int, Tensor], dict[int, Tensor]]


def _look(f: Callable[..., Tensor], params: Any, layers: LayerCollection, uses: set[int], x: Any) -> Seen:
    """Inputs of these uses, and the gradients at their outputs of a generic sum of the outputs of f."""
    y, inputs, back = pull(f, params, x, layers, tuple(sorted(uses)), lambda _, a: a)
    ramp = generic(y)
    rows = column_rows(layers, back(ramp[None]), batch_size(x))
    return inputs, {k: working(t[0]) for k, t in rows.items()}


def _compare(
    f: Callable[..., Tensor],
    params: Any,
    pair: Pair,
    layers: LayerCollection,
    place: Place,
    x: Any,
    seen: Seen,
    start: int,
) -> None:
    """Of the units from `start` on."""
    before, after = layers_of(params, pair)
    inputs, g = seen
    first, last = layers.uses[place.before[0]], layers.uses[place.after[0]]
    uses = [layers.uses[k] for k in place.before]
    z = outputs(uses, [inputs[k] for k in place.before], before)
    got = working(inputs[place.after[0]])
    accuracy, eps = _accuracy(
        [first.dtype, last.dtype, inputs[place.after[0]].dtype], got.device, pair.norm is not None
    )
    shape = hidden_shape(first, batch_size(x))
    passage = place.passage(shape)
    behind = shape if passage is None else passage.after(z)
    arranged = lambda h: _arranged(h, first, last, after, behind)
    reached = lambda z: arranged(valued(place.activation, z) if passage is None else passage.values(z))
    step = 16 * eps * z.detach().abs().amax() if z.numel() else z.sum().detach()
    beside, back = vjp(reached, torch.cat([z - step, z, z + step]))  # type: ignore[misc]
    below, want, above = beside.tensor_split(3)
    if want.shape != got.shape:
        is_, expected = (tuple(t.shape[1:]) for t in (got, want))
        raise ValueError(
            refusal(f, params, pair, x, f"has [positions, features] {is_}, expected {expected} as they leave it")
        )
    slack = (above - below).abs()  # rounding of z, where the activation is steep or jumps
    units = lambda t: t.unflatten(-1, (-1, after.taps))[..., start:, :]
    wrong = _differs(units(got), units(want), units(slack), accuracy)
    if wrong is not None:
        why = f"is not {_called(place, pair)} of the output before: {wrong}"
        raise ValueError(refusal(f, params, pair, x, why))
    leaving = g[place.after[0]] @ working(after.weight).flatten(1)
    low, came, high = back(leaving.repeat(3, 1, 1))[0].tensor_split(3)
    smooth = (high - low).abs() <= accuracy * came.detach().abs()
    seen_z, want_z = (torch.where(smooth, t, 0.0)[..., start:] for t in (g[place.before[0]], came))
    wrong = _differs(seen_z, want_z, None, accuracy)
    if wrong is not None:
        why = "is not the only one that it is used for, or its derivative is another"
        raise ValueError(refusal(f, params, pair, x, f"{why}: of the gradient at the output of {before.name}, {wrong}"))


def normed(params: Any, pair: Pair, z: Tensor) -> Tensor:
    """z `[..., p]` as the norms of the pair leave it, by their leaves, up to the eps: to see which positions units choose."""
    leaves = [(path_str(path), working(leaf)) for path, leaf, _ in norm_leaves(params, pair)]
    for stem in map(path_str, pair.norms):
        own = {n.removeprefix(f"{stem}."): t for n, t in leaves if n.startswith(f"{stem}.")}
        if "running_mean" in own and "running_var" in own:
            z = (z - own["running_mean"]) / (own["running_var"] + NORM_EPS**2).sqrt()
        z = z * own["weight"] if "weight" in own else z
        z = z + own["bias"] if "bias" in own else z
    return z


def hidden_shape(use: Use, batch: int) -> tuple[int, ...]:
    """The shape of the map of each hidden unit; of a dense layer how many positions it has."""
    shape = use.tap_shape(batch)
    if isinstance(use.form, Convolution):
        return tuple(shape[2:])
    return (math.prod(shape[:-1]) // max(1, batch),)


def outputs(uses: Sequence[Use], inputs: Sequence[Tensor], before: Layer) -> Tensor:
    """The output of the layers added, `[B, m, p]`."""
    total = sum(output_of(use, a, layer) for use, a, layer in zip(uses, inputs, before.all))
    return total + sum(working(layer.bias) for layer in before.all if layer.bias is not None)  # type: ignore[return-value]


def _arranged(h: Tensor, before: Use, after: Use, layer: Layer, shape: tuple[int, ...]) -> Tensor:
    """h `[B, m, p]` as the rows `[B, X, p e]` that enter `after` if it is what `after` reads."""
    if isinstance(after.form, Convolution):
        if math.prod(shape) != h.shape[1] or not isinstance(before.form, Convolution):
            return h
        return after.form.inputs(h.mT.reshape(len(h), h.shape[2], *shape)).flatten(1, -2)
    return h if layer.columns == 1 else h.mT.flatten(1)[:, None]


def _accuracy(dtypes: Sequence[torch.dtype], device: torch.device, normed: bool) -> tuple[float, float]:
    """(relative tolerance, rounding) of what was computed in the coarsest of these dtypes on this device."""
    eps = max(torch.finfo(d).eps for d in dtypes if d.is_floating_point)
    eps = max(eps, TF32) if device.type != "cpu" and torch.float32 in dtypes else eps
    return max(min(LOOSE, 10 * eps**0.5), NORM_EPS if normed else 0.0), eps


def _differs(got: Tensor, want: Tensor, slack: Tensor | None, accuracy: float) -> str | None:
    """How far got is from want, in words, if it is farther than rounding: looked at to raise only."""
    a, b, *rest = (values(t) for t in side_by_side(got, want, *([] if slack is None else [slack])))
    s = rest[0] if rest else None
    if a is None or b is None or not a.numel():
        return None
    size = max(float(a.abs().amax()), float(b.abs().amax()))
    apart = (a - b).abs() if s is None else (a - b).abs() - s
    worst = float(apart.amax())
    if not math.isfinite(size) or not worst > accuracy * size:
        return None
    return f"they differ by up to {float((a - b).abs().amax()):.3g}, at a size of {size:.3g}"


def near(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors, computed in this dtype, are as near to each other as `verify` asks for.

    >>> near(torch.ones(2), torch.ones(2) + 1e-6, torch.float32), near(torch.ones(2), torch.zeros(2), torch.float32)
    (True, False)
    """
    return got.shape == want.shape and _differs(got, want, None, _accuracy([dtype], got.device, False)[0]) is None


def _called(place: Place, pair: Pair) -> str:
    name = getattr(place.activation, "__name__", str(place.activation))
    return f"the named activation ({name})" if pair.activation is not None else f"what was read ({name})"
