"""What is held against what streams: inner products of gradients, layer by layer.

Q held gradients, B examples, S shared (positions, repeated uses), T positions, G groups, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, overload

import torch
from torch import Tensor
from torch.func import vmap

from fisher.collector.blocks.uses import UNUSED, Layer
from fisher.collector.collection import LayerCollection
from fisher.collector.products import AT_ONCE, example_gradients, joined
from fisher.recipes.influences.sides import Factors, Gradients
from linmaps.numerics.dtypes import restored, working
from linmaps.numerics.singular import truncated


class Low(NamedTuple):
    """Views `[Q, G, O, I]` as products left `[Q, G, O, r]` right `[Q, G, r, I]`."""

    left: Tensor
    right: Tensor


Held = dict[str, Tensor | Low]
IN_CACHE = 2**20  # numbers of a tile
ROWS = 128  # of a tile, for a fast product
SHOWN = 3  # layers whose reason an error gives


def compressed(layers: LayerCollection, views: dict[str, Tensor], rank: int) -> Held:
    """The best approximation of this rank to each view `[Q, O, I]` of a product, where it stores less; others as they are."""

    def one(layer: Layer, V: Tensor) -> Tensor | Low:
        if not layer.kronecker or layer.inner or rank * sum(V.shape[-2:]) >= V.shape[-2] * V.shape[-1]:
            return V
        V = V if layer.grouped else V[:, None]
        if not len(V):
            return Low(V[..., :rank], V[..., :rank, :])
        return Low(*restored(V.dtype, vmap(vmap(lambda M: truncated(M, rank)))(working(V))))

    return {layer.name: one(layer, views[layer.name]) for layer in layers}


def products(held: Held, gradients: Gradients) -> dict[str, Tensor]:
    """The inner products of each layer, `[Q, B]`."""
    return {name: _inner(V, gradients[name]) for name, V in held.items()}


def _inner(held: Tensor | Low, found: Tensor | Factors) -> Tensor:
    if not isinstance(found, Factors):
        return _of_rows(held, found)
    layer = found.layer
    if layer.kronecker and not layer.inner and (layer.diagonal or not _fewer_as_rows(held, found)):
        return _terms(held, found).sum(-1)
    return torch.cat([_of_rows(held, example_gradients(*part)[0]) for part in _parts(found, layer.numel)], 1)


def _of_rows(held: Tensor | Low, rows: Tensor) -> Tensor:
    """Inner products with rows `[B, *view]`, of products multiplied out for some at a time."""
    columns = rows[..., None].flatten(1).mT
    if isinstance(held, Low):
        size = max(1, AT_ONCE // max(1, len(columns)))
        parts = zip(held.left.split(size), held.right.split(size))
        return torch.cat([(left @ right).flatten(1) @ columns for left, right in parts])
    return held[..., None].flatten(1) @ columns


def _fewer_as_rows(held: Tensor | Low, found: Factors) -> bool:
    """Whether the gradient of each example is formed, O I products of S positions and of Q held ones, rather than the terms
    of Q S pairs, O I or r (O + I) products each."""
    Q, S, each = _count(held), found.a[0].shape[1] * len(found.a), found.layer.numel
    if not isinstance(held, Low):
        return Q * S > Q + S
    at_once = max(1, min(len(found.a[0]), AT_ONCE // each))  # examples for which a product is multiplied out once
    r = held.left.shape[-1]
    return Q * S * (held.left[0].numel() + held.right[0].numel()) > (Q + S + Q * r / at_once) * each


def token_products(held: Held, gradients: Gradients, layers: LayerCollection) -> dict[str, Tensor]:
    """The same with a term for each position of an example, `[Q, B, T]`; without examples `[Q, 0, 0]`.

    ValueError as of `positions`.
    """
    if nothing(gradients):
        return {name: t[..., None].expand(-1, -1, 0) for name, t in products(held, gradients).items()}
    T = positions(gradients, layers)
    return {name: _by_token(V, gradients[name], T) for name, V in held.items()}


def own_products(held: dict[str, Tensor], gradients: Gradients, layers: LayerCollection) -> dict[str, Tensor]:
    """The same of each held gradient with the example of its number alone, `[B, T]`."""
    if nothing(gradients):
        return {name: V.new_zeros(0, 0) for name, V in held.items()}
    T = positions(gradients, layers)

    def own(V: Tensor, found: Tensor | Factors) -> Tensor:
        if not isinstance(found, Factors):  # unused
            return V.new_zeros(len(V), T)
        part = lambda a, g: Factors(found.layer, [t[None] for t in a], [t[:, None] for t in g])
        one = lambda V, a, g: _by_token(V[None], part(a, g), T)[0, 0]
        return vmap(one, (0, 0, 1))(V, found.a, found.g)

    return {name: own(V, gradients[name]) for name, V in held.items()}


def nothing(gradients: Gradients) -> bool:
    """Whether they are of no example, for which f is not called: what it has positions of is not known."""
    return all(isinstance(t, Tensor) and not len(t) for t in gradients.values())


def positions(gradients: Gradients, layers: LayerCollection) -> int:
    """The number of positions of an example, the same in all layers.

    ValueError for layers whose uses have no common positions, and for those without a rule, all of them at once.
    """
    met = {layer: gradients[layer.name] for layer in layers if layer.family != UNUSED}
    counts = {layer: {a.shape[1] for a in found.a} for layer, found in met.items() if isinstance(found, Factors)}
    alike = Counter(T for found in counts.values() for T in found)
    T = max(alike, key=lambda T: (alike[T], T), default=0)  # of most layers
    reasons = {layer.name: _why(layer, counts.get(layer), T) for layer in met if counts.get(layer) != {T}}
    if reasons:
        each = [f"{name}: {why}" for name, why in reasons.items()]
        more = f"; {len(each) - SHOWN} more" if len(each) > SHOWN else ""
        names = ", ".join(map(repr, reasons))
        raise ValueError(
            f"per_token: {'; '.join(each[:SHOWN])}{more}; leave {'it' if len(each) == 1 else 'them'} out: make F with "
            f"layers=layers.remove({names})"
        )
    return T


def _why(layer: Layer, counts: set[int] | None, T: int) -> str:
    if counts is None:
        why = layer.note or layer.kind
        return f"has an exact block ({why}), whose gradient is no sum over positions, expected layers that are"
    numbers = " and ".join(map(str, sorted(counts)))
    return f"is used at {numbers} positions of an example, expected {T} as most layers"


def _by_token(held: Tensor | Low, found: Tensor | Factors, T: int) -> Tensor:
    if not isinstance(found, Factors):  # unused
        return _inner(held, found)[..., None].expand(-1, -1, T)
    if found.layer.kronecker and not found.layer.inner:
        return _terms(held, found).unflatten(-1, (len(found.a), T)).sum(-2)
    alone = Factors(
        found.layer, [t.flatten(0, 1)[:, None] for t in found.a], [t.flatten(1, 2)[:, :, None] for t in found.g]
    )
    return _inner(held, alone).unflatten(-1, (-1, T))


def _terms(held: Tensor | Low, found: Factors) -> Tensor:
    """g_s' V a_s of each held V, example and use, `[Q, B, S]`."""
    layer = found.layer
    a, (g,) = joined(*found)
    B, S = g.shape[:2]
    a, g = a.flatten(0, 1), g.flatten(0, 1)
    if layer.diagonal:  # a is an index, V for what uses nothing
        at = a.clamp(max=layer.shape[1] - 1)
        terms = _of_table(held, at, torch.where((at == a)[:, None], g, 0.0))
    elif isinstance(held, Low):
        a, g = (t if layer.grouped else t[:, None] for t in (a, g))
        terms = _of_product(held, a, g)
    else:
        V, a, g = (held, a, g) if layer.grouped else (held[:, None], a[:, None], g[:, None])
        terms = _of_matrix(V, a, g) if V.shape[2] <= V.shape[3] else _of_matrix(V.mT, g, a)
    return terms.mT.unflatten(-1, (B, S))


