"""Pairs: two dense layers with nothing but activations between, by their paths in params.

r inputs of `before`, p its outputs (hidden units) and inputs of `after`, q outputs of `after`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from linmaps import trees
from linmaps.trees import Path, path_str

if TYPE_CHECKING:
    from fisher import LayerCollection

Activation = Callable[[Tensor], Tensor]


@trees.static
@dataclasses.dataclass(frozen=True)
class Pair:
    """Two dense layers `z = U b2 + c`, `a = W activation(z) + b` between which hidden units can be added.

    before, after: paths of the layers, dotted strings or tuples of keys; `"hidden"` names the leaves `hidden.weight`
    `[p, r]` and `hidden.bias` `[p]` (which may be absent), in nested dicts as in flat ones with dotted keys.
    activation: the elementwise map between them; None lets `statistics` read it from what f does.

    Raises ValueError if the two paths are the same, TypeError if a path or the activation is of another kind.

    >>> Pair("hidden", "output")
    Pair(before='hidden', after='output', activation=None)
    """

    before: str | Path
    after: str | Path
    activation: Activation | None = None

    def __post_init__(self) -> None:
        for name, path in (("before", self.before), ("after", self.after)):
            if not isinstance(path, (str, tuple)):
                raise TypeError(f"Pair: {name} is a {type(path).__name__}, expected a dotted string or a tuple of keys")
        if path_str(self.before) == path_str(self.after):
            raise ValueError(f"Pair: before and after are both {path_str(self.after)!r}, expected two layers")
        if self.activation is not None and not callable(self.activation):
            raise TypeError(f"Pair: activation is {self.activation!r}, expected a callable of one tensor, or None")

    def __str__(self) -> str:
        return f"Pair({path_str(self.before)!r}, {path_str(self.after)!r})"


@dataclasses.dataclass(frozen=True)
class Dense:
    """A dense layer met in params: its leaves and where they are; no bias is None."""

    weight_path: Path
    bias_path: Path | None
    weight: Tensor
    bias: Tensor | None

    @property
    def name(self) -> str:
        return path_str(self.weight_path)


def dense(params: Any, path: str | Path) -> Dense:
    """The dense layer at a path: `path.weight` and `path.bias`, or a bare weight leaf at `path` itself.

    Raises ValueError (path, got, expected) where there is no such layer or its weight is no matrix.

    >>> import torch
    >>> dense({"net": {"0.weight": torch.zeros(3, 2)}}, "net.0").weight.shape
    torch.Size([3, 2])
    """
    found = {path_str(p): p for p in trees.paths(params)}
    stem = path_str(path)
    weight_path = found.get(f"{stem}.weight") if f"{stem}.weight" in found else found.get(stem)
    if weight_path is None:
        layers = sorted(s.removesuffix(".weight") for s in found if s.endswith(".weight"))
        raise ValueError(
            f"{stem}: no such layer in params, expected a leaf {stem}.weight; layers with a weight: {layers[:12]}; "
            f"leaves: {sorted(found)[:12]}"
        )
    bias_path = found.get(f"{stem}.bias")
    weight = trees.get(params, weight_path)
    bias = None if bias_path is None else trees.get(params, bias_path)
    name = path_str(weight_path)
    if weight.ndim != 2:
        cure = "map over the ensemble with torch.func.vmap" if weight.ndim == 3 else "growth knows dense layers"
        raise ValueError(f"{name}: got shape {tuple(weight.shape)}, expected a matrix [out, in]; {cure}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"{stem}.bias: got shape {tuple(bias.shape)}, expected ({weight.shape[0]},), one entry per row of {name} "
            f"{tuple(weight.shape)}; store the weight as [out, in]"
        )
    return Dense(weight_path, bias_path, weight, bias)


def layers_of(params: Any, pair: Pair) -> tuple[Dense, Dense]:
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
    before, after = dense(params, pair.before), dense(params, pair.after)
    if before.weight.shape[0] != after.weight.shape[1]:
        raise ValueError(
            f"Pair whose layers do not match: {before.name} {tuple(before.weight.shape)} has {before.weight.shape[0]} "
            f"outputs, {after.name} {tuple(after.weight.shape)} takes {after.weight.shape[1]} inputs; name two layers "
            "that follow each other, with weights stored [out, in] (F.linear, or x @ W.T)"
        )
    return before, after


def locate(layers: LayerCollection, params: Any, pair: Pair) -> tuple[int, int, Activation]:
    """The uses of the two layers in a LayerCollection, and the activation between them.

    Raises ValueError where a layer is used twice or stored [in, out], where its bias is not added to its output, and
    where the activation can neither be read from f nor is given.
    """
    before, after = layers_of(params, pair)
    i, j = _use(layers, before), _use(layers, after)
    if pair.activation is not None:
        return i, j, pair.activation
    source = layers.uses[j].source
    if source is None or source[0] != i:
        other = "cannot be read" if source is None else f"comes from {path_str(layers.uses[source[0]].weight or ())}"
        raise ValueError(
            f"{pair}: the input of {after.name} {other}, expected an elementwise function of the output of "
            f"{before.name} alone; if there is one, name it: Pair(before, after, activation=...)"
        )
    return i, j, source[1]


def _use(layers: LayerCollection, layer: Dense) -> int:
    uses = [k for k, u in enumerate(layers.uses) if u.weight == layer.weight_path]
    if len(uses) != 1:
        raise ValueError(
            f"{layer.name}: used by {len(uses)} dense calls, expected one; growth enlarges a layer that is applied "
            "once (F.linear or x @ W.T)"
        )
    use = layers.uses[uses[0]]
    if use.transposed:
        raise ValueError(
            f"{layer.name}: stored as [in, out] {tuple(layer.weight.shape)} (used as x @ W), expected [out, in]; "
            "write F.linear(x, W, b) or x @ W.T with the transposed leaf"
        )
    if use.bias != layer.bias_path:
        got = "no leaf" if use.bias is None else path_str(use.bias)
        raise ValueError(
            f"{layer.name}: the bias added to its output is {got}, expected "
            f"{'none' if layer.bias_path is None else path_str(layer.bias_path)}; keep weight and bias of a layer "
            "together as `weight` and `bias`, and add the bias right after the product"
        )
    return uses[0]


def as_list(item: Any, count: int, name: str) -> list[Any]:
    """One entry per pair: None and single items are given to each, a list is checked for its length."""
    if not isinstance(item, list):
        return [item] * count
    if len(item) != count:
        raise ValueError(f"{name}: got a list of {len(item)}, expected {count}, one per pair")
    return item


def check_pairs(pair: Pair | Sequence[Pair]) -> tuple[list[Pair], bool]:
    """The pairs as a list, and whether one was given alone."""
    if isinstance(pair, Pair):
        return [pair], True
    if isinstance(pair, (list, tuple)) and pair and all(isinstance(p, Pair) for p in pair):
        return list(pair), False
    raise TypeError(f"pair: got {pair!r}, expected a growth.Pair or a list of them")
