"""Attention layers with wider heads, or more of them, computing the same function.

H heads of queries, G of keys and values, m = H / G; d their width, k new units in each or n new heads of each kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from growth.checks.doors import count, door
from growth.closed_form.draws import in_rows
from growth.reading.transformers.heads import HeadAxis, Heads, Segment, head_axes
from growth.surgery.resize import indices, magnitude
from growth.surgery.same import Check, Function, asked, same_function
from linmaps import trees
from linmaps.checks import number
from linmaps.numerics.numeric import positive_root
from linmaps.trees.tree import Tree

HeadMethod = Literal["split", "zero_out"]
HEAD_METHODS = get_args(HeadMethod)
Units = Sequence[int] | Tensor
INTO = ("k", "v")  # the sides whose rows are new units; q and out lead on from them


def wider_heads(
    params: Any,
    heads: Heads,
    k: int,
    method: str,
    generator: torch.Generator | None,
    units: Units | None,
    noise: float,
    draws: Tensor | None,
    rescale: bool,
) -> Any:
    """`widen(params, heads, k)`: (k, q) and (v, out) are widened as the two sides of a pair, in each head.

    >>> import torch
    >>> params = {"qkv": torch.ones(6, 1), "out": torch.ones(1, 2)}
    >>> wider_heads(params, Heads(None, None, None, "out", 2, packed="qkv"), 1, "split", None, None, 0.0, None, False)[
    ...     "out"
    ... ]
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    axes = head_axes(params, heads)
    width = {s.role: s.width for a in axes for s in a.segments}
    most = min(width.values())
    at = None
    if method == "split":
        device = trees.get(params, axes[0].path).device
        at = {
            n: indices(units, most, "units", device) if units is not None
            else torch.arange(k, device=device) % n if generator is None
            else torch.randint(n, (k,), generator=generator, device=generator.device).to(device)
            for n in dict.fromkeys(width.values())
        }  # fmt: skip
    random = (method != "split" or noise != 0) and k > 0
    drawn = _drawn(params, heads, axes, k, generator, draws, within=True) if random else {}
    factor = math.sqrt((width["q"] + k) / width["q"]) if rescale else 1.0
    for a in axes:
        leaf = trees.get(params, a.path)
        parts = []
        for s, old in zip(a.segments, a.split(leaf)):
            if at is not None:
                every = torch.cat([torch.arange(s.width, device=leaf.device), at[s.width].to(leaf.device)])
                new = old.index_select(1, every)
                new = new if s.role in INTO else new / _times(every, s.width).to(leaf)[:, None]
                if random and not a.bias:
                    kept, copies = new.split([s.width, k], 1)
                    new = torch.cat([kept, copies + noise * _size(leaf, s, old) * drawn[s.role].to(leaf)], 1)
            else:
                numbers = _size(leaf, s, old) * drawn[s.role].to(leaf) if random and not a.bias else None
                new = torch.cat([old, _fresh(old, k, s.role, method, noise, numbers)], 1)
            parts.append(new * factor if s.role == "q" and factor != 1.0 else new)
        params = trees.replace(params, a.path, a.joined(parts))
    return params


