"""What KFAC sums: second moments of the inputs, at the call, so that no activation is stored, and of the output-gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.forms import Lookup
from fisher.layers import LayerCollection
from fisher.pmat import PMat, PMatKFAC
from fisher.products import cut
from fisher.reducers.base import LeafRows, Options, Reducer, gram, mean
from fisher.uses import UNUSED, Layer

LARGEST_EXACT = 2**15  # 4 GiB in float32


class KFAC(Reducer):
    """A = 1/B sum over b, s of a a', G = 1/(B S) sum over columns, b, s of g g'; exact blocks where there are no factors."""

    def __init__(self, layers: LayerCollection, options: Options) -> None:
        super().__init__(layers, options)
        self.reduce = options.sharing == "reduce"
        self.whole = {k for l in layers if not l.kronecker for k in l.uses}
        for layer in layers:
            if not layer.kronecker and layer.family != UNUSED and layer.numel > LARGEST_EXACT:
                note = layer.note or f"{layer.kind} has no Kronecker factors"
                raise ValueError(
                    f"{layer.name}: {note}, so its block is exact: {layer.numel:,} x {layer.numel:,}, expected at "
                    f"most {LARGEST_EXACT:,}; use PMatMixed or PMatDiag, or add a rule for its call with "
                    "fisher.rules.register"
                )

    def keep(self, use: int, a: Tensor) -> Any:
        """Sum of (a, 1)(a, 1)' (of a a' without a bias) over options.examples; with sharing="reduce" (sum over s of (a, 1), S).

        Of a lookup the counts; an elementwise layer keeps a itself.
        """
        u = self.layers.uses[use]
        if use in self.whole:
            return a
        if isinstance(u.form, Lookup):
            counts = torch.zeros(u.form.vocabulary + 1, device=a.device)
            return counts.index_add(0, a.flatten(), torch.ones(a.numel(), device=a.device))[:-1]
        if u.bias is not None:
            a = torch.nn.functional.pad(a, (0, 1), value=1.0)
        if self.reduce:
            return a.sum(1), a.new_full((), a.shape[1])
        return moment(a, u.form.groups > 1, self.options.examples)

    def inputs(self, kept: dict[int, Any]) -> Any:
        return {l.name: self._input_factor(l, [kept[k] for k in l.uses]) for l in self.layers if l.kronecker}

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
                exact[l.name] = gram(found)
                if self.options.centered:
                    means[l.name] = found.sum((0, 1))
        return factors, exact, means

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        factors, exact, means = columns
        like = next(iter({**factors, **exact}.values()))
        for names in (factors, exact):
            for n in names:
                names[n] = mean(names[n], seen)
                if n in means:
                    m = mean(means[n], seen)
                    names[n] = names[n] - m[..., :, None] * m[..., None, :]
        unused = {l.name: like.new_zeros(()) for l in self.layers if l.family == UNUSED}
        made = {n: (self._mean(n, A.to(factors[n].dtype), seen), factors[n]) for n, A in inputs.items()}
        return PMatKFAC(made, exact | unused, self.layers)

    def _mean(self, name: str, A: Tensor, seen: int) -> Tensor:
        return mean(A, seen * self.options.examples if self.layers[name].diagonal else seen)

    def _input_factor(self, layer: Layer, kept: list[Any]) -> Tensor:
        """Sum over b, s of (a, 1)(a, 1)'; with sharing="reduce" of the means over s."""
        if layer.diagonal:
            return _total(kept)
        if self.reduce:
            shared = _total([a for a, _ in kept]) / _total([s for _, s in kept])
            found = moment(shared[:, None], layer.grouped, self.options.examples)
        else:
            found = _total(kept)
        if layer.weight is None:  # a bias that is no column of its use's weight
            return found[..., -1:, -1:]
        width = layer.shape[1] + (layer.bias is not None)
        return found[..., :width, :width]

    def _output_factor(self, layer: Layer, g: list[Tensor]) -> Tensor:
        """1/S times the sum over columns, b, s of g g'; with sharing="reduce" of the sums over s."""
        if self.reduce and not layer.diagonal:
            return moment(_total([t.sum(2) for t in g]), layer.grouped)
        return _total([moment(t, layer.grouped) for t in g]) / sum(t.shape[2] for t in g)

    def _output_mean(self, g: list[Tensor]) -> Tensor:
        if self.reduce:
            return _total([t.sum((0, 1, 2)) for t in g])
        return _total([t.sum((0, 1, 2)) for t in g]) / sum(t.shape[2] for t in g)


def moment(t: Tensor, grouped: bool, over: int = 1) -> Tensor:
    """Sum of t t' / over, over all but the last axis, `[F, F]`, or `[groups, F, F]` of t `[..., groups, F]`.

    Where features lie apart in memory (the channels of a convolution), by one small product for each example: as many
    multiplications as all positions in one product, and no copy.
    """
    if grouped:
        return vmap(moment, in_dims=(-2, None, None))(t, False, over)
    if t.ndim > 2 and t.stride(-1) != 1 and 1 < t.shape[-1] <= t.shape[-2]:
        return mean((t.mT @ t).flatten(0, -3).sum(0), over)
    return gram(t, over)


def _total(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])
