"""Layouts and LayerCollections over a change of widths: what says which entry of a matrix is what."""

from __future__ import annotations

import dataclasses
import math

import torch

from fisher.collector.blocks.uses import Layer, Use
from fisher.collector.collection import LayerCollection
from fisher.collector.rules.forms import Channels, Contraction, Convolution, Elementwise, Form
from growth.surgery.moves import Move, Moves
from linmaps.trees import Layout, path_str
from linmaps.trees.keys import Path

RECOMPUTE = "make it anew with fisher.LayerCollection.from_function(f, grown, x)"


def moves_of(layout: Layout, moves: Moves) -> list[Move]:
    """The move of each leaf of a layout: that of params, or `{path: leaf}` of some of its leaves.

    Raises ValueError where it is no layout of these params.
    """
    by_name = {path_str(p): m for p, m in moves.leaves.items()}
    found = []
    for path, shape in zip(layout.paths, layout.shapes):
        move = by_name.get(path_str(path))
        if move is None or move.old != shape:
            got = "no such leaf" if move is None else f"shape {move.old}"
            raise ValueError(
                f"state: a matrix has the leaf {path_str(path)} {shape}, params have {got}, expected a matrix over these "
                "params; map over an ensemble with torch.func.vmap"
            )
        found.append(move)
    return found


def resized(layout: Layout, moves: Moves) -> Layout:
    """The layout with the new shapes."""
    return Layout(layout.treedef, tuple(m.new for m in moves_of(layout, moves)))


def carried_layers(layers: LayerCollection, moves: Moves) -> LayerCollection:
    """The same layers with the new sizes: what `LayerCollection.from_function` finds for the resized params.

    Raises ValueError (path, cure) for layers of other params, resized ones in groups or packed into one leaf.

    >>> import torch, fisher
    >>> from growth.surgery.moves import growing
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(1, 2)}
    >>> layers = fisher.LayerCollection.from_function(f, p, torch.ones(2, 1))
    >>> carried_layers(layers, growing(p, {"w": torch.ones(1, 3)}))["w"].shape
    (3, 1)
    """
    found = moves_of(layers.layout, moves)
    by_path = dict(zip(layers.layout.paths, found))
    uses = tuple(_use(u, by_path) for u in layers.uses)
    own = tuple(_layer(l, found) for l in layers.layers)
    return dataclasses.replace(layers, layers=own, uses=uses, layout=resized(layers.layout, moves))


def _layer(layer: Layer, moves: list[Move]) -> Layer:
    own = [moves[n] for n in layer.leaves]
    if all(m.still for m in own):
        return layer
    if layer.part is not None or layer.grouped:
        raise _unknown(layer.name, "packed into a leaf with others" if layer.part else "in groups")
    form = _form(layer.form, own[0], layer.name)
    if isinstance(layer.form, Elementwise) or not layer.uses:
        size = sum(math.prod(m.new) for m in own)
        shape = size, size
    else:
        shape = _matrix(form, own[0].new) if layer.weight is not None else (own[0].new[0], 0)
    return dataclasses.replace(layer, form=form, shape=shape, shapes=tuple(m.new for m in own))


def _use(use: Use, moves: dict[Path, Move]) -> Use:
    own = [moves[p] for p in use.paths]
    if all(m.still for m in own):
        return use
    name = use.describe()
    if use.part is not None or use.form.groups > 1:
        raise _unknown(name, "packed into a leaf with others" if use.part else "in groups")
    form = _form(use.form, own[0], name)
    shape = list(use.shape)
    for axis, old, new in _features(use.form, form, own[0], len(shape), use.weight is not None):
        if shape[axis] != old:
            raise _unknown(name, f"with {shape[axis]} features where {old} were expected")
        shape[axis] = new
    shared = tuple(form.outputs(torch.empty(shape, device="meta")).shape)
    return dataclasses.replace(use, form=form, shape=tuple(shape), shared=shared)


def _features(old: Form, new: Form, move: Move, ndim: int, weighted: bool) -> list[tuple[int, int, int]]:
    """(axis of the output, old size, new size) of a use."""
    if isinstance(old, Channels):
        return [(1, move.old[0], move.new[0])]
    if isinstance(old, Elementwise):
        lead = ndim - len(old.shape)
        return [(lead + k, a, b) for k, (a, b) in enumerate(zip(old.shape, new.shape)) if a != b]  # type: ignore[attr-defined]
    if isinstance(old, Contraction):
        axes = old.z_axes[len(old.z_axes) - len(old.arrangement.out) :]
        return [(axis, move.old[k], move.new[k]) for axis, k in zip(axes, old.arrangement.out)]
    sizes = (_matrix(old, move.old)[0], _matrix(new, move.new)[0]) if weighted else (move.old[0], move.new[0])
    return [(1 if isinstance(old, Convolution) else ndim - 1, *sizes)]


def _form(form: Form, move: Move, name: str) -> Form:
    """The form of a resized leaf."""
    if not isinstance(form, Elementwise) or isinstance(form, Channels):
        return form
    if form.shape == move.old:
        return dataclasses.replace(form, shape=move.new)
    wide = [k for k, n in enumerate(form.shape) if n > 1]
    if len(wide) == 1 and math.prod(move.old) == form.shape[wide[0]]:
        sizes = [math.prod(move.new) if k == wide[0] else n for k, n in enumerate(form.shape)]
        return dataclasses.replace(form, shape=tuple(sizes))
    raise _unknown(name, f"as {form.shape} of a leaf {move.old}")


def _matrix(form: Form, shape: tuple[int, ...]) -> tuple[int, int]:
    o, i = form.arrangement.matrix(torch.empty(shape, device="meta")).shape
    return o, i


def _unknown(name: str, how: str) -> ValueError:
    return ValueError(f"{name}: used {how}, expected a layer whose sizes follow from its own leaves; {RECOMPUTE}")
