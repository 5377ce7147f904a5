"""Where the old entries of leaves cut into parts are after a growth: heads are wider or more, the halves of a gated pair longer.

New units of a head come last in that head, new heads last among the heads of their role, new units of a half last in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from growth.reading.gated_pairs import Gated
from growth.reading.transformers.heads import HeadAxis, Heads, head_axes
from linmaps import trees
from linmaps.checks import values
from linmaps.trees import path_str
from linmaps.trees.keys import Path, names

Attention = Heads | Gated | Sequence[Heads | Gated] | None
EXACT = (torch.float32, torch.float64)
MORE, WIDER = "{} more heads", "{} more units in each head"
Places = dict[tuple[Path, int], tuple[int, ...]]  # by path and axis from the end: where each old entry goes


def listed(heads: Attention) -> list[Heads | Gated]:
    """The attention layers and packed gated pairs that are named; TypeError for anything else."""
    found = [] if heads is None else [heads] if isinstance(heads, (Heads, Gated)) else list(heads)
    for layer in found:
        if not isinstance(layer, (Heads, Gated)):
            raise TypeError(
                f"heads: got {type(layer).__name__}, expected a growth.Heads, a packed growth.Gated, or a list of them"
            )
    return found


def wider(axis: HeadAxis, k: int) -> tuple[int, ...]:
    """Where old entries go if each head gets k more.

    >>> from growth.reading.transformers.heads import Segment
    >>> wider(HeadAxis(("q",), 0, (Segment("q", 2, 3),)), 1)
    (0, 1, 2, 4, 5, 6)
    """
    total = [(h, s.width) for s in axis.segments for h in range(s.heads)]
    starts = [sum(w for _, w in total[:n]) + n * k for n in range(len(total))]
    return tuple(start + j for start, (_, w) in zip(starts, total) for j in range(w))


def longer(axis: HeadAxis, groups: int, n: int) -> tuple[int, ...]:
    """Where old entries go if there are n more heads in each role, of `groups` so far.

    >>> from growth.reading.transformers.heads import Segment
    >>> longer(HeadAxis(("qk",), 0, (Segment("q", 2, 1), Segment("k", 2, 1))), 2, 1)
    (0, 1, 3, 4)
    """
    found: list[int] = []
    start = 0
    for s in axis.segments:
        found += range(start, start + s.size)
        start += s.size // groups * (groups + n)
    return tuple(found)


def placed(params: Any, grown: Any, heads: Heads) -> Places:
    """Where old entries are in grown, by its sizes; where both ways have these, by the entries of k, v and their biases.

    Raises ValueError where neither has, and where old entries are not there bit by bit (those of q may be rescaled, those of
    out shared).
    """
    axes = head_axes(params, heads, stacked=True)
    sizes = [(a.size, trees.get(grown, a.path).shape[a.axis]) for a in axes]
    if all(old == new for old, new in sizes):
        return {}
    more = [new - old for old, new in sizes]
    k, n = more[-1] // heads.n_heads, more[-1] * heads.groups // axes[-1].size
    ways = {
        MORE.format(n): [longer(a, heads.groups, n) for a in axes],
        WIDER.format(k): [wider(a, k) for a in axes],
    }
    want = [[a.size * n // heads.groups for a in axes], [sum(s.heads for s in a.segments) * k for a in axes]]
    ways = {name: way for (name, way), grows in zip(ways.items(), want) if grows == more}
    if not ways:
        got = ", ".join(f"{path_str(a.path)} {old} -> {new}" for a, (old, new) in zip(axes, sizes))
        raise ValueError(
            f"{heads}: grown has {got}, expected one step of widen(params, heads, k) or add_heads(params, heads, n); carry the "
            "state after each of them"
        )
    seen = {name: _there(params, grown, axes, way, name == MORE.format(n)) for name, way in ways.items()}
    kept = {name: ways[name] for name, there in seen.items() if there is not False}
    if not kept:
        raise ValueError(
            f"{heads}: old entries of k and v are not where {' or '.join(ways)} put them, expected them bit by bit; carry the "
            "state right after widen(params, heads, k) or add_heads(params, heads, n), before other changes"
        )
    if len(set(map(tuple, kept.values()))) > 1 and None in seen.values():
        raise ValueError(
            f"{heads}: grown may have {' or '.join(kept)}, expected values that tell these apart; carry the state outside of "
            "traced functions"
        )
    way = next(iter(kept.values()))
    return {(a.path, a.axis): places for a, places in zip(axes, way) if places != tuple(range(len(places)))}


def halved(params: Any, grown: Any, pair: Gated) -> Places:
    """Where old entries of a packed gated pair are in grown, by its sizes; nowhere else than in front if it is not packed.

    Raises ValueError where the halves have not become longer by as much as the layer after has more inputs.

    >>> params, grown = {"w": torch.ones(4, 1), "v": torch.ones(1, 2)}, {"w": torch.ones(6, 1), "v": torch.ones(1, 3)}
    >>> halved(params, grown, Gated(None, None, "v", packed="w"))
    {(('w',), -2): (0, 1, 3, 4)}
    """
    if pair.packed is None:
        return {}
    at = dict(zip(names(trees.paths(params)), trees.paths(params)))
    weight, after = (_weight(at, stem) for stem in (pair.packed, pair.after))
    rows, columns = (-2 if layout == "out_in" else -1 for layout in pair.layouts)
    size = lambda tree, path, axis: trees.get(tree, path).shape[axis]
    (old, p), (new, q) = ((size(t, weight, rows), size(t, after, -3 - columns)) for t in (params, grown))
    if old != 2 * p or new != 2 * q:
        raise ValueError(
            f"{pair}: grown has {path_str(weight)} {old} -> {new} and {path_str(after)} {p} -> {q}, expected twice as many rows "
            "of the first as inputs of the second, before and after; give the pair that grew"
        )
    places = (*range(p), *range(q, q + p))
    bias = at.get(f"{path_str(pair.packed)}.bias")
    found = {(weight, rows): places} | ({} if bias is None else {(bias, -1): places})
    return found if p != q else {}


def _weight(at: dict[str, Path], stem: Any) -> Path:
    """The path of a layer's weight."""
    name = path_str(stem)
    found = at.get(f"{name}.weight", at.get(name))
    if found is None:
        raise ValueError(f"{name}: no such layer in params, expected a leaf {name}.weight; leaves: {sorted(at)[:12]}")
    return found


