"""Weights that are used as W and as W', as an embedding is by a tied head: one layer, with factors of both sides.

Uses that lay the weight out alike are a layer of their own; of two kinds, one has as inputs what the other has as outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from fisher.collector.blocks.through import How, how, weight_layer
from fisher.collector.blocks.uses import Layer, Use, layer_name
from fisher.collector.rules.forms import Elementwise, Lookup
from fisher.collector.rules.match import Derived
from linmaps.trees import Layout
from linmaps.trees.keys import Path


def tied_layers(layout: Layout, uses: tuple[Use, ...], notes: dict[Path, str]) -> list[Layer]:
    """The layers of leaves that products lay out in several ways, each way being the other's transpose, and nothing else uses."""
    met: dict[Path, dict[How, list[int]]] = {}
    other: set[Path] = set()
    for k, u in enumerate(uses):
        other |= {p for p in u.paths if p != u.weight}
        if u.weight is None or isinstance(u.weight, Derived):
            continue
        if u.part is not None or isinstance(u.form, Elementwise) or u.form.groups > 1:
            other.add(u.weight)
        met.setdefault(u.weight, {}).setdefault(how(u.form), []).append(k)
    found = []
    for path, ways in met.items():
        if len(ways) > 1 and path not in notes and path not in other:
            inner = tuple(weight_layer(layout, uses, path, None, ks) for ks in ways.values())
            layer = _layer(layout, path, inner)
            if all(alike(layer, w) or swapped(layer, w) for w in inner):
                found.append(layer)
    return found


def _layer(layout: Layout, path: Path, inner: tuple[Layer, ...]) -> Layer:
    first = next((w for w in inner if not isinstance(w.form, Lookup)), inner[0])
    return dataclasses.replace(
        first,
        name=layer_name(path, None),
        kind=" + ".join(dict.fromkeys(w.kind for w in inner)),
        weight=layout.paths.index(path),
        uses=tuple(sorted(k for w in inner for k in w.uses)),
        biased=(),
        cuts=(),
        inner=inner,
    )


def alike(layer: Layer, weight: Layer) -> bool:
    """Whether a weight is laid out as its layer is."""
    return layer.form.arrangement == weight.form.arrangement


def swapped(layer: Layer, weight: Layer) -> bool:
    """Whether the outputs of a weight are the inputs of its layer, and the other way around."""
    one, other = layer.form.arrangement, weight.form.arrangement
    return (one.out, one.into, one.shape) == (other.into, other.out, other.shape) and one.groups == other.groups == 1


def turned(layer: Layer, weight: Layer, view: Tensor) -> Tensor:
    """The layer's view of a view of one of its weights."""
    return view.mT if swapped(layer, weight) and not alike(layer, weight) else view


def pieces_of(layer: Layer, weight: Layer, parts: Sequence[Tensor]) -> list[Tensor]:
    """What belongs to the uses of one of the weights, of parts for all uses of the layer."""
    return [parts[layer.uses.index(k)] for k in weight.uses]