def _fresh(old: Tensor, k: int, role: str, method: str, noise: float, numbers: Tensor | None) -> Tensor:
    """Random units of each head, and on the other side zeros, or twins of opposite sign."""
    if numbers is None or (method == "zero_out" and role not in INTO):
        return old.new_zeros(old.shape[0], k, *old.shape[2:])
    if method == "zero_out":
        return numbers
    half, other = numbers.split(k // 2, 1)
    return torch.cat([half, half if role in INTO else noise * other - half], 1)


def _times(every: Tensor, width: int) -> Tensor:
    """How often the unit of each entry is there."""
    times = torch.zeros(width, dtype=torch.int64, device=every.device).index_add(0, every, torch.ones_like(every))
    return times.index_select(0, every)


def _size(leaf: Tensor, segment: Segment, old: Tensor) -> Tensor:
    """The size of random entries of a segment."""
    return magnitude(leaf if segment.role == "out" else old.flatten(0, 1))


@door("f")
def add_heads(
    params: Tree,
    heads: Heads,
    n: int,
    method: HeadMethod = "split",
    generator: torch.Generator | None = None,
    *,
    units: Units | None = None,
    noise: float = 0.0,
    draws: Tensor | None = None,
    f: Function = None,
    x: Any = None,
    check: Check | None = None,
) -> Tree:
    """`params` with n more heads in an attention layer, computing the same function if f reads their number from params.

        split:     q, k, v of head i -> twice,   out_i -> [out_i / m_i, out_i / m_i]     m_i = 1 + how often i is split
        zero_out:  q, k, v -> [q; Q], ...,       out -> [out, 0]                          Q, ... random

    New heads come last (of a packed layer last in each of its three parts), of the width of the others, with the biases of
    their head for split, and 0 else; the bias of out stays.  With grouped queries n counts heads of keys and values, each of
    which comes with its H/G heads of queries.  The new layer is `heads.plus(n)`, and `prune(params, heads.plus(n), [G, ...])`
    undoes zero_out.  f must keep the width of the heads, not their number: `unflatten(-1, (-1, d))`.  torch's
    MultiheadAttention keeps both its number and its embed_dim = H d, so it can have no more heads: write the layer out.

    units: which heads are split, n indices; None: 0, 1, 2, ... in turn, or with a generator n random ones.  noise: relative
    size of normal noise on copies, without which they have the same gradients for ever (split).  draws `[n, N]`: standard
    normal numbers in place of a generator, N = the entries of q, k, v, out of one head (all in its group).  Random entries have
    the root mean square of the leaf.  f, x (or check=(f, x)): held against each other before any noise as in `widen`.
    State goes along by `grow_like(state, params, grown, heads=heads)`.

    Raises ValueError (path, got, expected) for layers that do not match, an unknown method, missing randomness, draws of
    another shape, units or noise without meaning, and where f is another function.

    >>> import torch
    >>> p = {"q": torch.ones(2, 3), "k": torch.ones(2, 3), "v": torch.ones(2, 3), "o": torch.ones(1, 2)}
    >>> add_heads(p, Heads("q", "k", "v", "o", 2), 1)["o"]
    tensor([[0.5000, 1.0000, 0.5000]])
    """
    held = asked(f, x, check)
    if held is not None:
        again = None if generator is None else generator.clone_state()
        same_function(held, params, add_heads(params, heads, n, method, again, units=units, draws=draws), heads)
    count(n, "n", cure="to remove heads use prune")
    if method not in HEAD_METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {list(HEAD_METHODS)}")
    number(noise, "noise", low=0, tensor=False, cure="it is relative to the size of the weights")
    if method == "zero_out" and noise:
        raise ValueError(f"noise: got {noise}, expected 0 for method='zero_out', whose heads are random already")
    if units is not None and (method != "split" or len(units) != n):
        raise ValueError(f"units: got {len(units)} for n={n}, method={method!r}, expected n indices of heads, or None")
    axes, G = head_axes(params, heads), heads.groups
    device = trees.get(params, axes[0].path).device
    at = torch.arange(n, device=device) % G
    if units is not None:
        at = indices(units, G, "units", device)
    elif method == "split" and generator is not None:
        at = torch.randint(G, (n,), generator=generator, device=generator.device).to(device)
    random = (method == "zero_out" or noise != 0) and n > 0
    drawn = _drawn(params, heads, axes, n, generator, draws, within=False) if random else {}
    for a in axes:
        leaf = trees.get(params, a.path)
        parts = []
        for s, old in zip(a.segments, a.split(leaf)):
            groups = old.unflatten(0, (G, s.heads // G))
            numbers = _size(leaf, s, old) * drawn[s.role].to(leaf) if random and not a.bias else None
            if method == "split":
                every = torch.cat([torch.arange(G, device=leaf.device), at.to(leaf.device)])
                new = groups.index_select(0, every)
                new = new / _times(every, G).to(leaf)[:, None, None, None] if s.role == "out" else new
                if numbers is not None:
                    new = torch.cat([new[:G], new[G:] + noise * numbers])
            elif numbers is None or s.role == "out":
                new = torch.cat([groups, groups.new_zeros(n, *groups.shape[1:])])
            else:
                new = torch.cat([groups, numbers])
            parts.append(new.flatten(0, 1))
        params = trees.replace(params, a.path, a.joined(parts))
    return params


def _drawn(
    params: Any,
    heads: Heads,
    axes: list[HeadAxis],
    k: int,
    generator: torch.Generator | None,
    draws: Tensor | None,
    *,
    within: bool,
) -> dict[str, Tensor]:
    """Standard normal numbers by role: of k units within each head `[heads, k, rest]`, of k heads `[k, m, width, rest]`."""
    shapes = {}
    for a in axes:
        if not a.bias:
            rest = trees.get(params, a.path).shape[1 + a.axis]
            for s in a.segments:
                shapes[s.role] = (s.heads, rest) if within else (s.heads // heads.groups, s.width, rest)
    sizes = [math.prod(shape) for shape in shapes.values()]
    like = trees.get(params, axes[0].path)
    each = ", ".join(f"{n} of {role}" for role, n in zip(shapes, sizes))
    draws = in_rows(k, sum(sizes), like, generator, draws, heads, f"for each new unit (head) {each}")
    parts = draws.to(like).split(sizes, 1)
    found = {role: t.reshape(k, *shape) for (role, shape), t in zip(shapes.items(), parts)}
    return {role: t.movedim(0, 1) if within else t for role, t in found.items()}


@door()
def head_scores(params: Any, heads: Heads) -> Tensor:
    """How much each head of an attention layer can write, from the weights alone, `[G]`.

        |out_h [v_h, c_h]|_F = (tr out_h' out_h [v_h, c_h] [v_h, c_h]')^1/2         c the bias of v, if any

    the size of the linear map from the inputs to what head h adds to the output where all its attention is on one position;
    with grouped queries the root of the sum of squares over the group.  What q and k select is not in it.
    `prune(params, heads, weakest_units(head_scores(params, heads), keep=...))` drops the weakest.

    Raises ValueError for layers that do not match.

    >>> import torch
    >>> p = {
    ...     "q": torch.ones(2, 2),
    ...     "k": torch.ones(2, 2),
    ...     "v": torch.tensor([[3.0, 4.0], [0.0, 1.0]]),
    ...     "o": torch.eye(2),
    ... }
    >>> head_scores(p, Heads("q", "k", "v", "o", 2))
    tensor([5., 1.])
    """
    found = {}
    for a in head_axes(params, heads):
        for s, t in zip(a.segments, a.split(trees.get(params, a.path))):
            found[s.role, a.bias] = t
    v, out, G = found["v", False], found["out", False], heads.groups
    v = torch.cat([v, found["v", True]], 2) if ("v", True) in found else v
    out = out.unflatten(0, (G, -1)).transpose(1, 2).flatten(2)  # [G, d, m E]
    return positive_root(((v @ v.mT) * (out @ out.mT)).sum((1, 2)))
