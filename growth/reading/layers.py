"""Layers met in params: the two of a pair, the norm between them, and where their hidden units are.

r inputs of `before`, p its outputs (hidden units) and inputs of `after`, q outputs of `after`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import torch
from torch import Tensor

from growth.checks.named import layer_name, no_layer
from growth.reading.along import along_leaves, columns, norm_leaves
from growth.reading.gated_pairs import ORDERS, Gated
from growth.reading.pairs import LayoutName, Pair, Sum, parts
from linmaps import trees
from linmaps.checks import alike
from linmaps.trees import path_str
from linmaps.trees.keys import Path, names

HALVED = (
    "; twice as many: if f cuts them in two halves and multiplies these (SwiGLU, GEGLU, F.glu) give "
    "growth.Gated(None, None, after, packed=before)"
)

DEPTHWISE = "; {} is a depthwise convolution: name it by depthwise= of a pair of the layers around it"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer met in params: its leaves and where they are; no bias is None.

    weight: `[out, in, *kernel]`, whatever the layout in which the leaf has it.
    columns: how many inputs of it belong to one hidden unit, side by side (the positions of a flattened map).
    others: the layers whose outputs are added to its own.
    gate: the layer whose outputs, through an activation, multiply its own.
    half: which half (0 or 1) of the outputs of its leaves it is, where they hold two layers; None: all.
    rows: how many rows of a dense layer belong to one hidden unit (the positions of its map, where f makes maps of the output):
    its weight is then `[out, rows in]`, its bias `[out, rows]`.
    """

    weight_path: Path
    bias_path: Path | None
    weight: Tensor
    bias: Tensor | None
    columns: int = 1
    others: tuple[Layer, ...] = ()
    gate: Layer | None = None
    layout: LayoutName = "out_in"
    half: int | None = None
    rows: int = 1

    def stored(self, weight: Tensor) -> Tensor:
        """A weight `[out, in, *kernel]` as the leaf has it."""
        return weight if self.layout == "out_in" else weight.transpose(0, 1).contiguous()

    def axis(self, number: int) -> int:
        """The axis of the leaf on which the outputs (0), or the inputs (1), are."""
        return number if self.layout == "out_in" else 1 - number

    def put(self, params: Any, weight: Tensor) -> Any:
        """params with another weight `[out, in, *kernel]` of this layer; each half of a leaf may be put once."""
        leaf = trees.get(params, self.weight_path)
        flat = self.flat(weight)
        return trees.replace(params, self.weight_path, self.stored(self._beside(self.turned(leaf), flat)))

    def put_bias(self, params: Any, bias: Tensor | None) -> Any:
        """params with another bias of this layer; as they are for None, and for a layer without one."""
        if self.bias_path is None or bias is None:
            return params
        return trees.replace(params, self.bias_path, self._beside(trees.get(params, self.bias_path), bias.flatten()))

    def flat(self, weight: Tensor) -> Tensor:
        """A weight of this layer with one row per output of it."""
        return weight if self.rows == 1 else weight.unflatten(1, (self.rows, -1)).flatten(0, 1)

    def turned(self, leaf: Tensor) -> Tensor:
        """The weight leaf with outputs first."""
        return leaf if self.layout == "out_in" else leaf.transpose(0, 1)

    def _beside(self, leaf: Tensor, own: Tensor) -> Tensor:
        """The leaf with other entries in this half; the other half is found by where it ends, whatever its size is now."""
        if self.half is None:
            return own
        p = self.weight.shape[0]
        return torch.cat([own, leaf[p:]] if self.half == 0 else [leaf[: leaf.shape[0] - p], own])

    def own(self, outputs: Tensor) -> Tensor:
        """Of the outputs `[..., out]` of its leaves those of this half."""
        return outputs if self.half is None else outputs.tensor_split(2, -1)[self.half]

    def halves(self) -> tuple[Layer, Layer]:
        """The two layers that its leaves hold, one above the other."""
        weights = self.weight.tensor_split(2)
        biases = (None, None) if self.bias is None else self.bias.tensor_split(2)
        one, two = (dataclasses.replace(self, weight=weights[n], bias=biases[n], half=n) for n in (0, 1))
        return one, two

    @property
    def inputs(self) -> int:
        """How many numbers enter one output of it, the bias apart."""
        return math.prod(self.weight.shape[1:])

    @property
    def all(self) -> tuple[Layer, ...]:
        return (self, *self.others)

    @property
    def biased(self) -> bool:
        """Whether it, or a layer added to it, has a bias."""
        return any(layer.bias is not None for layer in self.all)

    @property
    def name(self) -> str:
        return path_str(self.weight_path)

    @property
    def taps(self) -> int:
        """How many weights lead from one hidden unit to one output."""
        return self.columns * math.prod(self.weight.shape[2:])


