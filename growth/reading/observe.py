"""One pass over data: what enters the two layers of each pair, and the gradient at the output of the second.

B batch, m hidden positions, X positions of `after`, r p q as in `pairs` (times the kernel for convolutions).  One forward
and one backward per batch, for all pairs together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fisher import LayerCollection
from fisher.checks.arguments import detached
from fisher.checks.purity import repeatable
from fisher.collector.io import layer_io
from fisher.collector.rules.forms import Convolution, Lookup
from fisher.passes.checkpoints import Checkpoint, Stage
from growth.checks.buffers import buffers_fixed, counters_fixed
from growth.checks.data import examples, few
from growth.checks.losses import Loss, LossName, gradient, per_sample
from growth.reading.activations import Activation
from growth.reading.between import normed, outputs
from growth.reading.calls import norm_eps, refusal
from growth.reading.layers import layers_of
from growth.reading.link import TAPS, Link, Taps, linked
from growth.reading.locate import Place, located
from growth.reading.lookups import inputs_of
from growth.reading.maps import Passage
from growth.reading.pairs import Pair
from growth.reading.products import verify_all, with_activations
from linmaps import trees
from linmaps.checks import values
from linmaps.numerics.dtypes import working

EVERY = Checkpoint().stage()  # no batch was done before


@dataclasses.dataclass(frozen=True)
class View:
    """A pair on one batch: b2 `[B, m, r]`, b1 `[B, X, p]`, g `[B, X, q]` = d loss / d a, and how positions meet.

    uses: the numbers of the calls that b2 and b1 enter, the same for neighbouring pairs that share them.
    gate: the activation of the gate of a gated pair, whose b1 is gate(z) times what `before` gives, and activation nothing.
    passage: what joins positions between the layers, and z `[B, m, p]`, the output of the first.
    pair: with the leaves that were found to grow along.  eps: of its batch norm, where that measures the output of `before`.
    padding: of a lookup the row that is used by nothing.
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
    layers: LayerCollection | None,
    progress: bool,
    check_finite: bool,
    taps: Taps = TAPS[0],
    stage: Stage = EVERY,
    none: bool = False,
) -> Iterator[tuple[str, int, list[View]]]:
    """For each batch that is not empty: its name, its samples and one View per pair; but for those that `stage` has done.

    none: whether there may be no sample.
    """
    if taps not in TAPS:
        raise ValueError(f"taps: got {taps!r}, expected one of {list(TAPS)}")
    f, params = counters_fixed(buffers_fixed(f), detached(params))
    each = per_sample(loss)
    places: list[Place] = []
    found: Any = None
    eps: list[float | None] = []
    seen = examples(data, params, progress=progress, check_finite=check_finite, none=none)
    for x, target, name, samples in stage.over((x, target, name, n) for name, x, target, n in seen):
        sizes = [tuple(t.shape[1:]) for t in trees.leaves(x)]
        if layers is None and (found is None or (sizes != found[1] and any(_maps(found[0], p) for p in places))):
            found = LayerCollection.from_function(f, params, few(x)), sizes
        known: LayerCollection = found[0] if layers is None else layers
        some = few(x)
        first = not places
        if first:
            pairs = with_activations(f, params, pairs, known, some)
        places = [located(known, params, p, partial(refusal, f, params, p, some)) for p in pairs]
        if first:
            if layers is not None:  # else it was asked when the layers were found
                repeatable(f, params, some)
            pairs = [place.pair for place in places]
            verify_all(f, params, pairs, known, places, some)
            eps = [norm_eps(f, params, p, some) if place.normed else None for p, place in zip(pairs, places)]
        if stage.done:
            continue
        both = [side for p in places for side in (p.before, p.after)]
        uses = {k for side in both if len(side) > 1 for k in side} | {k for p in places for k in p.after}
        rest = {k for side in both for k in side} - uses
        cotangent = gradient(each, target)
        _, io = layer_io(f, params, x, known, cotangent, uses=tuple(sorted(uses)), inputs_of=tuple(sorted(rest)))
        yield (
            name,
            samples,
            [_view(pair, place, known, io, samples, taps, params, e) for pair, place, e in zip(pairs, places, eps)],
        )


def _maps(layers: LayerCollection, place: Place) -> bool:
    """Whether the sizes of the data are in the shapes of these uses."""
    return isinstance(layers.uses[place.before[0]].form, Convolution)


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
    entering = layers_of(params, pair)[0]
    seen = {k: layers.uses[k] for k in place.before}
    sides = [(inputs_of(seen[k], io[k][0], layer), io[k][1]) for k, layer in zip(place.before, entering.all)]
    (b2, _), (b1, g) = _together(pair, sides), _together(pair, [io[k] for k in place.after])
    before, after = layers.uses[place.before[0]], layers.uses[place.after[0]]
    shape = tuple(before.tap_shape(samples)[2:]) if _maps(layers, place) else (b2.shape[1],)
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
    return View(b2, b1, g, sigma, met, (place.before, place.after), pair, eps, gate, passage, z, padding)


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
