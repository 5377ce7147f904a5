"""Records of what was seen: a *use* is one call (a layer applied twice has two), a *layer* the leaves of one block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fisher.checks.axes import rows
from fisher.collector.calls.chains import Chain
from fisher.collector.rules.forms import Convolution, Elementwise, Form, Lookup
from fisher.collector.rules.match import Derived, Match, leaves_of, spoken
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path

Rows = tuple[int, int]


@trees.static
@dataclasses.dataclass(frozen=True)
class Use:
    """One call in which leaves are used: `z = W x + b` in the sense of its form.

    weight, bias: paths of the leaves (None: not a leaf); part, bias_part: their rows that are used (None: all);
    joined: the bias is added by a later call; shape, dtype: of z, for the batch seen (no part of the identity of a use);
    shared: its shape with features last;
    axis: where the examples are in the latter (`axes.rows`); mutated: x is changed in place later on;
    source: `(earlier use, chain)` when x is `chain` of that use's output, and that output goes nowhere else;
    constant: the number of this call among the products with constants, if no data enter x; free: nor have z and x examples.
    """

    kind: str
    weight: Path | Derived | None
    bias: Path | Derived | None
    form: Form
    part: Rows | None
    bias_part: Rows | None
    joined: bool
    shape: tuple[int, ...] = dataclasses.field(compare=False)
    shared: tuple[int, ...] = dataclasses.field(compare=False)
    batch: int = dataclasses.field(compare=False)
    dtype: torch.dtype = dataclasses.field(compare=False)
    axis: int
    mutated: bool
    source: tuple[int, Chain] | None
    constant: int | None = None
    free: bool = False

    @property
    def transposed(self) -> bool:
        """Whether the weight leaf is stored `[in, out]`."""
        return self.form.transposed

    @property
    def elementwise(self) -> bool:
        return isinstance(self.form, Elementwise)

    @property
    def plain(self) -> bool:
        """Whether z is `[B, S, O]` but for its shape: examples in front, features last."""
        return type(self.form) is Form and self.axis == 0 and not self.free

    @property
    def patched(self) -> bool:
        """Whether a is made of patches of x, examples in front: many times as large, and soon made again."""
        return isinstance(self.form, Convolution) and self.axis == 0 and self.shape[0] == self.batch

    def unfolded_size(self, x: Tensor) -> int:
        """How many numbers a has for each example, of a `patched` use."""
        return x.shape[1] * math.prod(self.form.kernel) * math.prod(self.shape[2:])  # type: ignore[attr-defined]

    def explains(self, match: Match, weight: Path | Derived | None, bias: Path | Derived | None) -> bool:
        """Whether a match, of this weight and bias, is this use."""
        own = None if self.joined else self.bias
        return (self.kind, self.weight, own, self.form) == (match.kind, weight, bias, match.form)

    def tap_shape(self, batch: int) -> tuple[int, ...]:
        """The shape of z for another batch size."""
        if self.free:
            return self.shape
        k = self.form.axis(max(self.axis, 0))
        return (*self.shape[:k], self.shape[k] // max(1, self.batch) * batch, *self.shape[k + 1 :])

    def inputs(self, x: Tensor, batch: int) -> Tensor:
        """x as `[B, S, I]`, `[B, S, groups, I]`, or indices `[B, S]` of a lookup; the same for all examples if free."""
        if self.free:
            return x.reshape(-1, x.shape[-1]).expand(batch, -1, -1)
        if isinstance(self.form, Lookup):
            return rows(self.form.inputs(x), batch, self.axis)[..., 0]
        return self._by_group(rows(self.form.inputs(x), batch, self.axis))

    def outputs(self, z: Tensor, batch: int, axis: int | None = None) -> Tensor:
        """z as `[B, S, O]`, or `[B, S, groups, O]`; of a free use z has an axis of examples in front."""
        if self.free:
            return z.reshape(batch, -1, z.shape[-1])
        return self._by_group(rows(self.form.outputs(z), batch, self.axis if axis is None else axis))

    def _by_group(self, t: Tensor) -> Tensor:
        n = self.form.groups
        return t.unflatten(-1, (n, t.shape[-1] // n)) if n > 1 else t

    @property
    def paths(self) -> tuple[Path, ...]:
        """The leaves that it uses, or that its weight and bias are made of."""
        return (*leaves_of(self.weight), *leaves_of(self.bias))

    def describe(self) -> str:
        return f"{self.kind} of {spoken(self.weight or self.bias)}"


PRODUCT, ELEMENTWISE, THROUGH, EXACT, UNUSED = "product", "elementwise", "through", "exact", "unused"
NEVER_MET = "never met in a torch call"


@trees.static
@dataclasses.dataclass(frozen=True)
class Layer:
    """Leaves that share one block.

    kind: how the leaves are used, for the table ("linear", "conv2d", "embedding", "scale", ..., "exact", "unused");
    family: "product" (Kronecker-factored), "elementwise" (exact block by rows g x), "through" (leaves of derived weights),
    "exact" (no rule), "unused";
    weight, bias: leaf numbers in the flat order; part: their rows that belong to this layer (None: all);
    shape: `[O, I]` of the matrix view without the bias column, of one group; uses: their numbers;
    biased: in which of them the bias is met; cuts: for each use which of its outputs are this layer's (None: all);
    one_by_one: of an exact layer, that vmap over examples does not give its rows; others: leaves that share its block;
    inner: of a layer that is seen through, the derived weights as layers: their leaves are numbered by no layout.
    """

    name: str
    kind: str
    family: str
    weight: int | None
    bias: int | None
    form: Form
    part: Rows | None
    shape: tuple[int, int]
    uses: tuple[int, ...]
    biased: tuple[bool, ...]
    cuts: tuple[Rows | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    note: str
    one_by_one: bool = False
    others: tuple[int, ...] = ()
    inner: tuple[Layer, ...] = ()

    def without_gradient(self) -> Layer:
        """The same, unused."""
        return dataclasses.replace(self, kind=UNUSED, family=UNUSED, note="no gradient")

    def without_rule(self, note: str) -> Layer:
        """The same with an exact block."""
        return dataclasses.replace(self, kind=EXACT, family=EXACT, note=note, uses=(), inner=())

    @property
    def kronecker(self) -> bool:
        return self.family == PRODUCT

    @property
    def by_leaf(self) -> bool:
        """Whether rows of single examples are those of its leaves, found without (a, g)."""
        return self.family in (EXACT, THROUGH)

    @property
    def factored(self) -> bool:
        """Whether it is seen through to products alone, so that its block is J'(G (x) A)J."""
        return self.family == THROUGH and all(layer.kronecker for layer in self.inner)

    @property
    def transposed(self) -> bool:
        return self.form.transposed

    @property
    def diagonal(self) -> bool:
        """Whether the input factor A is a diagonal matrix, kept as the vector `[I]` of its entries."""
        return isinstance(self.form, Lookup)

    @property
    def grouped(self) -> bool:
        """Whether the matrix view has an axis of groups in front, with factors for each: `[groups, O, I]`."""
        return self.kronecker and self.form.groups > 1

    @property
    def leaves(self) -> tuple[int, ...]:
        return (*(i for i in (self.weight, self.bias) if i is not None), *self.others)

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return sum(map(math.prod, self.shapes))

    def matrix(self, flat: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """The view of a vector in parameter space: `[W | b]` `[O, I + 1]` of a product (I = 1 of an elementwise layer with
        both), else `[n]`."""
        if not self.kronecker:
            found = [self._own(flat[n]) for n in self.leaves]
            entries = [t.reshape(t.numel()) for t in found]
            if len(entries) == 1:
                return entries[0]
            return torch.cat(entries) if self.others else torch.stack(entries, -1)
        arrangement, columns = self.form.arrangement, []
        if self.weight is not None:
            columns.append(arrangement.matrix(self._own(flat[self.weight])))
        if self.bias is not None:
            groups = (arrangement.groups,) if arrangement.groups > 1 else ()
            columns.append(self._own(flat[self.bias]).reshape(*groups, self.shape[0], 1))
        return torch.cat(columns, -1) if len(columns) > 1 else columns[0]

    def scatter(self, view: Tensor) -> dict[int, Tensor]:
        """The leaves (their own rows of them) of a view: the way back from `matrix`."""
        if not self.kronecker:
            sizes = [math.prod(s) for s in self.shapes]
            parts = view.split(sizes) if self.others or len(sizes) == 1 else view.unbind(-1)
            return {n: t.reshape(s) for n, t, s in zip(self.leaves, parts, self.shapes)}
        found = {}
        if self.weight is not None:
            found[self.weight] = self.form.arrangement.leaf(view[..., : self.shape[1]], self.shapes[0])
        if self.bias is not None:
            own, column = self.shapes[-1], view[..., -1]
            found[self.bias] = column if column.shape == own else column.reshape(own)
        return found

    def _own(self, leaf: Tensor) -> Tensor:
        return leaf if self.part is None else leaf[self.part[0] : self.part[1]]


def layer_name(weight: Path, bias: Path | None) -> str:
    """`hidden` for hidden.weight (and hidden.bias), the leaf's own path otherwise."""
    w, b = path_str(weight), path_str(bias) if bias is not None else None
    stem, _, last = w.rpartition(".")
    return stem if stem and last == "weight" and b in (None, f"{stem}.bias") else w
