"""One side of a score: the gradients of a loss or of a measurement, as rows or as what they are products of.

B examples, S shared (positions, repeated uses), I inputs, O outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.func import grad, vmap

from fisher.checks import purity
from fisher.checks.axes import batch_size
from fisher.collector.blocks.uses import UNUSED, Layer
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import of_layer, of_layers
from fisher.collector.products import example_gradients
from fisher.collector.taps import column_rows, pull
from fisher.derivatives.plain import plainly
from fisher.function_space.gradients import losses_of
from fisher.recipes.influences import examples
from fisher.recipes.influences.losses import of_one
from fisher.recipes.influences.spaces import Space
from linmaps import trees


class Factors(NamedTuple):
    """The gradients of a layer as sums over s of g a': one a `[B, S, I]` and g `[1, B, S, O]` for each use."""

    layer: Layer
    a: list[Tensor]
    g: list[Tensor]


Gradients = dict[str, Tensor | Factors]  # by layer: rows [B, *view], or factors


@dataclasses.dataclass(frozen=True)
class Side:
    """single(own, one example) -> the number whose gradient is asked for; fn: the loss of outputs behind it, if it is one."""

    space: Space
    single: examples.Single
    fn: Callable[[Tensor, Tensor], Tensor] | None

    def gradients(self, where: str, part: Any) -> Gradients:
        """By layer as factors, where layers are known and a loss of outputs is differentiated, else as rows."""
        if self.space.layers is None or self.fn is None or batch_size(part) == 0:
            return dict(self.space.views(examples.rows(self.single, self.space.own, part, where)))
        return _factored(self.fn, *self.space.seen, self.space.layers, part, where)

    def rows(self, where: str, part: Any) -> Any:
        """A tree like own with leaves `[B, *leaf]`."""
        layers = self.space.layers
        if layers is None or self.fn is None or batch_size(part) == 0:
            return examples.rows(self.single, self.space.own, part, where)
        views = {name: unfolded(t) for name, t in self.gradients(where, part).items()}
        return examples.finite_gradients(vmap(layers.tree)(views), where)

    def total(self, where: str, part: Any) -> Any:
        """Their sum, a tree like own."""
        return examples.summed(self.single, self.space.own, part, where)


def of_loss(space: Space, fn: Callable[[Tensor, Tensor], Tensor]) -> Side:
    """The side of a loss of outputs, (y, target) -> [B]."""
    f = plainly(space.f)

    def single(own: Any, one: Any) -> Tensor:
        x, target, *weights = one
        return examples.weighed(of_one(fn, f(own, trees.map(lambda t: t[None], x)), target[None]), tuple(weights))

    return Side(space, single, fn)


def of_measurement(space: Space, measurement: Callable[..., Tensor], part: Any) -> Side:
    """The side of a measurement(params, x, y) of one example, or of a batch `[B]`; part: a batch to see which."""
    own = space.restricted(measurement)
    if batch_size(part) == 0:
        return Side(space, lambda p, one: own(p, *one[:2]), None)
    losses = losses_of(own, space.own, part[:2], name="measurement(params, x, y)")
    losses = plainly(losses)

    def single(p: Any, one: Any) -> Tensor:
        return examples.weighed(losses(p, trees.map(lambda t: t[None], one[:2]))[0], one[2:])

    return Side(space, single, None)


def unfolded(gradients: Tensor | Factors) -> Tensor:
    """Rows `[B, *view]`."""
    return gradients if isinstance(gradients, Tensor) else example_gradients(*gradients)[0]


def _factored(
    fn: Callable[[Tensor, Tensor], Tensor],
    f: Callable[..., Tensor],
    params: Any,
    layers: LayerCollection,
    part: Any,
    where: str,
) -> Gradients:
    """By one forward and one backward of all examples together."""
    x, target, *weights = part
    batch = batch_size(x)
    y, inputs, back = pull(f, params, x, layers, layers.tapped, lambda k, a: a)
    one = lambda own: examples.weighed(of_one(fn, own[0][None], own[1][None]), own[2:])
    with purity.no_random_call("loss"):
        columns = grad(lambda y: examples.each(one, (y, target, *weights)).sum())(y)[None]
    g = column_rows(layers, back(columns), batch)
    rows = of_layers(f, params, x, layers.exact, columns)
    like = trees.leaves(params)[0]

    def of(layer: Layer) -> Tensor | Factors:
        if layer.family == UNUSED:
            return like.new_zeros(batch, layer.numel)
        if layer.by_leaf:
            return of_layer(layer, rows)[0]
        return Factors(layer, [inputs[k] for k in layer.uses], [g[k] for k in layer.uses])

    found = {layer.name: of(layer) for layer in layers}
    for name, gradients in found.items():
        for t in [gradients] if isinstance(gradients, Tensor) else [*gradients.a, *gradients.g]:
            examples.finite_gradients({name: t}, where)
    return found
