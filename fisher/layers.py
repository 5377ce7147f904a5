"""Layers: which leaf of `params` is used how, found by watching f once; static, hashable, printed as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from fisher import check as checks
from fisher.axes import batch_axes, batch_size
from fisher.chains import Chain
from fisher.check import NEVER_MET
from fisher.trace import Tracer
from fisher.uses import Layer, Use
from fisher.watch import distinct
from linmaps import trees
from linmaps.trees import Layout, Path, path_str


@trees.static
@dataclasses.dataclass(frozen=True, repr=False)
class LayerCollection:
    """The layers of a function: which leaf gets which block.  Made by `from_function`; print it to see the table."""

    layers: tuple[Layer, ...]
    uses: tuple[Use, ...]
    layout: Layout

    @classmethod
    def from_function(
        cls,
        f: Callable[..., Tensor],
        params: Any,
        x: Any,
        *,
        check: bool = True,
        strict: bool = False,
        exact: tuple[str | Path, ...] = (),
    ) -> LayerCollection:
        """Watch `f(params, x)` once and find what each leaf is.

        check: compare, for each leaf, autograd's gradient with the sum over uses of g'a, and see that examples do not
        mix (one forward and four backwards more).  strict: raise where a leaf has no rule, instead of giving it an exact
        block.  exact: paths of leaves to be given an exact block in any case.

        Raises ValueError (path, what was met, the cure) for a hidden use, mixed examples, an integer leaf.

        >>> import torch
        >>> f = lambda p, x: torch.relu(x @ p["w"] + p["b"]) * p["scale"]
        >>> p = {"w": torch.ones(2, 3), "b": torch.zeros(3), "scale": torch.ones(3)}
        >>> LayerCollection.from_function(f, p, torch.ones(4, 2))
        LayerCollection: 3 leaves, 12 parameters, 2 blocks
        layer  block      kind    out x in  uses  leaves  note
        scale  exact      exact   3 x 3        0  scale   used by torch.Tensor.mul: no rule
        w      kronecker  matmul  3 x 3        1  w, b
        """
        layout = Layout.of(params)
        checks.floating(params)
        params = distinct(params)
        tracer = Tracer(batch_size(x))
        y, back = checks.watched(lambda params, x: tracer.run(f, params, x), params, x)
        uses = _resolve(tracer)
        forced = {leaf: "asked for" for p in exact for leaf in _leaves_at(p, layout)}
        opaque = {p: f"used by {name}: no rule" for p, name in tracer.opaque.items()} | forced
        made = cls(_layers(layout, uses, opaque), uses, layout)
        if check and tracer.batch:
            made = made._checked(checks.evidence(f, params, x, made, y, back), tracer.batch, opaque)
        if strict and made.exact:
            layer = made.exact[0]
            raise ValueError(
                f"{layer.name}: {layer.note}; add one with fisher.rules.register or pass strict=False to give it an exact "
                "block"
            )
        return made

    def _checked(self, seen: checks.Evidence, batch: int, opaque: dict[Path, str]) -> LayerCollection:
        """The same with the batch axis of each use found, the leaves without gradient marked, and all uses explained."""
        uses, layout = self.uses, self.layout
        axes = checks.batch_axis(seen, batch)
        lost = {p: "its batch axis was not found" for k, a in axes.items() if a is None for p in uses[k].paths}
        found = {k: axis for k, axis in axes.items() if axis is not None}
        uses = tuple(dataclasses.replace(u, axis=found.get(k, u.axis)) for k, u in enumerate(uses))
        made = LayerCollection(_layers(layout, uses, lost | opaque), uses, layout)
        unused = checks.complete(made, seen, batch)
        kinds = [
            dataclasses.replace(l, kind="unused", note="no gradient") if l.leaves[0] in unused else l for l in made
        ]
        return LayerCollection(tuple(kinds), uses, layout)

    def leaf_of(self, use: int) -> int:
        """Number of a leaf of this use: it says the dtype and device of the tap."""
        u = self.uses[use]
        return self.layout.paths.index(u.weight if u.weight is not None else u.bias)  # type: ignore[arg-type]

    @property
    def tapped(self) -> tuple[int, ...]:
        """The uses whose (a, g) the Kronecker-factored layers need."""
        return tuple(sorted({k for layer in self.layers if layer.kronecker for k in layer.uses}))

    @property
    def exact(self) -> tuple[Layer, ...]:
        """The layers without a rule: their blocks are exact."""
        return tuple(layer for layer in self.layers if layer.kind == "exact")

    @property
    def space(self) -> Layout:
        """Layout of the vectors of parameter space that matrices on these layers act on."""
        return self.layout

    def views(self, v: Any) -> dict[str, Tensor]:
        """A vector of parameter space by layer: `[O, I]` (the bias a last column) where factored, `[n]` elsewhere.

        ValueError that names the path for a v of another structure or shape.
        """
        self.space.check(v, "v")
        flat = trees.leaves(v)
        return {
            l.name: l.matrix(flat) if l.kronecker else flat[l.leaves[0]].reshape(self.layout.sizes[l.leaves[0]])
            for l in self
        }

    def tree(self, views: dict[str, Tensor]) -> Any:
        """The vector of parameter space with these views: the way back from `views`."""
        found: dict[int, Tensor] = {}
        for l in self:
            found |= l.scatter(views[l.name]) if l.kronecker else {l.leaves[0]: views[l.name]}
        return self.space.unflatten([found[n].reshape(s) for n, s in enumerate(self.space.shapes)])

    def numel(self) -> int:
        """Number of parameters."""
        return self.layout.numel

    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(f"{name}: no such layer; expected one of {list(self.names())}")

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        head = ["layer", "block", "kind", "out x in", "uses", "leaves", "note"]
        body = []
        for l in self.layers:
            o, i = l.shape
            size = f"{o} x {i + (l.bias is not None)}"
            leaves = ", ".join(path_str(self.layout.paths[n]) for n in l.leaves)
            block = "kronecker" if l.kronecker else {"unused": "none"}.get(l.kind, l.kind)
            body.append([l.name, block, l.kind, size, str(len(l.uses)), leaves, l.note])
        widths = [max(len(row[c]) for row in [head, *body]) for c in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(w) if c == 4 else cell.ljust(w) for c, (cell, w) in enumerate(zip(row, widths))
            ).rstrip()
            for row in [head, *body]
        ]
        title = f"LayerCollection: {len(self.layout.shapes)} leaves, {self.numel():,} parameters, {len(self)} blocks"
        return "\n".join([title, *lines])


def _leaves_at(path: str | Path, layout: Layout) -> list[Path]:
    """The leaves at or under a path: `hidden` names hidden.weight and hidden.bias."""
    name = path_str(path)
    found = [p for p in layout.paths if path_str(p) == name or path_str(p).startswith(name + ".")]
    if not found:
        raise ValueError(f"{name}: no such leaf, expected one of {[path_str(p) for p in layout.paths]}")
    return found


def _resolve(tracer: Tracer) -> tuple[Use, ...]:
    """Join each bias to the layer whose output it is added to, where that output goes nowhere else."""
    raw = tracer.uses
    number: dict[int, int] = {}
    joined: dict[int, Path] = {}
    for k, u in enumerate(raw):
        j = u["joins"]
        free = j is not None and raw[j]["bias"] is None and raw[j]["weight"] is not None and j not in joined
        if u["kind"] == "bias" and free and (u["in_place"] or tracer.consumers.get(u["touched"]) == 1):
            joined[j] = u["bias"]
            number[k] = number[j]
        else:
            number[k] = len(set(number.values()))
    uses = []
    for k, u in enumerate(raw):
        if u["kind"] == "bias" and u["joins"] is not None and number[k] == number[u["joins"]]:
            continue
        source = None
        if u["source"] is not None and u["kind"] != "bias":
            start, steps, ids = u["source"]
            if all(tracer.consumers.get(i, 0) == 1 for i in {*ids, u["touched"]}):
                source = (number[start], Chain(steps))
        uses.append(
            Use(
                kind=u["kind"],
                weight=u["weight"],
                bias=joined.get(k, u["bias"]),
                transposed=u["transposed"],
                joined=k in joined,
                shape=u["shape"],
                batch=tracer.batch,
                axis=(*batch_axes(u["shape"], tracer.batch), 0)[0],
                mutated=u["mutated"],
                source=source,
            )
        )
    return tuple(uses)


def _layers(layout: Layout, uses: tuple[Use, ...], opaque: dict[Path, str]) -> tuple[Layer, ...]:
    """Group leaves into blocks: a weight takes its bias along when they are always met together."""
    number = {p: n for n, p in enumerate(layout.paths)}
    notes = dict(opaque)
    as_weight: dict[Path, list[int]] = {}
    as_bias: dict[Path, list[int]] = {}
    for k, u in enumerate(uses):
        if u.weight is not None:
            as_weight.setdefault(u.weight, []).append(k)
        if u.bias is not None:
            as_bias.setdefault(u.bias, []).append(k)
    for p, ks in as_weight.items():
        if len({uses[k].transposed for k in ks}) > 1:
            notes.setdefault(p, "used as W and as W': no common factors")
        if p in as_bias:
            notes.setdefault(p, "used as weight and as bias")
    layers: dict[int, Layer] = {}
    taken: set[Path] = set()
    for p, ks in as_weight.items():
        if p in notes:
            continue
        biases = {uses[k].bias for k in ks}
        (b,) = biases if len(biases) == 1 else (None,)
        together = b is not None and b not in notes and as_bias[b] == ks
        n, m = layout.shapes[number[p]]
        transposed = uses[ks[0]].transposed
        layers[number[p]] = Layer(
            name=_name(p, b if together else None),
            kind=uses[ks[0]].kind,
            weight=number[p],
            bias=number[b] if together and b is not None else None,
            transposed=transposed,
            shape=(m, n) if transposed else (n, m),
            uses=tuple(ks),
            note="",
        )
        taken |= {p, b} if together and b is not None else {p}
    for p, n in number.items():
        if p in taken:
            continue
        size = math.prod(layout.shapes[n])
        if p in as_bias and p not in notes:
            layers[n] = Layer(path_str(p), "bias", None, n, False, (size, 0), tuple(as_bias[p]), "")
        else:
            note = notes.get(p, NEVER_MET)
            layers[n] = Layer(path_str(p), "exact", n, None, False, (size, size), (), note)
    return tuple(layers[n] for n in sorted(layers))


def _name(weight: Path, bias: Path | None) -> str:
    """`hidden` for hidden.weight (and hidden.bias), the leaf's own path otherwise."""
    w, b = path_str(weight), path_str(bias) if bias is not None else None
    stem, _, last = w.rpartition(".")
    return stem if stem and last == "weight" and b in (None, f"{stem}.bias") else w
