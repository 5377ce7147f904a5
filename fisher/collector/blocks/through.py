"""Leaves seen through the weights that f makes of them: which share a block, and the weights as layers of their own.

W = phi(leaves) is met in products z = W a + b.  Leaves that make one weight share a block, and so do weights of one leaf.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from fisher.collector.blocks.uses import ELEMENTWISE, PRODUCT, THROUGH, Layer, Use
from fisher.collector.rules.forms import Elementwise, Form, Lookup
from fisher.collector.rules.match import Derived, leaves_of, spoken
from linmaps.trees import Layout, path_str
from linmaps.trees.keys import Path

How = tuple[object, bool]  # how a weight is laid out in a call
Weights = dict[tuple[Derived | None, Path | Derived | None, How], list[int]]  # (weight, its bias, how): numbers of uses


def seen_through(layout: Layout, uses: tuple[Use, ...], notes: dict[Path, str]) -> list[Layer]:
    """The layers of leaves that are met in derived weights alone; notes: leaves that have an exact block for another reason.

    A leaf that is also used as it is gets a note.
    """
    direct = {p for u in uses for p in (u.weight, u.bias) if p is not None and not isinstance(p, Derived)}
    made = [p for u in uses for p in (u.weight, u.bias) if isinstance(p, Derived)]
    along = _biases(uses, notes)
    for weight in made:
        for leaf in weight.leaves:
            if leaf in direct:
                notes.setdefault(leaf, f"used as it is and through {weight.name}: no rule")
    groups = _joined(
        [
            {p for p in (*leaves_of(u.weight), *_own(u.bias, along)) if p not in notes}
            for u in uses
            if isinstance(u.weight, Derived)
        ]
        + [{p for p in u.bias.leaves if p not in notes} for u in uses if isinstance(u.bias, Derived)]
    )
    return [_layer(layout, uses, group, along) for group in groups]


def _own(bias: Path | Derived | None, along: set[Path]) -> tuple[Path, ...]:
    """The leaves of a bias that share the block of its weight."""
    return leaves_of(bias) if isinstance(bias, Derived) or bias in along else ()


def _biases(uses: tuple[Use, ...], notes: dict[Path, str]) -> set[Path]:
    """Leaves that are biases of derived weights and nothing else."""
    met: dict[Path, set[bool]] = {}
    for u in uses:
        if u.bias is not None and not isinstance(u.bias, Derived):
            met.setdefault(u.bias, set()).add(isinstance(u.weight, Derived) and u.bias_part is None)
        if u.weight is not None and not isinstance(u.weight, Derived):
            met.setdefault(u.weight, set()).add(False)
        for p in (u.weight, u.bias):
            if isinstance(p, Derived):
                for leaf in p.leaves:
                    met.setdefault(leaf, set()).add(False)
    return {path for path, alone in met.items() if alone == {True} and path not in notes}


def _joined(sets: Iterable[set[Path]]) -> list[set[Path]]:
    """Sets with the members of all that they share a member with."""
    groups: list[set[Path]] = []
    for s in sets:
        if not s:
            continue
        apart = [g for g in groups if not g & s]
        groups = [*apart, s.union(*(g for g in groups if g & s))]
    return groups


def _layer(layout: Layout, uses: tuple[Use, ...], group: set[Path], along: set[Path]) -> Layer:
    weights: Weights = {}
    for k, u in enumerate(uses):
        weight = u.weight if isinstance(u.weight, Derived) and group & set(u.weight.leaves) else None
        bias = (
            u.bias if u.bias in along & group or (isinstance(u.bias, Derived) and group & set(u.bias.leaves)) else None
        )
        if weight is not None or bias is not None:
            weights.setdefault((weight, bias, how(u.form)), []).append(k)
    found = _once(weights)
    numbers = sorted(layout.paths.index(p) for p in group)
    shapes = tuple(layout.shapes[n] for n in numbers)
    size = sum(map(math.prod, shapes))
    inner = tuple(weight_layer(layout, uses, w, b, ks) for (w, b, _), ks in found.items())
    kinds = dict.fromkeys(p.name for w, b, _ in found if isinstance(p := w or b, Derived))
    first, *others = numbers
    return Layer(
        name=_name(layout, numbers),
        kind=" + ".join(kinds),
        family=THROUGH,
        weight=first,
        bias=None,
        form=Form(),
        part=None,
        shape=(size, size),
        uses=tuple(sorted(k for ks in found.values() for k in ks)),
        biased=(),
        cuts=(),
        shapes=shapes,
        note="",
        others=tuple(others),
        inner=inner,
    )


def _once(weights: Weights) -> Weights:
    """A weight that is met with its bias and without it is one weight, whose bias some uses leave out."""
    biases: dict[tuple[Derived, How], set[Path | Derived]] = {}
    for w, b, as_ in weights:
        if w is not None and b is not None:
            biases.setdefault((w, as_), set()).add(b)
    found: Weights = {}
    for (w, b, as_), ks in weights.items():
        own = biases.get((w, as_), set()) if w is not None else set()
        found.setdefault((w, next(iter(own)) if b is None and len(own) == 1 else b, as_), []).extend(ks)
    return {key: sorted(ks) for key, ks in found.items()}


def how(form: Form) -> How:
    """What two uses of one weight must agree in to have factors in common."""
    return ("elementwise", False) if isinstance(form, Elementwise) else (form.arrangement, isinstance(form, Lookup))


def weight_layer(
    layout: Layout, uses: tuple[Use, ...], weight: Path | Derived | None, bias: Path | Derived | None, ks: list[int]
) -> Layer:
    """A weight, with its bias, or a bias, as a layer: leaves number 0 and 1."""
    form = uses[ks[0]].form
    shape_of = lambda p: p.shape if isinstance(p, Derived) else layout.shapes[layout.paths.index(p)]
    shapes = tuple(shape_of(p) for p in (weight, bias) if p is not None)
    elementwise = isinstance(form, Elementwise)
    if elementwise:
        shape = (math.prod(shapes[0]),) * 2
    elif weight is not None:
        split = form.arrangement.split(shapes[0])
        shape = (math.prod(split[k] for k in form.arrangement.out), math.prod(split[k] for k in form.arrangement.into))
    else:
        shape = (math.prod(shapes[0]) // form.groups, 0)
    return Layer(
        name=spoken(weight if weight is not None else bias),
        kind=uses[ks[0]].kind,
        family=ELEMENTWISE if elementwise else PRODUCT,
        weight=0 if weight is not None else None,
        bias=None if bias is None else int(weight is not None),
        form=form,
        part=None,
        shape=shape,
        uses=tuple(ks),
        biased=tuple(uses[k].bias == bias and bias is not None for k in ks),
        cuts=(None,) * len(ks),
        shapes=shapes,
        note="",
    )


def _name(layout: Layout, numbers: list[int]) -> str:
    """The place that holds these leaves and no others, else their paths."""
    own = [layout.paths[n] for n in numbers]
    for size in range(min(map(len, own)) - (len(own) == 1), 0, -1):
        head = own[0][:size]
        if sum(p[:size] == head for p in layout.paths) == len(own) == sum(p[:size] == head for p in own):
            return path_str(head)
    return "+".join(map(path_str, own))
