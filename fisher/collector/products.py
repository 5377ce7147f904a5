"""What follows from a layer's inputs a and output-gradients g, in the layer's view.

B batch, S shared (positions, repeated uses), I inputs, O outputs, C columns, V vocabulary of a lookup; view: `[O, I]` (the
bias a last column), `[groups, O, I]`, of an elementwise layer `[n]` or `[n, 2]`.  The gradient of one column at one example is
sum over s of g a'.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

from fisher.collector.blocks.tied import pieces_of, turned
from fisher.collector.blocks.uses import Layer
from linmaps.numerics.numeric import total

Pieces = list[Tensor]  # one for each use of the layer
FEW = 4  # columns
WIDE = 64  # outputs of which the gradients are a fast product for each column alone
AT_ONCE = 2**24  # numbers of per-example gradients held at a time where only their squares are wanted


def joined(layer: Layer, a: Pieces, g: Pieces) -> tuple[Tensor, Tensor]:
    """The uses side by side along S: a `[B, S, I]` with a column of ones for a bias, g `[C, B, S, O]` of this layer's outputs."""
    a = [with_ones(layer, t, one) for t, one in zip(a, layer.biased)]
    return side_by_side(a, [cut(t, rows) for t, rows in zip(g, layer.cuts)])


def side_by_side(a: Pieces, g: Pieces) -> tuple[Tensor, Tensor]:
    """All uses along S."""
    return (torch.cat(a, 1), torch.cat(g, 2)) if len(a) > 1 else (a[0], g[0])


def with_ones(layer: Layer, a: Tensor, one: bool = True) -> Tensor:
    """a with the bias's column of ones, or of zeros where a use leaves it out; ones alone for a layer that is a bias."""
    if not layer.kronecker or layer.bias is None:
        return a
    return (
        torch.nn.functional.pad(a, (0, 1), value=float(one))
        if layer.weight is not None
        else torch.ones_like(a[..., :1])
    )


def cut(g: Tensor, rows: tuple[int, int] | None) -> Tensor:
    """The outputs that belong to a layer which is a part of a use."""
    return g if rows is None else g[..., rows[0] : rows[1]]


def example_gradients(layer: Layer, a: Pieces, g: Pieces) -> Tensor:
    """Gradient of each column at each example, `[C, B, *view]`: sum over s of g a'."""
    if layer.inner:
        parts = [(w, pieces_of(layer, w, a), pieces_of(layer, w, g)) for w in layer.inner]
        return total([turned(layer, w, example_gradients(w, *own)) for w, *own in parts])
    if not layer.kronecker:
        return _elementwise(layer, a, g, "cbsn,bsn->cbn", (2,))
    a_, g_ = joined(layer, a, g)
    if layer.diagonal:
        return vmap(vmap(lambda index, g: _table(index, g, layer.shape[1])), in_dims=(None, 0))(a_, g_)
    return torch.einsum("cbsgo,bsgi->cbgoi" if layer.grouped else "cbso,bsi->cboi", g_, a_)


def gradient(layer: Layer, a: Pieces, g: Pieces) -> Tensor:
    """Sum over examples of the gradient of one column, g `[B, S, O]`: the gradient in the layer's view."""
    if layer.inner:
        parts = [(w, pieces_of(layer, w, a), pieces_of(layer, w, g)) for w in layer.inner]
        return total([turned(layer, w, gradient(w, *own)) for w, *own in parts])
    if not layer.kronecker:
        return _elementwise(layer, a, [t[None] for t in g], "cbsn,bsn->n", (0, 1, 2))
    a_, g_ = joined(layer, a, [t[None] for t in g])
    if layer.diagonal:
        return _table(a_.flatten(), g_[0].flatten(0, 1), layer.shape[1])
    return torch.einsum("bsgo,bsgi->goi" if layer.grouped else "bso,bsi->oi", g_[0], a_)


def squares(layer: Layer, a: Pieces, g: Pieces) -> Tensor:
    """Sum over columns and examples of the squared gradients, in the layer's view."""
    if layer.inner or not layer.kronecker:
        return turned_squares(layer, a, g, lambda r: r)
    if layer.bias is None or layer.weight is None:
        return product_squares(layer, *joined(layer, a, g))
    g = [cut(t, rows) for t, rows in zip(g, layer.cuts)]
    a_, g_ = side_by_side(a, g)
    if g_.shape[2] == 1:
        return at_one_position(layer, a_, _squared(g_[:, :, 0]))
    of_bias = (total([t.sum(2) for t, one in zip(g, layer.biased) if one]) ** 2).sum((0, 1))
    of_weight = product_squares(layer, a_, g_)
    return torch.cat([of_weight, of_bias[..., None]], -1)  # a is not copied for a column of ones


def by_example(layer: Layer, g: Tensor) -> Tensor:
    """Sum over columns of the squares of g `[C, B, 1, O]` at the outputs of the layer's one use, `[B, O]`."""
    return _squared(cut(g, layer.cuts[0])[:, :, 0])


def at_one_position(layer: Layer, a: Tensor, once: Tensor) -> Tensor:
    """`squares` of a use with one position per example, from a `[B, 1, I]` and `by_example`."""
    if layer.bias is None or layer.weight is None:
        return _at_one_position(layer, with_ones(layer, a), once)
    return torch.cat([_at_one_position(layer, a, once), once.sum(0)[..., None]], -1)


