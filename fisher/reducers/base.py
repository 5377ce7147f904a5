"""Reducers: what one batch adds up for each representation.  Sums over examples; `fim` takes the mean once.

B batch, S shared, I inputs, O outputs, C columns.  From one pass come, per use, a [B, S, I] and g [C, B, S, O].
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

from torch import Tensor

from fisher.collector.blocks.uses import UNUSED, Layer
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import LeafRows, of_layer
from fisher.collector.products import example_gradients
from fisher.collector.weights import Weights
from fisher.pmat import PMat
from linmaps import trees
from linmaps.trees.graphs.tracing import traced

Sharing = Literal["expand", "reduce"]


@dataclasses.dataclass(frozen=True)
class Options:
    """sharing: "expand" or "reduce", what KFAC does over positions; centered: subtract the mean gradient.

    examples: how many there are where that is known beforehand (a single batch).  The columns then come over its root and
    the inputs' moments over it, so that sums are means, and no large matrix is divided.
    like: a tensor of the dtype and device of params; params: their leaves; weights: of the layers that are seen through, the
    derived weights as functions of their leaves.
    largest_block, largest_factor: what is larger is kept as a diagonal (None: nothing is).
    counted: of each use of weighted data the weights of its positions, `[B, S]` or `[B, 1]`; 0 of padding.
    group: the process group over whose ranks what is decomposed on the way is split.
    """

    sharing: Sharing = "expand"
    centered: bool = False
    examples: int = 1
    like: Any = None
    largest_block: int | None = None
    largest_factor: int | None = None
    params: Sequence[Tensor] = ()
    weights: Mapping[str, Weights] = dataclasses.field(default_factory=dict)
    counted: Mapping[int, Tensor] = dataclasses.field(default_factory=dict)
    group: Any = None


ELSEWHERE = 2**22  # numbers that are held at a time on other devices than a CPU


class Reducer:
    """One representation: `keep` at the call, `inputs` once per batch, `columns` per chunk of columns, `finish` at the end."""

    at_once = False  # whether it needs all columns together
    patched = False  # whether it is given the inputs of convolutions as they are, not unfolded
    unfolds = 2**19  # numbers of inputs that it unfolds at a time, on a CPU
    by_position = False  # whether the inputs of a position matter where it has no gradient

    def __init__(self, layers: LayerCollection, options: Options) -> None:
        self.layers, self.options = layers, options

    @property
    def by_rows(self) -> tuple[Layer, ...]:
        """The layers whose gradients are asked for by leaf."""
        return self.layers.exact

    @property
    def through(self) -> tuple[Layer, ...]:
        """The layers whose derived weights are asked for as functions."""
        return ()

    @functools.cached_property
    def tapped(self) -> tuple[int, ...]:
        """The uses whose (a, g) are needed."""
        through = {layer.name for layer in self.through}
        return tuple(sorted({k for l in self.layers if not l.by_leaf or l.name in through for k in l.uses}))

    def keep(self, use: int, a: Tensor) -> Any:
        """What is stored of a layer input a [B, S, I]."""
        return a

    def unfolded(self, use: int, a: Tensor) -> Tensor:
        """a [B, S, I] of what is kept."""
        u = self.layers.uses[use]
        return u.inputs(a, len(a)) if self.patched and u.patched else a

    def inputs(self, kept: dict[int, Any]) -> Any:
        """Sums that need no output-gradient."""
        return {}

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        """Sums over a chunk of columns; rows: gradients [C, B, numel] of the leaves without a rule."""
        raise AttributeError("a representation defines columns")

    def held(self, batch: int) -> int:
        """How many numbers of gradients at the outputs of all uses are held at a time, on a CPU."""
        return 2**22

    def at_a_time(self, batch: int) -> int:
        """How many columns are differentiated at a time where nobody says: so many numbers of gradients at all uses."""
        each = sum(math.prod(self.layers.uses[k].tap_shape(batch)) for k in self.tapped)
        return max(1, numbers_held(self.options.like, self.held(batch)) // max(1, each))

    def onto(self, total: Any, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        """total, which nobody else holds, with a chunk of columns more."""
        return self.add(total, self.columns(kept, g, rows))

    def closed(self, total: Any, kept: dict[int, Any], chunks: int) -> Any:
        """What all columns of a batch add up to, from their sums."""
        return total

    def add(self, one: Any, other: Any) -> Any:
        """The sums of two chunks, or of two batches, together."""
        return trees.add(one, other)

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        """The matrix from the sums over so many examples."""
        raise AttributeError("a representation defines finish")

    # --- over several processes --------------------------------------------------------------------------------------

    gathers = False  # whether some of it is rows, which are no sums

    def apart(self, inputs: Any, columns: Any) -> tuple[Any, Any]:
        """(the sums, symmetric matrices marked; the rows that are no sums)."""
        return (inputs, columns), []

    def together(self, sums: Any, rows: Any) -> tuple[Any, Any]:
        """(inputs, columns) of these."""
        made: tuple[Any, Any] = sums
        return made

    # --- for those that need the gradients of a layer ----------------------------------------------------------------

    def pieces(self, layer: Layer, kept: dict[int, Any], g: dict[int, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.unfolded(k, kept[k]) for k in layer.uses], [g[k] for k in layer.uses]

    def over_examples(
        self, fn: Callable[[list[Tensor], list[Tensor]], Tensor], layer: Layer, kept: Any, g: Any
    ) -> Tensor:
        """fn of the pieces, a sum over examples: where inputs are unfolded, of some of them at a time."""
        every = {k: kept[k] for k in layer.uses if self.patched and self.layers.uses[k].patched}
        if not every:
            return fn(*self.pieces(layer, kept, g))
        total = None
        for start, stop in self.some(every):
            own = {k: kept[k][start:stop] for k in layer.uses}
            part = fn(*self.pieces(layer, own, {k: g[k][:, start:stop] for k in layer.uses}))
            total = part if total is None else total + part
        return cast(Tensor, total)

    def some(self, inputs: Mapping[int, Tensor]) -> Iterator[tuple[int, int]]:
        """Examples (first, last + 1) whose inputs, unfolded, are held at a time."""
        batch = len(next(iter(inputs.values())))
        each = sum(self.layers.uses[k].unfolded_size(x) for k, x in inputs.items())
        size = batch if traced() else numbers_held(next(iter(inputs.values())), self.unfolds) // max(1, each)
        for start in range(0, max(1, batch), size := max(1, size)):
            yield start, min(start + size, batch)

    def gradients(self, layer: Layer, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Tensor:
        """Gradient of each column at each example, `[C, B, *view]`."""
        if layer.by_leaf:
            return of_layer(layer, rows)
        if layer.family == UNUSED:
            lead = next((tuple(t.shape[:2]) for t in (*g.values(), *rows.values())), (1, 1))
            return self.options.like.new_zeros(*lead, layer.numel)
        return example_gradients(layer, *self.pieces(layer, kept, g))

    def means(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> dict[str, Tensor]:
        """Sum of the gradients of the one column there is, where the mean is to be subtracted."""
        if not self.options.centered:
            return {}
        return {l.name: self.gradients(l, kept, g, rows).sum((0, 1)) for l in self.layers if l.family != UNUSED}


def numbers_held(like: Tensor, on_cpu: int) -> int:
    """How many numbers are held at a time: on a CPU so many; elsewhere few large calls are quicker than many small ones."""
    return on_cpu if like.device.type == "cpu" else max(ELSEWHERE, on_cpu)


def mean(total: Tensor, seen: int) -> Tensor:
    """total / seen, without a copy where that is total."""
    return total if seen == 1 else total / seen
