"""What KFAC sums: second moments of the inputs, at the call, so that no activation is stored, and of the output-gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.collector.collection import LayerCollection
from fisher.collector.products import cut
from fisher.collector.rules.forms import Lookup
from fisher.collector.uses import UNUSED, Layer
from fisher.pmat import PMat, PMatKFAC
from fisher.pmat.contract.limits import check_dense
from fisher.reducers.base import LeafRows, Options, Reducer, mean
from linmaps.numerics.moments import second_moment
from linmaps.numerics.numeric import total


class KFAC(Reducer):
    """A = 1/B sum over b, s of a a', G = 1/(B S) sum over columns, b, s of g g'; exact blocks where there are no factors.

    Positions that do not count are in neither sum, and B S is the number of those that do.
    """

    by_position = True

    def __init__(self, layers: LayerCollection, options: Options) -> None:
        super().__init__(layers, options)
        self.reduce = options.sharing == "reduce"
        self.whole = {k for l in layers if not l.kronecker for k in l.uses}
        for layer in layers:
            if not layer.kronecker and layer.family != UNUSED and fits(layer.numel, options.largest_block):
                note = layer.note or f"{layer.kind} has no Kronecker factors"
                cure = "use PMatMixed or PMatDiag, or add a rule for its call with fisher.rules.register"
                check_dense(layer.numel, f"{layer.name}: {note}, so its block is exact", cure)

    def keep(self, use: int, a: Tensor) -> Any:
        """(sum of (a, 1)(a, 1)', of a a' without a bias, number of positions), both over options.examples.

        With sharing="reduce" (sum over s of (a, 1), number of positions of each example); of a lookup counts in place of the
        sum; an elementwise layer keeps a itself.
        """
        u, counted = self.layers.uses[use], self.options.counted.get(use)
        if use in self.whole:
            return a
        ones = torch.ones(a.shape[:2], device=a.device, dtype=exact_counts(a)) if counted is None else counted
        positions = ones.to(exact_counts(a)).sum(1)
        if isinstance(u.form, Lookup):
            counts = torch.zeros(u.form.vocabulary + 1, device=a.device, dtype=positions.dtype)
            counts = counts.index_add(0, a.flatten(), ones.to(positions.dtype).flatten())[:-1]
            return counts, positions.sum() / self.options.examples
        wide = not fits(a.shape[-1], self.options.largest_factor)
        if u.bias is not None:
            a = torch.nn.functional.pad(a, (0, 1), value=1.0)
        if counted is not None:
            a = torch.where(counted.reshape(*counted.shape, *(1,) * (a.ndim - 2)), a, 0.0)
        if self.reduce:
            return a.sum(1), positions
        if wide:
            return mean((a**2).sum((0, 1)), self.options.examples), positions.sum() / self.options.examples
        return moment(a, u.form.groups > 1, self.options.examples), positions.sum() / self.options.examples

    def inputs(self, kept: dict[int, Any]) -> Any:
        """({layer: sum for A}, {layer: by what the sum for G is divided})."""
        found = {l.name: self._input_factor(l, [kept[k] for k in l.uses]) for l in self.layers if l.kronecker}
        return {n: A for n, (A, _) in found.items()}, {n: over for n, (_, over) in found.items()}

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        factors, exact, means = {}, {}, {}
        for l in self.layers:
            if l.kronecker:
                mine = [cut(g[k], part) for k, part in zip(l.uses, l.cuts)]
                factors[l.name] = self._output_factor(l, mine)
                if self.options.centered:
                    means[l.name] = self._output_mean(mine)
            elif l.family != UNUSED:
                found = self.gradients(l, kept, g, rows).flatten(2)
                small = fits(found.shape[-1], self.options.largest_block)
                exact[l.name] = second_moment(found) if small else (found**2).sum((0, 1))
                if self.options.centered:
                    means[l.name] = found.sum((0, 1))
        return factors, exact, means

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        (moments, over), (factors, exact, means) = inputs, columns
        like = self.options.like
        unused = {l.name: like.new_zeros(()) for l in self.layers if l.family == UNUSED}

        def centered(n: str, total: Tensor, by: Any) -> Tensor:
            if n not in means:
                return total / by
            m = means[n] / by
            return total / by - (m**2 if total.ndim == m.ndim else m[..., :, None] * m[..., None, :])

        # where nothing counts the sum is zero, whatever it is divided by
        by = {n: torch.where(t > 0, t, 1.0).to(factors[n].dtype) for n, t in over.items()}
        made = {
            n: (self._mean(n, A.to(factors[n].dtype), seen), centered(n, factors[n], by[n])) for n, A in moments.items()
        }
        return PMatKFAC(made, {n: centered(n, t, seen) for n, t in exact.items()} | unused, self.layers)

    def _mean(self, name: str, A: Tensor, seen: int) -> Tensor:
        return mean(A, seen * self.options.examples if self.layers[name].diagonal else seen)

    def _input_factor(self, layer: Layer, kept: list[Any]) -> tuple[Tensor, Tensor]:
        """Sum over b, s of (a, 1)(a, 1)', with sharing="reduce" of the means over s; over how many terms G is a mean."""
        positions = total([n for _, n in kept])
        if layer.diagonal:
            return total([a for a, _ in kept]), positions
        thin = 1 + layer.grouped
        axes = [1 if self.reduce or a.ndim == thin else 2 for a, _ in kept]
        sums = total([_columns_of(layer, a, n) for (a, _), n in zip(kept, axes)])
        if not self.reduce:
            return sums, positions
        each = positions.reshape(-1, *(1,) * (sums.ndim - 1)).to(sums.dtype)
        means = sums / torch.where(each > 0, each, 1.0)
        if layer.weight is not None and not fits(layer.shape[1], self.options.largest_factor):
            sums = mean((means**2).sum(0), self.options.examples)
        else:
            sums = moment(means[:, None], layer.grouped, self.options.examples)
        return sums, (positions > 0).to(positions.dtype).sum() / self.options.examples

    def _output_factor(self, layer: Layer, g: list[Tensor]) -> Tensor:
        """Sum over columns, b, s of g g'; with sharing="reduce" of the sums over s."""
        together = [total([t.sum(2) for t in g])] if self.reduce and not layer.diagonal else g
        if not fits(g[0].shape[-1], self.options.largest_factor):
            return total([(t**2).flatten(0, -2 - layer.grouped).sum(0) for t in together])
        return total([moment(t, layer.grouped) for t in together])

    def _output_mean(self, g: list[Tensor]) -> Tensor:
        return total([t.sum((0, 1, 2)) for t in g])


