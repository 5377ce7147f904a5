"""Where in f the two layers of a pair are: their uses in a LayerCollection, what enters and leaves these, what is between them.

Lookups are layers too: the inputs of an embedding are unit vectors, one per row of its table.  B batch, S positions, V rows of
the table, p its columns (hidden units).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher import LayerCollection
from fisher.collector.blocks.uses import UNUSED, Use
from fisher.collector.calls.chains import Chain
from fisher.collector.rules.forms import Convolution, Form, Lookup
from fisher.collector.rules.match import spoken
from growth.reading.activations import Activation
from growth.reading.along import norm_reads, way
from growth.reading.layers import Layer, layers_of
from growth.reading.maps import Passage
from growth.reading.pairs import LayoutName, Pair
from linmaps.numerics.dtypes import working
from linmaps.trees import path_str

MOST = 2**13  # rows of a table whose inputs have a second moment [V, V]
AT_ONCE = 2**28  # numbers of one batch of unit vectors


@dataclasses.dataclass(frozen=True)
class Place:
    """The numbers of the uses of `before` and `after` (several of a Sum), the activation between, and the layer after.

    chain: all that stands between, where some of it joins positions, None where it is the activation alone; own: the same for
    the units there are.  gate: of a gated pair the number of the use of the gate, whose activation it then is.
    pair: with what was found to grow along.  norm: whether the pair's norm reads the output of `before` as it is.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    activation: Activation
    layer: Layer
    pair: Pair
    gate: int | None = None
    chain: Chain | None = None
    own: Chain | None = None
    normed: bool = False

    def passage(self, shape: tuple[int, ...]) -> Passage | None:
        """What stands between, for a hidden map of this shape."""
        return None if self.chain is None else Passage(self.chain, shape, self.own)


def located(layers: LayerCollection, params: object, pair: Pair, words: Callable[[str], str] | None = None) -> Place:
    """The uses of the two layers in a LayerCollection, and the activation between them.

    words: what to say of an activation that cannot be read, from why it cannot (`calls.refusal`).

    Raises ValueError where a layer is used twice, in another layout than the pair says, or in groups, where its bias is not
    added to its output, and where the activation can neither be read from f nor is given.
    """
    before, after = layers_of(params, pair)
    unmapped(params, pair, "statistics")
    first, second = (tuple(_use(layers, layer) for layer in side.all) for side in (before, after))
    gate = None if before.gate is None else _use(layers, before.gate)
    _stored(layers, pair, first if gate is None else (gate, *first), second)
    if gate is not None:
        return Place(first, second, pair.activation or torch.positive, after, pair, gate)
    p = before.weight.shape[0]
    found = way(layers.uses, params, pair, p, first[0], second[0]) if len(first) == 1 else "cannot be read"
    pair = pair if isinstance(found, str) else dataclasses.replace(pair, along=(*pair.along, *found.along))
    normed = norm_reads(layers.uses, pair, first[0])
    if pair.activation is not None:
        return Place(first, second, pair.activation, after, pair, normed=normed)
    if isinstance(found, str):
        want = f"expected an elementwise function of the output of {before.name} alone"
        raise ValueError(f"{pair}: the input of {after.name} {found}, {want}" if words is None else words(found))
    if found.chain.spatial:
        return Place(first, second, found.chain.pointwise, after, pair, None, found.chain, found.own, normed)
    return Place(first, second, found.chain, after, pair, normed=normed)


def plain_layers(params: Any, pair: Pair, name: str) -> tuple[Layer, Layer]:
    """`layers_of` for a function of this name that has no meaning for a Sum: ValueError for one."""
    before, after = layers_of(params, pair)
    if before.others or after.others:
        raise ValueError(
            f"{pair}: {name} got a Sum of layers, expected two layers; give a Pair of one of them at a time"
        )
    return before, after


def is_mapped(params: object, pair: Pair) -> bool:
    """Whether the first layer is dense and f makes maps of its output, which a convolution reads."""
    before, after = layers_of(params, pair)
    return before.weight.ndim == 2 < after.weight.ndim


def unmapped(params: object, pair: Pair, name: str) -> None:
    """Raise a ValueError for such a pair, whose new units the function of this name does not know."""
    if not is_mapped(params, pair):
        return
    before, after = layers_of(params, pair)
    r = before.weight.shape[1] // before.rows
    raise ValueError(
        f"{pair}: {name} got a dense layer {before.name} whose outputs are maps of {before.rows} positions to {after.name}, one "
        f"unit being {before.rows} of its rows, expected two dense layers, two convolutions, or a convolution and a dense layer: "
        "best new maps are no low-rank problem; growth.widen, prune, cut and restore change such a pair, and the same map as a "
        f"transposed convolution of one position (ConvTranspose2d({r}, {before.weight.shape[0]}, (h, w)) of x[..., None, None], "
        "with one bias for each map) has closed forms"
    )


