"""State that is not of its parameter's shape: means over an axis (Adafactor), matrices of an axis (Shampoo, SOAP), scalars.

A parameter `[..., m, n]` becomes `[..., m', n']`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from growth.surgery.moves import Move, Shape
from linmaps.checks import values

FACTORED = (("row_var", "col_var"), ("exp_avg_sq_row", "exp_avg_sq_col"))  # of torch, of transformers
BASIS = 1e-2  # how far from orthonormal a basis may have drifted


def belongs(shapes: set[Shape], old: Shape) -> bool:
    """Whether these are the shapes of tensors of one parameter's state: its own, its factors, numbers.

    >>> belongs({(4, 3), (1,)}, (4, 3)), belongs({(4, 1), (1, 3)}, (4, 3)), belongs({(4,)}, (4, 3))
    (True, True, False)
    """
    if not shapes - {()} or shapes - {()} == {old}:
        return True
    squares = {(d, d) for d in old}
    rest = {s for s in shapes if s != old and math.prod(s) != 1 and s not in squares}
    if rest:
        return len(old) > 1 and rest in [{s for s in pair if math.prod(s) != 1} for pair in _means(old)]
    return old in shapes or (bool(shapes & squares) and squares <= shapes)


def factored(entry: dict[Any, Any], move: Move, fill: str) -> dict[Any, Tensor]:
    """The pairs of means r `[..., m, 1]`, c `[..., 1, n]` over the last two axes, whose estimate is r c / mean(r), moved.

    The estimate of old entries is what it was.  fill="zero": new entries as if their gradients had been zero so far, so means
    over more entries are smaller, r' = r n / n', c' = c m / m'; of pruned entries the mean loses what they had in the estimate.
    fill="mean": new rows and columns are the means of the old ones, which stay.

    >>> entry = {"row_var": torch.tensor([[1.0], [3.0]]), "col_var": torch.tensor([[2.0]])}
    >>> {k: t.flatten() for k, t in factored(entry, Move((2, 1), (2, 2)), "zero").items()}
    {'row_var': tensor([0.5000, 1.5000]), 'col_var': tensor([2., 0.])}
    """
    found: dict[Any, Tensor] = {}
    for row, column in FACTORED:
        r, c = entry.get(row), entry.get(column)
        if not isinstance(r, Tensor) or not isinstance(c, Tensor) or len(move.old) < 2:
            continue
        if {tuple(r.shape), tuple(c.shape)} not in _means(move.old):
            continue
        kept = r.ndim == len(move.old)
        r, c = (r, c) if kept else (r[..., None], c[..., None, :])
        rows, columns = _without(move, -1), _without(move, -2)
        if not move.numel:  # means over nothing
            new = r.new_zeros(rows.new), c.new_zeros(columns.new)
        elif fill == "mean":
            new = rows.filled(r), columns.filled(c)
        else:
            both = _without(_without(move, -1), -2)
            share = columns(c).mean(-1, keepdim=True), both(c.mean(-1, keepdim=True))
            other = rows(r).mean(-2, keepdim=True), both(r.mean(-2, keepdim=True))
            new = rows(r) * _quotient(*share), columns(c) * _quotient(*other)
        found |= {row: new[0] if kept else new[0][..., 0], column: new[1] if kept else new[1][..., 0, :]}
    return found


def squared(t: Tensor, move: Move, axis: int | None, what: str) -> Tensor | None:
    """A matrix `[d, d]` of an axis: the block of old entries, and on the diagonal of new ones the mean of the old diagonal.

    So the roots and inverses of a positive matrix stay those of the block; in an orthonormal basis new axes are new vectors.
    None if it is no such matrix; ValueError where sizes leave open of which axis, and for a part of a basis.

    >>> squared(torch.tensor([[3.0]]), Move((1, 2), (2, 2)), None, "state")
    tensor([[3., 0.],
            [0., 3.]])
    """
    fitting = [a for a, d in enumerate(move.old) if tuple(t.shape) == (d, d)]
    if not fitting:
        return None
    fitting = [axis] if axis in fitting else fitting
    ways = [move.of(slice(a, a + 1)) for a in fitting]
    if any(not w.same(ways[0]) for w in ways):
        raise ValueError(
            f"{what}: shape {tuple(t.shape)} fits several axes of a parameter {move.old} that becomes {move.new}, expected one; "
            "number such matrices by their axis (a list, or names that end in it), or start this state anew"
        )
    one, d = ways[0], t.shape[0]
    if one.still or not d:
        return t.clone() if one.still else t.new_zeros(one.new[0], one.new[0])
    eye = torch.eye(d, dtype=t.dtype, device=t.device)
    basis = (t @ t.mT - eye).abs().amax() < BASIS
    seen, known = values(basis), values((t - eye).abs().amax() < BASIS)
    if one.take and seen is not None and known is not None and bool((seen & ~known).any()):
        raise ValueError(
            f"{what}: is an orthonormal basis, of which a part is none, expected statistics; start this state anew"
        )
    take, put = ({axis: of for of in by.values() for axis in (0, 1)} for by in (one.take, one.put))
    both = Move((d, d), (*one.new, *one.new), take, put)  # type: ignore[arg-type]
    new = 1 - one(torch.ones_like(t[0]))
    return both(t) + torch.diag_embed(new * torch.where(basis, 1.0, t.diagonal().mean()).to(t.dtype))


def reduced(shape: Shape, old: Shape) -> bool:
    """Whether a shape is that of a parameter without an axis, or with 1 in its place.

    >>> reduced((4,), (4, 3)), reduced((1, 3), (4, 3)), reduced((5,), (4, 3))
    (True, True, False)
    """
    ways = [(old[:a], old[a + 1 :]) for a in range(len(old))]
    return any(shape in ((*left, *right), (*left, 1, *right)) for left, right in ways)


def _means(old: Shape) -> list[set[Shape]]:
    head, m, n = old[:-2], old[-2], old[-1]
    return [{(*head, m, 1), (*head, 1, n)}, {(*head, m), (*head, n)}]


def _without(move: Move, axis: int) -> Move:
    """The move of a mean over an axis, which stays with size 1."""
    at = axis % len(move.old)
    one = lambda shape: (*shape[:at], 1, *shape[at + 1 :])
    rest = lambda by: {a: v for a, v in by.items() if a != at}
    return Move(one(move.old), one(move.new), rest(move.take), rest(move.put))


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 1.0, a / torch.where(b == 0, 1.0, b))
