"""What KFAC sums: second moments of the inputs, at the call, so that no activation is stored, and of the output-gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fisher.collector.backwards import alone, of_threads
from fisher.collector.blocks.uses import ELEMENTWISE, UNUSED, Layer
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import LeafRows
from fisher.collector.products import cut
from fisher.collector.rules.forms import Lookup
from fisher.distributed.marks import marked
from fisher.pmat import PMat, PMatKFAC
from fisher.pmat.contract.limits import check_dense
from fisher.pmat.layered.factored import kronecker_product
from fisher.reducers.base import Options, Reducer, mean
from fisher.reducers.moments import apart, moment, with_ones
from fisher.reducers.sides import of_both_sides
from fisher.reducers.through import by_weights, pulled_back
from linmaps import trees
from linmaps.numerics.moments import add_moment, mirror, second_moment
from linmaps.numerics.numeric import positive_root, total

WIDE = 512  # rows of a factor that no cache holds


class KFAC(Reducer):
    """A = 1/B sum over b, s of a a', G = 1/(B S) sum over columns, b, s of g g'; exact blocks where there are no factors.

    With weights A = 1/B sum of w a a', and G, whose g have sqrt(w), is over the sum of w in place of B S: positions that do not
    count are in neither sum.
    """

    by_position = True
    patched = True

    def __init__(self, layers: LayerCollection, options: Options) -> None:
        super().__init__(layers, options)
        self.reduce = options.sharing == "reduce"
        self.shared: dict[int, Any] = {}  # positions of an example of each use, where all count
        self.numbers: dict[int, Any] = {}  # of all of them, over options.examples
        self._through = tuple(l for l in layers.through if by_weights(l, self.dense(l)))
        self.tied = tuple(l for l in layers if l.kronecker and l.inner)
        weights = {inner_name(l, j): w for l in (*self._through, *self.tied) for j, w in enumerate(l.inner)}
        self.products = {l.name: l for l in layers if l.kronecker and not l.inner} | weights
        self.whole = {k for l in layers if l.family == ELEMENTWISE for k in l.uses}
        for layer in layers:
            if not layer.kronecker and layer.family != UNUSED and fits(layer.numel, options.largest_block):
                note = layer.note or f"{layer.kind} has no Kronecker factors"
                cure = "use PMatMixed or PMatDiag, or add a rule for its call with fisher.rules.register"
                check_dense(layer.numel, f"{layer.name}: {note}, so its block is exact", cure)

    @property
    def through(self) -> tuple[Layer, ...]:
        return self._through

    @property
    def by_rows(self) -> tuple[Layer, ...]:
        mine = {l.name for l in self._through}
        return tuple(l for l in self.layers.exact if l.name not in mine)

    def dense(self, layer: Layer) -> bool:
        """Whether a block without factors is kept whole."""
        return fits(layer.numel, self.options.largest_block)

    def keep(self, use: int, a: Tensor) -> Any:
        """(sum of w (a, 1)(a, 1)', of a a' without a bias, sum of w over positions), both over options.examples.

        With sharing="reduce" (sum over s of w (a, 1), sum of w and number of its positions of each example `[2, B]`); of a
        lookup counts in place of the sum; an elementwise layer keeps a itself.
        """
        if use in self.whole:
            return a
        counted = self.options.counted.get(use)
        if self.patched and self.layers.uses[use].patched:
            own = lambda start, stop: None if counted is None else counted[start:stop]
            parts = (self._kept(use, self.unfolded(use, a[s:e]), own(s, e)) for s, e in self.some({use: a}))
            found = functools.reduce(self._of_both, parts)
        else:
            found = self._kept(use, a, counted)
        if len(found) == 1:  # `inputs` makes a tensor of the number
            shared, *kind = self.shared[use]
            self.numbers[use] = (len(a) * shared / self.options.examples, *kind)
        return found

    def _of_both(self, some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is kept of some examples and of others."""
        if self.reduce:
            return torch.cat([some[0], others[0]]), torch.cat([some[1], others[1]], 1)
        return tuple(s + t for s, t in zip(some, others))

    def _kept(self, use: int, a: Tensor, counted: Tensor | None) -> tuple[Tensor, ...]:
        u = self.layers.uses[use]
        wide = not fits(a.shape[-1], self.options.largest_factor)
        if u.bias is not None and counted is None and not (self.reduce or wide or isinstance(u.form, Lookup)):
            self.shared[use] = a.shape[1], a.device, exact_counts(a)
            return (with_ones(a, u.form.groups > 1, self.options.examples),)
        ones = torch.ones(a.shape[:2], device=a.device, dtype=exact_counts(a))
        ones = ones if counted is None else counted.to(ones.dtype).expand(a.shape[:2])
        positions = ones.sum(1)
        if isinstance(u.form, Lookup):
            counts = torch.zeros(u.form.vocabulary + 1, device=a.device, dtype=positions.dtype)
            counts = counts.index_add(0, a.flatten(), ones.flatten())[:-1]
            return counts, positions.sum() / self.options.examples
        if u.bias is not None:
            a = torch.nn.functional.pad(a, (0, 1), value=1.0)
        if counted is not None:  # times w where a is summed, sqrt(w) where its square is
            w = counted.reshape(*counted.shape, *(1,) * (a.ndim - 2)).to(a.dtype)
            a = torch.where(w == 0, 0.0, a * (w if self.reduce else positive_root(w)))
        if self.reduce:
            return a.sum(1), torch.stack([positions, (ones > 0).to(ones.dtype).sum(1)])
        if wide:
            return mean((a**2).sum((0, 1)), self.options.examples), positions.sum() / self.options.examples
        return moment(a, u.form.groups > 1, self.options.examples), positions.sum() / self.options.examples

    def inputs(self, kept: dict[int, Any]) -> Any:
        """({layer: sum for A}, {layer: by what the sum for G is divided})."""
        numbers = {key: torch.full((), key[0], device=key[1], dtype=key[2]) for key in {*self.numbers.values()}}
        whole = lambda k: kept[k] if len(kept[k]) > 1 else (kept[k][0], numbers[self.numbers[k]])
        found = {n: self._input_factor(l, [whole(k) for k in l.uses]) for n, l in self.products.items()}
        return {n: A for n, (A, _) in found.items()}, {n: over for n, (_, over) in found.items()}

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        factors = {n: total([self._moment(l, t) for t in self._gradients(l, g)]) for n, l in self.products.items()}
        return factors, *self._others(kept, g, rows)

    def held(self, batch: int) -> int:
        return of_threads(2**18)

    def at_a_time(self, batch: int) -> int:
        """At least so many that a product over their rows costs more than the factor that it is added to."""
        uses = [u for k in self.tapped if (u := self.layers.uses[k]).shared[-1] >= WIDE and not u.free]
        rows = lambda u: max(1, math.prod(u.shared[:-1]) // max(1, u.batch) * batch)
        return max(super().at_a_time(batch), *(u.shared[-1] // (3 * rows(u)) for u in uses), 1)

    def onto(self, sums: Any, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        """Factors grow where they lie, above their diagonals, where there is no transform and no graph."""
        factors, *others = sums
        if not alone((*g.values(), *factors.values())) or len({t.dtype for t in (*g.values(), *factors.values())}) > 1:
            return super().onto(sums, kept, g, rows)
        for n, l in self.products.items():
            for t in self._gradients(l, g):
                if l.grouped or factors[n].ndim != 2 or apart(t):  # diagonals of groups have two axes too
                    factors[n].add_(self._moment(l, t))
                else:
                    add_moment(factors[n], t)
        return factors, *trees.add(tuple(others), self._others(kept, g, rows))

    def closed(self, sums: Any, kept: dict[int, Any], chunks: int) -> Any:
        if chunks > 1 and alone(sums[0].values()):
            for n, t in sums[0].items():
                if t.ndim == 2 and not self.products[n].grouped:
                    mirror(t)
        return sums

    def _gradients(self, layer: Layer, g: dict[int, Tensor]) -> list[Tensor]:
        """Of each use g at the outputs of the layer; with sharing="reduce" the sum over s of all."""
        own = [cut(g[k], part) for k, part in zip(layer.uses, layer.cuts)]
        return [total([t.sum(2) for t in own])] if self.reduce and not layer.diagonal else own

    def _moment(self, layer: Layer, g: Tensor) -> Tensor:
        """Sum over columns, b, s of g g'."""
        if not fits(g.shape[-1], self.options.largest_factor):
            return (g**2).flatten(0, -2 - layer.grouped).sum(0)
        return moment(g, layer.grouped)

    def _others(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> tuple[Any, Any]:
        """The exact blocks, and the mean gradients."""
        exact, means = {}, {}
        if self.options.centered:
            for n, l in self.products.items():
                means[n] = total([cut(g[k], part).sum((0, 1, 2)) for k, part in zip(l.uses, l.cuts)])
        through = {l.name for l in self._through}
        for l in self.layers:
            if l.family != UNUSED and not l.kronecker and l.name not in through:
                found = self.gradients(l, kept, g, rows).flatten(2)
                exact[l.name] = second_moment(found) if self.dense(l) else (found**2).sum((0, 1))
                if self.options.centered:
                    means[l.name] = found.sum((0, 1))
        return exact, means

    def finish(self, inputs: Any, columns: Any, seen: int) -> PMat:
        made = self.factors(inputs, columns, seen)
        blocks = self.blocks(columns, seen) | {l.name: self.through_block(l, made) for l in self._through}
        return PMatKFAC({l.name: made[l.name] for l in self.layers if l.name in made}, blocks, self.layers)

    def factors(self, inputs: Any, columns: Any, seen: int) -> dict[str, tuple[Tensor, Tensor]]:
        """(A, G) of each product, those of derived weights among them."""
        (moments, over), (sums, _, means) = inputs, columns
        some = {(id(t), s.dtype): t for t, s in ((over[n], sums[n]) for n in over)}
        # where nothing counts the sum is zero, whatever it is divided by
        divisors = {key: t.to(key[1]).clamp_min(torch.finfo(key[1]).tiny) for key, t in some.items()}
        by = {n: divisors[id(t), sums[n].dtype] for n, t in over.items()}
        made = {
            n: (self._mean(n, A.to(sums[n].dtype), seen), _centered(sums[n], by[n], means.get(n)))
            for n, A in moments.items()
        }
        for layer in self.tied:
            names = [inner_name(layer, j) for j in range(len(layer.inner))]
            made[layer.name] = of_both_sides(layer, [made[n] for n in names], [by[n] for n in names])
        return made

    def blocks(self, columns: Any, seen: int) -> dict[str, Tensor]:
        """The exact blocks, zeros for leaves without a gradient."""
        _, exact, means = columns
        unused = {l.name: self.options.like.new_zeros(()) for l in self.layers if l.family == UNUSED}
        return {n: _centered(t, seen, means.get(n)) for n, t in exact.items()} | unused

    def apart(self, inputs: Any, columns: Any) -> tuple[Any, Any]:
        (moments, over), (factors, exact, means) = inputs, columns
        of = lambda found: {n: marked(t, 2 + self.products[n].grouped) for n, t in found.items()}
        return ((of(moments), over), (of(factors), {n: marked(t) for n, t in exact.items()}, means)), []

    def through_block(self, layer: Layer, made: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """J'(G (x) A)J of a layer that is seen through, or its diagonal."""
        factors = [made[inner_name(layer, j)] for j in range(len(layer.inner))]
        blocks = [kronecker_product(A, G, weight.grouped) for (A, G), weight in zip(factors, layer.inner)]
        products = [lambda V, b=b, G=G: b.mv(V.to(G.dtype)) for b, (_, G) in zip(blocks, factors)]
        leaves = [self.options.params[n] for n in layer.leaves]
        return pulled_back(self.options.weights[layer.name], leaves, products, not self.dense(layer))

    def _mean(self, name: str, A: Tensor, seen: int) -> Tensor:
        return mean(A, seen * self.options.examples if self.products[name].diagonal else seen)

    def _input_factor(self, layer: Layer, kept: list[Any]) -> tuple[Tensor, Tensor]:
        """Sum over b, s of w (a, 1)(a, 1)', with sharing="reduce" of the means over s; by what sum of w G is a mean."""
        positions = total([n for _, n in kept])
        if layer.diagonal:
            return total([a for a, _ in kept]), positions
        thin = 1 + layer.grouped
        axes = [1 if self.reduce or a.ndim == thin else 2 for a, _ in kept]
        sums = total([_columns_of(layer, a, n) for (a, _), n in zip(kept, axes)])
        if not self.reduce:
            return sums, positions
        weight, number = positions
        whole = weight / number.clamp_min(1)  # of the example
        by_example = lambda t: t.reshape(-1, *(1,) * (sums.ndim - 1)).to(sums.dtype)
        means = sums * by_example(positive_root(whole) / torch.where(weight > 0, weight, 1.0))
        if layer.weight is not None and not fits(layer.shape[1], self.options.largest_factor):
            sums = mean((means**2).sum(0), self.options.examples)
        else:
            sums = moment(means[:, None], layer.grouped, self.options.examples)
        return sums, whole.sum() / self.options.examples


def _columns_of(layer: Layer, t: Tensor, axes: int) -> Tensor:
    """Of what a use keeps of (a, 1) or of a, along its last axes, what the layer needs: with zeros for a bias that it lacks."""
    if layer.weight is None:  # a bias that is no column of its use's weight
        return t[..., -1:] if axes == 1 else t[..., -1:, -1:]
    width = layer.shape[1] + (layer.bias is not None)
    if t.shape[-1] < width:
        return torch.nn.functional.pad(t, (0, width - t.shape[-1]) * axes)
    return t[..., :width] if axes == 1 else t[..., :width, :width]


def _centered(total: Tensor, by: Any, mean: Tensor | None) -> Tensor:
    """total / by, less the square of the mean gradient."""
    if mean is None:
        return total / by
    m = mean / by
    return total / by - (m**2 if total.ndim == m.ndim else m[..., :, None] * m[..., None, :])


def inner_name(layer: Layer, number: int) -> str:
    """The name of one of the weights that a layer is seen through."""
    return f"{layer.name} -> {number}"


def fits(size: int, limit: int | None) -> bool:
    """Whether a matrix of so many rows is kept whole."""
    return limit is None or size <= limit


def exact_counts(t: Tensor) -> torch.dtype:
    """A dtype that holds numbers of positions exactly."""
    return torch.float32 if t.device.type == "mps" else torch.float64
