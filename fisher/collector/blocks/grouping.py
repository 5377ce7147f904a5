"""From uses to layers: which leaves, or parts of leaves, share one block."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from fisher.collector.blocks.through import how, seen_through
from fisher.collector.blocks.tied import tied_layers
from fisher.collector.blocks.uses import ELEMENTWISE, EXACT, NEVER_MET, PRODUCT, Layer, Rows, Use, layer_name
from fisher.collector.rules.forms import Elementwise, Form
from fisher.collector.rules.match import Derived
from linmaps.trees import Layout, path_str
from linmaps.trees.keys import Path

Unit = tuple[Path, Rows | None]  # a leaf, or some rows of one


def leaves_to_layers(
    layout: Layout,
    uses: tuple[Use, ...],
    opaque: dict[Path, str],
    packed: dict[Path, int],
    together: Sequence[Sequence[Path]] = (),
    alone: frozenset[Path] = frozenset(),
) -> tuple[Layer, ...]:
    """Group leaves into blocks: a weight takes along the bias that is met with it and nowhere else.

    opaque: notes on leaves that get an exact block; together: those of them that share one; packed: leaves with several
    weights in them, one below the other; alone: leaves of layers that no data enter, which make weights in no other way.
    """
    uses = tuple(_grouped(u, alone) for u in uses)
    number = {p: n for n, p in enumerate(layout.paths)}
    shared = tied_layers(layout, uses, opaque)
    tied = {layout.paths[layer.leaves[0]] for layer in shared}
    notes = dict(opaque) | _conflicts(layout, uses, opaque, tied)
    through = seen_through(layout, uses, notes)
    parts = _parts(layout, uses, packed, notes)
    as_weight: dict[Unit, list[int]] = {}
    as_bias: dict[Unit, list[int]] = {}
    for k, u in enumerate(uses):
        for path, part, role in ((u.weight, u.part, as_weight), (u.bias, u.bias_part, as_bias)):
            if path is None or isinstance(path, Derived):
                continue
            for rows in parts.get(path, [None]):
                if rows is None or part is None or (part[0] <= rows[0] and rows[1] <= part[1]):
                    role.setdefault((path, rows), []).append(k)
    layers: dict[tuple[int, int], Layer] = {}
    taken: set[Unit] = set()
    for layer in (*through, *(l for l in shared if layout.paths[l.leaves[0]] not in notes)):
        layers[layer.leaves[0], 0] = layer
        taken |= {(layout.paths[n], None) for n in layer.leaves}
    for unit, ks in as_weight.items():
        path, rows = unit
        if path in notes or unit in taken:
            continue
        biases = {uses[k].bias for k in ks} - {None}
        (b,) = biases if len(biases) == 1 else (None,)
        b = None if isinstance(b, Derived) else b
        with_bias = b is not None and b not in notes and set(as_bias.get((b, rows), [-1])) <= set(ks)
        members = [path, b] if with_bias and b is not None else [path]
        layers[number[path], rows[0] if rows else 0] = _layer(layout, number, uses, members, rows, ks, weighted=True)
        taken |= {(p, rows) for p in members}
    for group in together:
        layers[min(number[p] for p in group), 0] = _exact(layout, sorted(number[p] for p in group), notes[group[0]])
        taken |= {(p, None) for p in group}
    for path, n in number.items():
        for rows in parts.get(path, [None]):
            if (path, rows) in taken:
                continue
            if (path, rows) in as_bias and path not in notes:
                made = _layer(layout, number, uses, [path], rows, as_bias[path, rows], weighted=False)
            else:
                made = _exact(layout, [n], notes.get(path, NEVER_MET))
            layers[n, rows[0] if rows else 0] = made
    found = [layers[key] for key in sorted(layers)]
    if sum(layer.numel for layer in found) != layout.numel:
        raise ValueError(
            f"layers: hold {sum(layer.numel for layer in found)} parameters, expected {layout.numel}: some leaf is in two blocks "
            "or in none; give the leaves that are cut into parts exact blocks, exact=(path, ...)"
        )
    return _told_apart(found, layout)


def _grouped(use: Use, alone: frozenset[Path]) -> Use:
    """A use without the leaves that it gives no factors: of a free layer those that make weights in other ways too, of derived
    weights those of free layers."""
    one = lambda p: dataclasses.replace(p, leaves=tuple(q for q in p.leaves if q not in alone))
    of = lambda p: (one(p) if isinstance(p, Derived) else p if not use.free or p in alone else None) if p else p
    weight, bias = of(use.weight), of(use.bias)
    weight, bias = (None if isinstance(p, Derived) and not p.leaves else p for p in (weight, bias))
    return use if (weight, bias) == (use.weight, use.bias) else dataclasses.replace(use, weight=weight, bias=bias)


def _told_apart(layers: list[Layer], layout: Layout) -> tuple[Layer, ...]:
    """The layers, whose names are keys: where those of two are equal, each is that of its first leaf as a tuple of keys."""
    count = Counter(layer.name for layer in layers)

    def named(layer: Layer) -> Layer:
        rows = layer.name[layer.name.rindex("[") :] if layer.name.endswith("]") else ""
        return dataclasses.replace(layer, name=f"{layout.paths[layer.leaves[0]]!r}{rows}")

    return tuple(layer if count[layer.name] == 1 else named(layer) for layer in layers)


def _exact(layout: Layout, leaves: list[int], note: str) -> Layer:
    """The layer of leaves without a rule, in one block."""
    name = "+".join(path_str(layout.paths[n]) for n in leaves)
    shapes = tuple(layout.shapes[n] for n in leaves)
    size = sum(map(math.prod, shapes))
    first, *others = leaves
    return Layer(
        name, EXACT, EXACT, first, None, Form(), None, (size, size), (), (), (), shapes, note, others=tuple(others)
    )


def _conflicts(layout: Layout, uses: tuple[Use, ...], opaque: dict[Path, str], tied: set[Path]) -> dict[Path, str]:
    """Leaves some of whose rows have no common view in all their uses; tied: those that are layers all the same."""
    notes: dict[Path, str] = {}
    whole = {p: (0, s[0]) if s else (0, 1) for p, s in zip(layout.paths, layout.shapes)}
    deep = {p for p, s in zip(layout.paths, layout.shapes) if len(s) > 1}  # their rows are several numbers
    met: dict[Path, list[tuple[Rows, tuple[str, object], bool]]] = {}  # rows, role, whether they may be cut
    for u in uses:
        elementwise = isinstance(u.form, Elementwise)
        if u.weight is not None and not isinstance(u.weight, Derived):
            view = "elementwise" if elementwise else how(u.form)
            met.setdefault(u.weight, []).append((u.part or whole[u.weight], ("w", view), u.form.sliceable))
        if u.bias is not None and not isinstance(u.bias, Derived):
            met.setdefault(u.bias, []).append((u.bias_part or whole[u.bias], ("b", elementwise), u.bias not in deep))
    for path, found in met.items():
        if path in opaque or path in tied:
            continue
        marks = sorted({m for part, _, _ in found for m in part})
        for rows in zip(marks, marks[1:]):
            roles = {role for part, role, _ in found if part[0] <= rows[0] and rows[1] <= part[1]}
            if len(roles) > 1:
                both = len({role for role, _ in roles}) > 1
                notes[path] = "used as weight and as bias" if both else "used as W and as W': no common factors"
        if any(not cuttable and part[0] < m < part[1] for part, _, cuttable in found for m in marks):
            notes.setdefault(path, "its rows are used alone and inside a weight of another shape")
    return notes


def _parts(
    layout: Layout, uses: tuple[Use, ...], packed: dict[Path, int], notes: dict[Path, str]
) -> dict[Path, list[Rows | None]]:
    """The rows of each leaf that make a layer of their own: between all ends of the rows that its uses take."""
    ends: dict[Path, set[int]] = {}
    first = {p: s[0] for p, s in zip(layout.paths, layout.shapes) if s}
    for u in uses:
        for path, part in ((u.weight, u.part), (u.bias, u.bias_part)):
            if path is not None and part is not None and not isinstance(path, Derived):
                ends.setdefault(path, {0, first[path]}).update(part)
    for path, n in packed.items():
        if any(path in (u.weight, u.bias) and (not u.form.sliceable or isinstance(u.form, Elementwise)) for u in uses):
            continue
        ends.setdefault(path, {0, first[path]}).update(range(0, first[path], first[path] // n))
    parts: dict[Path, list[Rows | None]] = {}
    for path, marks in ends.items():
        if path in notes:
            continue
        order = sorted(marks)
        found = list(zip(order, order[1:]))
        taken = [
            p or (0, first[path]) for u in uses for q, p in ((u.weight, u.part), (u.bias, u.bias_part)) if q == path
        ]
        met = [any(start <= a and b <= stop for start, stop in taken) for a, b in found]
        if not all(met):
            notes[path] = "some of its rows are never met in a torch call"
        elif len(found) > 1:
            parts[path] = [*found]
    return parts


def _layer(
    layout: Layout,
    number: dict[Path, int],
    uses: tuple[Use, ...],
    members: list[Path],
    rows: Rows | None,
    ks: list[int],
    *,
    weighted: bool,
) -> Layer:
    first = uses[ks[0]]
    numbers = [number[p] for p in members]
    own = lambda shape: shape if rows is None else (rows[1] - rows[0], *shape[1:])
    shapes = tuple(own(layout.shapes[n]) for n in numbers)
    elementwise = isinstance(first.form, Elementwise)
    if elementwise:
        size = sum(map(math.prod, shapes))
        shape = (size, size)
    elif weighted:
        arrangement = first.form.arrangement
        split = arrangement.split(shapes[0])
        shape = (math.prod(split[k] for k in arrangement.out), math.prod(split[k] for k in arrangement.into))
    else:
        shape = (math.prod(shapes[0]) // first.form.groups, 0)
    cuttable = first.form.sliceable if weighted else len(layout.shapes[numbers[0]]) == 1
    starts = [((uses[k].part if weighted else uses[k].bias_part) or (0, 0))[0] for k in ks]
    return Layer(
        name=layer_name(members[0], members[1] if len(members) > 1 else None)
        + (f"[{rows[0]}:{rows[1]}]" if rows else ""),
        kind=first.kind if weighted or elementwise else "bias",
        family=ELEMENTWISE if elementwise else PRODUCT,
        weight=numbers[0] if weighted else None,
        bias=numbers[-1] if not weighted or len(members) > 1 else None,
        form=first.form,
        part=rows,
        shape=shape,
        uses=tuple(ks),
        biased=tuple(isinstance(b := uses[k].bias, tuple) and number[b] == numbers[-1] for k in ks),
        cuts=tuple(None if rows is None or not cuttable else (rows[0] - s, rows[1] - s) for s in starts),
        shapes=shapes,
        note="",
    )