def layer_at(params: Any, path: str | Path, layout: LayoutName = "out_in") -> Layer:
    """The layer at a path, which may be that of its weight: `path.weight` and `path.bias`, or a bare weight leaf at `path`.

    Raises ValueError (path, got, expected) where there is no such layer or its weight is none of a layer.

    >>> import torch
    >>> layer_at({"net": {"0.weight": torch.zeros(3, 2)}}, "net.0").weight.shape
    torch.Size([3, 2])
    """
    paths = trees.paths(params)
    found, leaves = dict(zip(names(paths), paths)), dict(zip(paths, trees.leaves(params)))
    stem = layer_name(found, path)
    weight_path = found.get(f"{stem}.weight", found.get(stem))
    if weight_path is None:
        raise no_layer(params, stem)
    bias_path = found.get(f"{stem}.bias")
    weight, bias = leaves[weight_path], None if bias_path is None else leaves[bias_path]
    name = path_str(weight_path)
    for where, t in ((weight_path, weight), (bias_path, bias)):
        if where is not None and not (isinstance(t, Tensor) and t.is_floating_point()):
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"{path_str(where)}: got {got}, expected a real floating tensor")
    if bias is not None:
        alike([bias], f"{stem}.bias", [weight], name)
    if not 2 <= weight.ndim <= 5:
        raise ValueError(
            f"{name}: got shape {tuple(weight.shape)}, expected a matrix [out, in], or [out, in, *kernel] of a convolution"
        )
    out, into = (0, 1) if layout == "out_in" else (1, 0)
    if bias is not None and tuple(bias.shape) != (weight.shape[out],):
        other = tuple(bias.shape) == (weight.shape[into],)
        cure = f"layout={_other(layout)!r} fits" if other else "map over an ensemble with torch.func.vmap"
        raise ValueError(
            f"{stem}.bias: got shape {tuple(bias.shape)}, expected ({weight.shape[out]},), one entry per output of {name} "
            f"{tuple(weight.shape)}, stored [{layout.replace('_', ', ')}]; {cure}"
        )
    return Layer(weight_path, bias_path, weight if out == 0 else weight.transpose(0, 1), bias, layout=layout)


def _other(layout: LayoutName) -> LayoutName:
    return "in_out" if layout == "out_in" else "out_in"


