"""One pass over data: what enters the two layers of each pair, and the gradient at the output of the second.

B batch, m hidden positions, X positions of `after`, r p q as in `pairs` (times the kernel for convolutions).  One forward
and one backward per batch, for all pairs together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fisher import LayerCollection
from fisher.checks.arguments import detached
from fisher.collector.rules.forms import Lookup
from fisher.collector.taps import column_rows, pull
from fisher.passes.checkpoints import Checkpoint, Stage
from growth.checks.buffers import buffers_fixed, counters_fixed
from growth.checks.data import examples
from growth.checks.losses import Loss, LossName, gradient, per_sample
from growth.reading.activations import Activation, valued
from growth.reading.between import near, normed, outputs
from growth.reading.layers import Layer, layers_of
from growth.reading.link import TAPS, Link, Taps, linked
from growth.reading.locate import Place, inputs_of
from growth.reading.maps import Passage
from growth.reading.once import Reading, has_maps, reading_of, resized, sizes_of
from growth.reading.pairs import Pair
from linmaps.checks import values
from linmaps.numerics.dtypes import working

EVERY = Checkpoint().stage()  # no batch was done before
SPOT = 4  # examples on which a reading is looked at


@dataclasses.dataclass(frozen=True)
class View:
    """A pair on one batch: b2 `[B, m, r]`, b1 `[B, X, p]`, g `[B, X, q]` = d loss / d a, and how positions meet.

    uses: the numbers of the calls that b2 and b1 enter, the same for neighbouring pairs that share them.
    gate: the activation of the gate of a gated pair, whose b1 is gate(z) times what `before` gives, and activation nothing.
    passage: what joins positions between the layers, and z `[B, m, p]`, the output of the first.
    pair: with the leaves that were found to grow along.  eps: of its batch norm, where that measures the output of `before`.
    padding: of a lookup the row that is used by nothing.  before: the first layer.
    """

    b2: Tensor
    b1: Tensor
    g: Tensor
    activation: Activation
    link: Link
    uses: tuple[tuple[int, ...], tuple[int, ...]]
    pair: Pair
    eps: float | None = None
    gate: Activation | None = None
    passage: Passage | None = None
    z: Tensor | None = None
    padding: int | None = None
    before: Layer | None = None

    def pooled(self, a: Tensor) -> Tensor:
        """a `[B, m, C]` at the positions that `after` reads, `[B, m', C]`."""
        return a if self.passage is None or self.z is None else self.passage.inputs(a, self.z)

    def opened(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """What gates of these rows `[k, r]` let through, `[B, m, k]`; 1 without a gate."""
        if self.gate is None:
            return self.b2.new_ones(())
        z = self.b2 @ working(rows).to(self.b2.dtype).mT
        return self.gate(z if bias is None else z + working(bias).to(z.dtype))


def observed(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pairs: Sequence[Pair],
    loss: LossName | Loss,
    layers: LayerCollection | Reading | None,
    progress: bool,
    check_finite: bool,
    taps: Taps = TAPS[0],
    stage: Stage = EVERY,
    none: bool = False,
    held: list[Reading] | None = None,
) -> Iterator[tuple[str, int, list[View]]]:
    """For each batch that is not empty: its name, its samples and one View per pair; but for those that `stage` has done.

    layers: a Reading, where it is one of these pairs, is taken as it is.  none: whether there may be no sample.
    held: to it is added what was read of the first batch.
    """
    if taps not in TAPS:
        raise ValueError(f"taps: got {taps!r}, expected one of {list(TAPS)}")
    f, params = counters_fixed(buffers_fixed(f), detached(params))
    each = per_sample(loss)
    found = layers if isinstance(layers, LayerCollection) else None
    reading: Reading | None = None
    seen = examples(data, params, progress=progress, check_finite=check_finite, none=none)
    for x, target, name, samples in stage.over((x, target, name, n) for name, x, target, n in seen):
        trusted = False
        if reading is None:
            given = layers.known(params, pairs, x) if isinstance(layers, Reading) else None
            reading = given or reading_of(f, params, x, pairs, found)
            trusted, places = given is not None, reading.at(params)
            if held is not None:
                held.append(reading)
        elif found is None and reading.sizes[1] != sizes_of(x, 1) and any(has_maps(reading.layers, p) for p in places):
            reading = resized(reading, f, params, x)
            places = reading.at(params)
        if stage.done:
            continue
        views = _views(f, params, x, gradient(each, target), reading, places, samples, taps)
        if trusted and not all(_as_read(view, place) for view, place in zip(views, places)):
            reading = reading_of(f, params, x, pairs, None)  # which says what f does now, or refuses it
            places = reading.at(params)
            views = _views(f, params, x, gradient(each, target), reading, places, samples, taps)
        yield name, samples, views


def _views(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    cotangent: Callable[[Tensor], Tensor],
    reading: Reading,
    places: Sequence[Place],
    samples: int,
    taps: Taps,
) -> list[View]:
    both = [side for p in places for side in (p.before, p.after)]
    uses = {k for side in both if len(side) > 1 for k in side} | {k for p in places for k in p.after}
    rest = {k for side in both for k in side} - uses
    known, tapped = reading.layers, tuple(sorted(uses))
    y, inputs, back = pull(f, params, x, known, tapped, lambda _, a: a, tuple(sorted(rest)))
    g = column_rows(known, back(cotangent(y)), samples)
    io = {k: (a, g.get(k)) for k, a in inputs.items()}
    return [
        _view(p, place, known, io, samples, taps, params, e) for p, place, e in zip(reading.pairs, places, reading.eps)
    ]


def _as_read(view: View, place: Place) -> bool:
    """Whether what enters `after` is what was read, of the first examples, where that takes one small product to see."""
    before, pair = cast(Layer, view.before), view.pair
    apart = (
        place.gate is not None
        or pair.norm is not None
        or bool(pair.along)
        or pair.depthwise is not None
        or view.padding is not None
    )
    width, link = before.weight.shape[0], view.link
    centre = link.index is not None and view.b1.shape[2] != width * link.taps  # of all taps that b1 has
    if apart or before.others or view.passage is not None or not width or centre:
        return True
    z = view.b2[:SPOT] @ working(before.weight).flatten(1).to(view.b2.dtype).mT
    want = valued(view.activation, z if before.bias is None else z + working(before.bias))
    if link.index is not None:  # under each tap, 0 on padding
        want = torch.nn.functional.pad(want, (0, 0, 0, 1))[:, link.index].mT.flatten(2)
    return near(view.b1[:SPOT], want, before.weight.dtype)


def _view(
    pair: Pair,
    place: Place,
    layers: LayerCollection,
    io: Any,
    samples: int,
    taps: Taps,
    params: Any,
    eps: float | None,
) -> View:
    entering, _ = layers_of(params, pair)
    seen = {k: layers.uses[k] for k in place.before}
    sides = [(inputs_of(seen[k], io[k][0], layer), io[k][1]) for k, layer in zip(place.before, entering.all)]
    (b2, _), (b1, g) = _together(pair, sides), _together(pair, [io[k] for k in place.after])
    before, after = layers.uses[place.before[0]], layers.uses[place.after[0]]
    shape = tuple(before.tap_shape(samples)[2:]) if has_maps(layers, place) else (b2.shape[1],)
    if math.prod(shape) != b2.shape[1]:
        raise ValueError(
            f"{pair}: the hidden map has {b2.shape[1]} positions, expected {shape} as in the LayerCollection; give "
            "layers=None for data of several sizes"
        )
    passage = place.passage(shape)
    b1, g = working(b1), working(g[0])
    z = None
    if passage is not None:
        z = normed(params, pair, outputs(list(seen.values()), [io[k][0] for k in place.before], entering))
    behind = shape if passage is None else passage.after(b2)
    met = linked(pair, before, after, place.layer, behind, taps, b2.device)
    if met.index is None and math.prod(behind) != b1.shape[1]:
        raise ValueError(
            f"{pair}: the layers have {math.prod(behind)} and {b1.shape[1]} positions, expected as many; nothing but elementwise "
            "functions may stand between"
        )
    sigma, gate = (place.activation, None) if place.gate is None else (torch.positive, place.activation)
    padding = before.form.padding_idx if isinstance(before.form, Lookup) and len(seen) == 1 else None
    return View(b2, b1, g, sigma, met, (place.before, place.after), pair, eps, gate, passage, z, padding, entering)


def _together(pair: Pair, sides: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The inputs of layers that are added, side by side, and the gradient at their outputs, which is one."""
    a, g = sides[0]
    for other, h in sides[1:]:
        same = other.shape[:2] == a.shape[:2] and h.shape == g.shape
        apart = (h - g).abs().amax() > 1e-4 * g.abs().amax() if same and g.numel() else torch.tensor(not same)
        known = values(apart)
        if known is not None and bool(known.any()):
            raise ValueError(
                f"{pair}: the layers of a Sum have different gradients at their outputs, expected one; f must add their "
                "outputs, and nothing else may use one of them alone"
            )
    return torch.cat([t for t, _ in sides], -1) if len(sides) > 1 else a, g