def _columns_of(layer: Layer, t: Tensor, axes: int) -> Tensor:
    """Of what a use keeps of (a, 1) or of a, along its last axes, what the layer needs: with zeros for a bias that it lacks."""
    if layer.weight is None:  # a bias that is no column of its use's weight
        return t[..., -1:] if axes == 1 else t[..., -1:, -1:]
    width = layer.shape[1] + (layer.bias is not None)
    if t.shape[-1] < width:
        return torch.nn.functional.pad(t, (0, width - t.shape[-1]) * axes)
    return t[..., :width] if axes == 1 else t[..., :width, :width]


def fits(size: int, limit: int | None) -> bool:
    """Whether a matrix of so many rows is kept whole."""
    return limit is None or size <= limit


def exact_counts(t: Tensor) -> torch.dtype:
    """A dtype that holds numbers of positions exactly."""
    return torch.float32 if t.device.type == "mps" else torch.float64


def moment(t: Tensor, grouped: bool, over: int = 1) -> Tensor:
    """Sum of t t' / over, over all but the last axis, `[F, F]`, or `[groups, F, F]` of t `[..., groups, F]`.

    Where positions of examples are no rows of one matrix in memory (the channels of a convolution's output lie between
    them), by one small product for each example: as many multiplications as all positions in one product, and no copy.
    """
    if grouped:
        return vmap(moment, in_dims=(-2, None, None))(t, False, over)
    if 1 < t.shape[-1] <= t.shape[-2] and any(
        t.stride(k) != t.shape[k + 1] * t.stride(k + 1) for k in range(t.ndim - 2)
    ):
        return mean((t.mT @ t).flatten(0, -3).sum(0), over)
    return second_moment(t, over)