def layers_of(params: Any, pair: Pair) -> tuple[Layer, Layer]:
    """The two layers of a pair; raises ValueError unless the outputs of `before` are the inputs of `after`.

    >>> import torch
    >>> params = {"hidden": {"weight": torch.zeros(4, 3)}, "output": {"weight": torch.zeros(2, 5)}}
    >>> layers_of(params, Pair("hidden", "output"))
    Traceback (most recent call last):
    ValueError: Pair whose layers do not match: hidden.weight (4, 3) has 4 outputs, output.weight (2, 5) takes 5
    inputs; ...
    """
    if not isinstance(pair, Pair):
        raise TypeError(f"pair: got {type(pair).__name__}, expected a growth.Pair, or a list of them")
    first, second = pair.layouts
    before, after = _side(params, pair, pair.before, first), _side(params, pair, pair.after, second)
    if isinstance(pair, Gated):
        before = _gated(params, pair, before)
    p, inputs = before.weight.shape[0], after.weight.shape[1]
    flattened = before.weight.ndim > 2 and after.weight.ndim == 2
    mapped = before.weight.ndim == 2 < after.weight.ndim and not before.others and before.gate is None
    if mapped and inputs > 0 and p % inputs == 0:
        rows, weight, p = p // inputs, before.weight.reshape(inputs, -1), inputs
        bias = None if before.bias is None else before.bias.reshape(p, rows)
        before = dataclasses.replace(before, rows=rows, weight=weight, bias=bias)
    elif flattened and p > 0 and inputs % p == 0:
        after = dataclasses.replace(after, columns=inputs // p)
    elif p != inputs or before.weight.ndim != after.weight.ndim:
        deep = after.weight.ndim > 2 and after.weight.shape[:2] == (p, 1)
        stacked = max(before.weight.ndim, after.weight.ndim) > 2 and not deep
        sizes = HALVED if p == 2 * inputs else _fitting(before, after)
        raise ValueError(
            f"Pair whose layers do not match: {before.name} {_shape(before)} has {p} "
            f"outputs, {after.name} {_shape(after)} takes {inputs} inputs; name two layers "
            "that follow each other"
            + (DEPTHWISE.format(after.name) if deep else sizes)
            + ("; map over an ensemble with torch.func.vmap" if stacked else "")
        )
    for path, leaf, entry in leaves_between(params, pair):
        if tuple(leaf.shape) != (p, *entry.shape):
            raise ValueError(
                f"{path_str(path)}: got shape {tuple(leaf.shape)}, expected {(p, *entry.shape)}, one entry per output of "
                f"{before.name}"
            )
    for path, leaf in along_leaves(params, pair):
        columns(pair, path, leaf, p, after.columns, before.name)
    return before, after


def _shape(layer: Layer) -> str:
    """The shape of the leaf, and how it is read where that is not the usual way."""
    shape = list(layer.weight.shape)
    if layer.layout == "out_in":
        return f"{tuple(shape)}"
    return f"{(shape[1], shape[0], *shape[2:])} stored [in, out]"


def _fitting(before: Layer, after: Layer) -> str:
    """In which other layouts these two would be a pair, in words."""
    found = []
    for turned in ((True, True), (False, True), (True, False)):
        sizes = [
            layer.weight.shape[:2][::-1] if t else layer.weight.shape[:2] for layer, t in zip((before, after), turned)
        ]
        free = all(
            layer.bias is None or not t or len(set(layer.weight.shape[:2])) == 1
            for layer, t in zip((before, after), turned)
        )
        if free and sizes[0][0] == sizes[1][1] and before.weight.ndim == after.weight.ndim:
            found.append(
                tuple(_other(layer.layout) if t else layer.layout for layer, t in zip((before, after), turned))
            )
    names = [repr(both[0] if both[0] == both[1] else both) for both in found]
    if names:
        return f"; their sizes fit layout={names[0]}: [in, out] is what x @ W and transposed convolutions have"
    return ', with weights stored [out, in] (F.linear, or x @ W.T), or of layout="in_out"'


def _side(params: Any, pair: Pair, side: str | Path | Sum, layout: LayoutName) -> Layer:
    first, *others = (layer_at(params, path, layout) for path in parts(side))
    for layer in others:
        if layer.weight.shape[0] != first.weight.shape[0]:
            raise ValueError(
                f"{pair}: {layer.name} has {layer.weight.shape[0]} outputs, {first.name} {first.weight.shape[0]}, "
                "expected as many: the outputs of a Sum are added"
            )
    return dataclasses.replace(first, others=tuple(others))


def _gated(params: Any, pair: Gated, up: Layer) -> Layer:
    """The layer up with its gate, which has its shape; of a packed pair `up` is the layer that holds both."""
    if pair.packed is not None:
        if up.weight.ndim != 2 or up.weight.shape[0] % 2:
            raise ValueError(
                f"{up.name}: got shape {_shape(up)}, expected a matrix [2 p, r] (out, in) of two halves, as packed by "
                f"{pair}"
            )
        gate, up = up.halves() if pair.order == ORDERS[0] else up.halves()[::-1]
        return dataclasses.replace(up, gate=gate)
    gate = layer_at(params, cast(Path, pair.gate), pair.layouts[0])
    if gate.weight.shape != up.weight.shape or up.weight.ndim != 2:
        raise ValueError(
            f"{gate.name}: got shape {_shape(gate)}, expected that of {up.name} {_shape(up)}, a matrix "
            f"[out, in]: the outputs of both are multiplied in {pair}"
        )
    return dataclasses.replace(up, gate=gate)


def leaves_between(params: Any, pair: Pair) -> list[tuple[Path, Tensor, Tensor]]:
    """The leaves between the layers, whose first axis are the units, and what a new unit gets: `leaf.shape[1:]`.

    >>> import torch
    >>> params = {"d.weight": torch.zeros(2, 1, 3), "d.bias": torch.zeros(2)}
    >>> [(path, entry) for path, _, entry in leaves_between(params, Pair("a", "b", depthwise="d"))]
    [(('d.weight',), tensor([[0., 1., 0.]])), (('d.bias',), tensor(0.))]
    """
    found = [(path, leaf, leaf.new_full((), fill)) for path, leaf, fill in norm_leaves(params, pair)]
    if pair.depthwise is None:
        return found
    layer = layer_at(params, pair.depthwise)
    kernel = layer.weight.shape[2:]
    if layer.weight.shape[1] != 1 or not kernel:
        raise ValueError(
            f"{layer.name}: got shape {tuple(layer.weight.shape)}, expected [p, 1, *kernel] of a depthwise convolution, one "
            "kernel for each hidden unit"
        )
    centre = torch.zeros(math.prod(kernel), dtype=layer.weight.dtype, device=layer.weight.device)
    number = sum((n - 1) // 2 * math.prod(kernel[k + 1 :]) for k, n in enumerate(kernel))
    one = centre.index_fill(0, torch.tensor([number], device=centre.device), 1.0).reshape(1, *kernel)
    found.append((layer.weight_path, layer.weight, one))
    if layer.bias is not None and layer.bias_path is not None:
        found.append((layer.bias_path, layer.bias, layer.bias.new_zeros(())))
    return found