def _of_matrix(V: Tensor, a: Tensor, g: Tensor) -> Tensor:
    """Sum over groups of g_n' V a_n, `[N, Q]`, V `[Q, G, O, I]`, a `[N, G, I]`, g `[N, G, O]`, in tiles that stay in a cache."""
    O = V.shape[2]
    columns = max(1, IN_CACHE // (ROWS * O))
    rows = max(1, IN_CACHE // max(1, min(columns, len(V)) * O))
    found = []
    for W in V.split(columns):
        W = W.permute(1, 3, 0, 2).flatten(2)  # [G, I, Q O]
        tiles = zip(a.transpose(0, 1).split(rows, 1), g.transpose(0, 1).split(rows, 1))
        found.append(torch.cat([((u @ W).unflatten(-1, (-1, O)) * v[:, :, None]).sum((0, -1)) for u, v in tiles]))
    return torch.cat(found, 1)


def _of_product(held: Low, a: Tensor, g: Tensor) -> Tensor:
    """The same of V = left right."""
    Q, G, _, r = held.left.shape
    left, right = held.left.permute(1, 2, 0, 3).flatten(2), held.right.permute(1, 3, 0, 2).flatten(2)  # [G, O, Q r]
    size = max(1, IN_CACHE // max(1, Q * G * r))
    tiles = zip(a.transpose(0, 1).split(size, 1), g.transpose(0, 1).split(size, 1))
    return torch.cat([((v @ left) * (u @ right)).sum(0).unflatten(-1, (Q, r)).sum(-1) for u, v in tiles])


def _of_table(held: Tensor | Low, index: Tensor, g: Tensor) -> Tensor:
    """The same of V's column at an index `[N]`."""
    table = (held.right[:, 0] if isinstance(held, Low) else held).permute(2, 0, 1)  # [V, Q, r or O]
    table = table.contiguous() if len(index) >= len(table) else table  # to read what lies together

    def against(g: Tensor) -> Tensor:
        if isinstance(held, Low):
            return (g @ held.left[:, 0].permute(1, 0, 2).flatten(1)).unflatten(-1, table.shape[1:])
        return g[:, None]

    size = max(1, IN_CACHE // max(1, table[0].numel()))
    return torch.cat([(table[k] * against(v)).sum(-1) for k, v in zip(index.split(size), g.split(size))])


def _count(held: Tensor | Low) -> int:
    return len(held.left if isinstance(held, Low) else held)


def _parts(found: Factors, each: int) -> Iterator[Factors]:
    """The factors of some examples at a time, so that not too many numbers, `each` per example, are held."""
    size, batch = max(1, AT_ONCE // max(1, each)), len(found.a[0])
    for k in range(0, batch, size):
        yield some(found, k, k + size)


@overload
def some(found: Factors, start: int, stop: int) -> Factors: ...
@overload
def some(found: Tensor, start: int, stop: int) -> Tensor: ...
def some(found: Tensor | Factors, start: int, stop: int) -> Tensor | Factors:
    """The gradients of these examples."""
    if not isinstance(found, Factors):
        return found[start:stop]
    return Factors(found.layer, [t[start:stop] for t in found.a], [t[:, start:stop] for t in found.g])
