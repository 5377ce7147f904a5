"""The weights that f makes of leaves, as functions of these leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fisher.collector.blocks.uses import Layer
from fisher.collector.layers import Layers
from fisher.collector.rules.match import Derived
from fisher.collector.taps import tape_of
from linmaps import trees

Weights = Callable[[Sequence[Tensor]], list[Tensor]]


def derived_weights(f: Callable[..., Tensor], params: Any, x: Any, layers: Layers) -> dict[str, Weights]:
    """`{layer: phi}` of the layers that are seen through: phi(leaves) are the views `[W | b]` of its derived weights."""
    if not layers.through:
        return {}
    (tape, nodes_of), flat, paths = tape_of(f, params, x, layers), trees.leaves(params), layers.layout.paths

    def of(layer: Layer) -> Weights:
        wanted = [_places(layers, weight) for weight in layer.inner]

        def phi(own: Sequence[Tensor]) -> list[Tensor]:
            values = dict(zip(paths, flat)) | {paths[n]: t for n, t in zip(layer.leaves, own)}
            nodes = [nodes_of[p.number] for places in wanted for p in places if isinstance(p, Derived)]
            made = iter(tape.play(nodes, values))
            found = [
                [_real_as(next(made) if isinstance(p, Derived) else values[p], own[0]) for p in places]
                for places in wanted
            ]
            return [weight.matrix(tensors) for weight, tensors in zip(layer.inner, found)]

        return phi

    return {layer.name: of(layer) for layer in layers.through}


def _real_as(t: Tensor, like: Tensor) -> Tensor:
    """t in the dtype of real leaves; of a complex weight the real part, which is then found not to explain their gradient."""
    return (t.real if t.is_complex() and not like.is_complex() else t).to(like.dtype)


def _places(layers: Layers, weight: Layer) -> list[Any]:
    """The derived weight, and its bias, of one of the weights that a layer makes."""
    uses = [layers.uses[k] for k in weight.uses]
    found = [uses[0].weight] if weight.weight is not None else []
    if weight.bias is not None:
        found.append(next(u.bias for u, one in zip(uses, weight.biased) if one))
    return found