def layout_of(use: Use) -> LayoutName:
    """How the weight leaf of a dense layer, a lookup or a convolution without groups is stored."""
    return "in_out" if use.form.arrangement.out == (1,) else "out_in"


def _stored(layers: LayerCollection, pair: Pair, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Raise a ValueError unless all weights are used in the layout that the pair says."""
    sides = [{layout_of(layers.uses[k]) for k in side} for side in (first, second)]
    if all(found == {own} for found, own in zip(sides, pair.layouts)):
        return
    used = ", ".join(
        f"{layers.uses[k].describe()} as [{layout_of(layers.uses[k]).replace('_', ', ')}]" for k in (*first, *second)
    )
    both = [sorted(found)[0] for found in sides]
    one = all(len(found) == 1 for found in sides)
    cure = (
        f"layout={(both[0] if len(set(both)) == 1 else tuple(both))!r}"
        if one
        else "layers of a Sum that are stored alike"
    )
    raise ValueError(
        f"{pair}: f uses its weights otherwise than by layout={pair.layout!r}: {used}; give {cure}.  [in, out] is what x @ W, "
        "lookups and transposed convolutions have, [out, in] what F.linear, x @ W.T and convolutions have"
    )


def _use(layers: LayerCollection, layer: Layer) -> int:
    uses = [k for k, u in enumerate(layers.uses) if u.weight == layer.weight_path]
    if len(uses) != 1:
        raise ValueError(
            f"{layer.name}: used by {len(uses)} calls, expected one; growth enlarges a layer that is applied "
            "once (F.linear, x @ W.T, F.conv1d to F.conv3d)"
        )
    use = layers.uses[uses[0]]
    known = type(use.form) in (Form, Lookup, Convolution)
    if not known or use.form.groups > 1:
        raise ValueError(
            f"{layer.name}: used by {use.kind}{' in groups' if known else ''}, expected a dense layer or a convolution "
            "without groups; other layers are enlarged by growth.add_parameters"
        )
    if use.bias != layer.bias_path:
        got = spoken(use.bias) if isinstance(use.bias, tuple) else "no leaf"
        raise ValueError(
            f"{layer.name}: the bias added to its output is {got}, expected "
            f"{'none' if layer.bias_path is None else path_str(layer.bias_path)}; keep weight and bias of a layer "
            "together as `weight` and `bias`, and add the bias right after the product"
        )
    for owner in layers:
        paths = [layers.layout.paths[n] for n in owner.leaves]
        if owner.note and owner.kind != UNUSED and {layer.weight_path, layer.bias_path} & set(paths):
            raise ValueError(
                f"{owner.name}: {owner.note}, expected a layer whose leaves are used by itself alone; growth sees no slope of "
                "another use"
            )
    return uses[0]


def inputs_of(use: Use, a: Tensor, layer: Layer) -> Tensor:
    """What enters a layer, `[B, S, r]`: as the collector has it, or of a lookup unit vectors for its indices, 0 at padding.

    Raises ValueError where these are too many numbers.
    """
    if not isinstance(use.form, Lookup):
        return working(a)
    rows = use.form.vocabulary
    if rows > MOST or math.prod(a.shape) * rows > AT_ONCE:
        raise ValueError(
            f"{layer.name}: a lookup of {tuple(a.shape)} indices in {rows} rows, whose inputs are unit vectors of that length "
            f"with a second moment {(rows, rows)}, expected at most {MOST} rows and {AT_ONCE} numbers in a batch; give smaller "
            "batches, number only the rows that occur, or grow without data: growth.widen, growth.initialize"
        )
    weight = working(layer.weight)
    return (a[..., None] == torch.arange(rows, device=a.device)).to(weight.dtype)


def output_of(use: Use, a: Tensor, layer: Layer) -> Tensor:
    """What a layer makes of its input without its bias, `[B, S, p]`: the product, or the rows of a table, padding included."""
    weight = working(layer.weight).flatten(1)
    if not isinstance(use.form, Lookup):
        return working(a) @ weight.mT
    padding = 0 if use.form.padding_idx is None else use.form.padding_idx
    return torch.cat([weight, weight[:, padding, None]], 1).mT[a]