def turned_squares(layer: Layer, a: Pieces, g: Pieces, turn: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum over columns and examples of the squares of what `turn` makes of the gradients, formed for some columns at a time."""
    each = max(1, AT_ONCE // max(1, g[0].shape[1] * layer.numel))
    parts = [[t.narrow(0, k, min(each, len(t) - k)) for t in g] for k in range(0, len(g[0]), each)]
    return total([(turn(example_gradients(layer, a, part)) ** 2).sum((0, 1)) for part in parts])


def product_squares(layer: Layer, a: Tensor, g: Tensor) -> Tensor:
    """The same of a product, from a with its column of ones; either may be in another basis.

    At one position per example two operands of a matrix product, (g^2)' (a^2).
    """
    if layer.diagonal:
        return _table_squares(a, g, layer.shape[1])
    if g.shape[2] == 1:
        return _at_one_position(layer, a, _squared(g[:, :, 0]))
    each = g[0, :, 0].numel() * a.shape[-1]
    if layer.grouped:
        return by_columns(lambda g: (torch.einsum("cbsgo,bsgi->cbgoi", g, a) ** 2).sum((0, 1)), g, each)
    if g.shape[-1] >= WIDE:  # column by column, as they lie in memory
        return functools.reduce(torch.add, (((t.mT @ a) ** 2).sum(0) for t in g))
    return by_columns(lambda g: _side_by_side(g, a), g, each)


def _side_by_side(g: Tensor, a: Tensor) -> Tensor:
    """The same of columns with few outputs each, all of them by one product for each example."""
    r = torch.cat([t.mT for t in g], 1) @ a
    return (r**2).sum(0).unflatten(0, g.shape[::3]).sum(0)


def _at_one_position(layer: Layer, a: Tensor, once: Tensor) -> Tensor:
    """(sum over columns of g^2)' (a^2), in the dtype of the sums."""
    squares = a[:, 0].to(once.dtype) ** 2
    return torch.einsum("bgo,bgi->goi", once, squares) if layer.grouped else once.mT @ squares


def by_columns(fn: Callable[[Tensor], Tensor], g: Tensor, each: int) -> Tensor:
    """Sum of fn over parts of the columns, `each` numbers per column, so that not too many are held at a time."""
    parts = [fn(part) for part in g.split(max(1, AT_ONCE // max(1, each)))]
    return sum(parts[1:], parts[0])


def cross(layer: Layer, a: Pieces, g: Pieces) -> Tensor:
    """Sum over columns and examples of each weight's gradient times that of the bias of its output unit, `[O, I]`."""
    a_, g_ = joined(layer, a, g)
    if g_.shape[2] == 1:
        once = _squared(g_[:, :, 0])
        plain = a_[:, 0, ..., :-1]
        return torch.einsum("bgo,bgi->goi", once, plain) if layer.grouped else once.mT @ plain

    def part(g: Tensor) -> Tensor:
        found = torch.einsum("cbsgo,bsgi->cbgoi" if layer.grouped else "cbso,bsi->cboi", g, a_)
        return (found[..., :-1] * found[..., -1:]).sum((0, 1))

    return by_columns(part, g_, g_[0, :, 0].numel() * a_.shape[-1])


def _squared(g: Tensor) -> Tensor:
    """Sum over columns of the squares; of a few large columns without their squares in the memory."""
    if len(g) > FEW:
        return (g**2).sum(0)
    return functools.reduce(lambda sum, t: torch.addcmul(sum, t, t), g[1:], g[0] ** 2)


def _elementwise(layer: Layer, a: Pieces, g: Pieces, how: str, summed: tuple[int, ...]) -> Tensor:
    """Sums of g a, beside them sums of g."""
    parts = []
    if layer.weight is not None:
        parts.append(total([torch.einsum(how, t, u) for u, t in zip(a, g)]))
    if layer.bias is not None:
        parts.append(total([t.sum(summed) for t, one in zip(g, layer.biased) if one]))
    return torch.stack(parts, -1) if len(parts) > 1 else parts[0]


def _table(index: Tensor, g: Tensor, vocabulary: int) -> Tensor:
    """sum over s of g_s e' at index s, `[O, V]`; the row after the last is for what uses nothing."""
    wide = torch.zeros_like(g[:1]).expand(vocabulary + 1, -1)
    return wide.index_add(0, index, g)[:-1].mT


def _table_squares(index: Tensor, g: Tensor, vocabulary: int) -> Tensor:
    """sum over columns, examples of (sum over s at this index of g_s)^2, `[O, V]`, without a table for each example.

    With many positions there is one all the same.  Else (sum of g_s)^2 = sum over s of g_s (sum over the s' with the same index
    of g_s').
    """
    if index.shape[1] > vocabulary:
        every = vmap(vmap(lambda index, g: _table(index, g, vocabulary)), in_dims=(None, 0))
        return by_columns(lambda g: (every(index, g) ** 2).sum((0, 1)), g, index.shape[0] * vocabulary * g.shape[-1])
    same = (index[:, :, None] == index[:, None, :]).to(g.dtype)
    terms = (g * (same @ g)).sum(0) if g.shape[2] > 1 else (g**2).sum(0)
    return _table(index.flatten(), terms.flatten(0, 1), vocabulary)