def _there(params: Any, grown: Any, axes: list[HeadAxis], way: list[tuple[int, ...]], q_too: bool) -> bool | None:
    """Whether the entries of k and v (q too, where it is not rescaled) are at their places; None: there are no values."""
    found: bool | None = True
    for a, places in zip(axes, way):
        old, new = (trees.get(t, a.path) for t in (params, grown))
        if _others(old, a.axis) != _others(new, a.axis):
            continue
        start = 0
        for s in a.segments:
            if s.role in ("k", "v") or (s.role == "q" and q_too):
                index = torch.tensor(places[start : start + s.size], device=new.device)
                same = values((old.narrow(a.axis, start, s.size) == new.index_select(a.axis, index)).all())
                if same is None:
                    found = None
                elif not bool(same.all()):
                    return False
            start += s.size
    return found


def _others(t: Tensor, axis: int) -> list[int]:
    return [n for a, n in enumerate(t.shape) if a != axis % t.ndim]


def check_first(old: Tensor, new: Tensor, path: Path) -> None:
    """Raise a ValueError if the last old entries of an enlarged axis are in new, up to factors, but elsewhere than they were.

    That is so where units were put into each head of an attention layer.  Two slices of each axis are looked at.

    >>> a = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> check_first(a, torch.stack([a[0] + 7, a[0], a[1]]), ("v",))
    Traceback (most recent call last):
    ValueError: v: old entry 1 of axis 0 is at 2 in grown, expected old entries first and new ones behind them; ...
    """
    if old.ndim < 2 or old.dtype not in EXACT or old.device != new.device:
        return
    for axis in range(old.ndim):
        n, more = old.shape[axis], new.shape[axis] - old.shape[axis]
        if not more or n < 2 or _others(old, axis) != _others(new, axis):
            continue
        last, there = old.narrow(axis, n - 2, 2), new.narrow(axis, n - 2, 2)
        if not _any(last != there):
            continue
        a, b = (t.movedim(axis, 0).flatten(1).double() for t in (last, new))
        along = (a @ b.mT) / (a.norm(dim=1)[:, None] * b.norm(dim=1))
        same = along > 1 - max(1e-12, 100 * torch.finfo(old.dtype).eps ** 2)  # of two slices that are multiples
        uneven = (a.amax(1) > a.amin(1)).all()
        moved = same[1] & ~same[1, n - 1] & same[0].any() & uneven
        if not _any(moved):
            continue
        at = int(values(moved).reshape(-1, n + more).any(0).long().argmax())  # type: ignore[union-attr]
        raise ValueError(
            f"{path_str(path)}: old entry {n - 1} of axis {axis} is at {at} in grown, expected old entries first and new ones "
            "behind them; of attention layers whose heads became wider or more give heads=growth.Heads(...), of a gated pair "
            "in one leaf heads=growth.Gated(..., packed=...), and heads=() if all new entries are last"
        )


def _any(where: Tensor) -> bool:
    found = values(where)
    return found is not None and bool(found.any())
