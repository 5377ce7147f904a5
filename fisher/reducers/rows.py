"""Representations made of the gradients of single examples: diagonals, blocks, dense, low rank, a multiple of I."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.collector.backwards import of_threads
from fisher.collector.blocks.uses import ELEMENTWISE, PRODUCT, UNUSED, Layer
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import LeafRows, of_layer
from fisher.collector.products import at_one_position, by_example, cross, squares
from fisher.distributed.marks import marked
from fisher.pmat import PMat, PMatBlockDiag, PMatDense, PMatDiag, PMatEye, PMatLowRank, PMatQuasiDiag
from fisher.pmat.contract.limits import check_dense
from fisher.reducers.base import Options, Reducer, mean
from linmaps import trees
from linmaps.numerics.moments import second_moment


class Diag(Reducer):
    """Sums of squared gradients."""

    patched = True

    def held(self, batch: int) -> int:
        """More where columns share a product for each example; as many as are not held of unfolded inputs."""
        uses = self.layers.uses
        if all(uses[k].shared[:-1] == (uses[k].batch,) for k in self.tapped):
            return of_threads(3 * 2**17)
        layers = [(l, uses[k]) for l in self.layers if l.kronecker for k in l.uses if uses[k].patched]
        unfolded = sum(batch * l.shape[1] * l.form.groups * math.prod(u.shape[2:]) for l, u in layers)
        return max(3 * 2**20, of_threads(2**20), 3 * unfolded // 4)

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        once = {l.name: by_example(l, g[l.uses[0]]) for l in self.layers if self._late(l, g)}
        found = {
            l.name: self._squares(l, kept, g, rows) for l in self.layers if l.family != UNUSED and l.name not in once
        }
        return found, once, self.means(kept, g, rows)

    def closed(self, total: Any, kept: dict[int, Any], chunks: int) -> Any:
        found, once, *others = total
        late = {n: at_one_position(self.layers[n], self._input(self.layers[n], kept), t) for n, t in once.items()}
        return found | late, *others

    def _input(self, l: Layer, kept: dict[int, Any]) -> Tensor:
        (use,) = l.uses
        return self.unfolded(use, kept[use])

    def _late(self, l: Layer, g: dict[int, Tensor]) -> bool:
        """Whether squares are summed over columns before they meet those of the inputs: at one position per example."""
        return l.kronecker and not (l.inner or l.diagonal) and len(l.uses) == 1 and g[l.uses[0]].shape[2] == 1

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        sums, means = columns
        return PMatDiag(self._diag(sums, means, seen), self.layers.space)

    def _squares(self, l: Layer, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Tensor:
        if l.by_leaf:
            return (of_layer(l, rows) ** 2).sum((0, 1))
        return self.over_examples(partial(squares, l), l, kept, g)

    def _diag(self, sums: dict[str, Tensor], means: dict[str, Tensor], seen: int) -> Any:
        views = {n: mean(t, seen) - (means[n] / seen) ** 2 if n in means else mean(t, seen) for n, t in sums.items()}
        return self.layers.tree(_with_unused(self.layers, views, self.options.like))


class Eye(Diag):
    """The trace alone."""

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        diag = self._diag(columns[0], columns[1], seen)
        space = self.layers.space
        total = sum((t.sum() for t in trees.leaves(diag)), self.options.like.new_zeros(()))
        return PMatEye(total / max(1, space.numel), space)


class QuasiDiag(Diag):
    """The diagonal, and the products of each weight's gradient with that of its output unit's bias."""

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        crossed = {l.name: self._cross(l, kept, g) for l in self.layers if _has_both(l)}
        return *super().columns(kept, g, rows), crossed

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        sums, means, crossed = columns
        found = {}
        for n, t in crossed.items():
            found[n] = mean(t, seen)
            if n in means:
                found[n] = found[n] - _paired(means[n] / seen)
        return PMatQuasiDiag(self._diag(sums, means, seen), found, self.layers)

    def _cross(self, l: Layer, kept: dict[int, Any], g: dict[int, Tensor]) -> Tensor:
        if l.family == PRODUCT:
            return self.over_examples(partial(cross, l), l, kept, g)
        return _paired(self.gradients(l, kept, g, {})).sum((0, 1))


class BlockDiag(Reducer):
    """One exact block per layer."""

    def __init__(self, layers: LayerCollection, options: Options) -> None:
        super().__init__(layers, options)
        for l in layers:
            if l.family != UNUSED:
                check_dense(l.numel, f"PMatBlockDiag: the block of {l.name}", "use PMatKFAC, PMatMixed or PMatDiag")

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        blocks = {}
        for l in self.layers:
            if l.family != UNUSED:
                blocks[l.name] = second_moment(self.gradients(l, kept, g, rows).flatten(2))
        return blocks, self.means(kept, g, rows)

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        sums, means = columns
        blocks = {l.name: self.options.like.new_zeros(()) for l in self.layers if l.family == UNUSED}
        for n, t in sums.items():
            m = (means[n] / seen).flatten() if n in means else None
            blocks[n] = mean(t, seen) if m is None else mean(t, seen) - torch.outer(m, m)
        return PMatBlockDiag(blocks, self.layers)

    def apart(self, inputs: Any, columns: Any) -> tuple[Any, Any]:
        blocks, means = columns
        return (inputs, ({n: marked(t) for n, t in blocks.items()}, means)), []


class Dense(Reducer):
    """R'R of the rows of all gradients, `[C B, d]` in the flat order."""

    def __init__(self, layers: LayerCollection, options: Options) -> None:
        super().__init__(layers, options)
        self.check()

    def check(self) -> None:
        """Raise where the matrix would be too large."""
        check_dense(self.layers.space.numel, "PMatDense", "use PMatKFAC, PMatLowRank or PMatImplicit")

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        whole = self.matrix(kept, g, rows)
        return second_moment(whole), (whole.sum((0, 1)) if self.options.centered else {})

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        total, summed = columns
        found = mean(total, seen)
        if self.options.centered:
            m = mean(summed, seen)
            found = found - torch.outer(m, m)
        return PMatDense(found, self.layers.space)

    def apart(self, inputs: Any, columns: Any) -> tuple[Any, Any]:
        total, summed = columns
        return (inputs, (marked(total), summed)), []

    def tree(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        """Gradients of all leaves, `[C, B, *leaf]`."""
        views = {l.name: self.gradients(l, kept, g, rows) for l in self.layers}
        return vmap(vmap(self.layers.tree))(views)

    def matrix(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Tensor:
        """The same as `[C, B, d]`."""
        found = trees.leaves(self.tree(kept, g, rows))
        return torch.cat([t.flatten(2) if t.ndim > 2 else t[..., None] for t in found], -1)


class LowRank(Dense):
    """The rows themselves, over sqrt(B)."""

    gathers = True

    def check(self) -> None:
        """Rows are as many as there are."""

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        return trees.map(lambda t: t.flatten(0, 1), self.tree(kept, g, rows))

    def add(self, one: Any, other: Any) -> Any:
        return trees.map(lambda s, t: torch.cat([s, t]), one, other) if one else other

    def apart(self, inputs: Any, columns: Any) -> tuple[Any, Any]:
        return (), columns

    def together(self, sums: Any, rows: Any) -> tuple[Any, Any]:
        return {}, rows

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        if self.options.centered:  # one column: as many rows as examples
            columns = trees.map(lambda t: t - t.mean(0, keepdim=True), columns)
        return PMatLowRank(columns if seen == 1 else trees.scale(seen**-0.5, columns))


def _has_both(l: Layer) -> bool:
    return l.family in (PRODUCT, ELEMENTWISE) and l.weight is not None and l.bias is not None


def _paired(view: Tensor) -> Tensor:
    """Products of the gradient of each weight with that of the bias of its output unit."""
    return view[..., :-1] * view[..., -1:]


def _with_unused(layers: Any, views: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    return views | {l.name: like.new_zeros(l.numel) for l in layers if l.family == UNUSED}
