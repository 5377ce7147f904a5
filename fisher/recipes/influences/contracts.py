"""What is held against what streams: inner products of gradients, layer by layer.

Q held gradients, B examples, S shared (positions, repeated uses), T positions, G groups, I inputs, O outputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import pad

from fisher.collector.blocks.uses import UNUSED, Layer
from fisher.collector.collection import LayerCollection
from fisher.collector.products import AT_ONCE, example_gradients, joined
from fisher.recipes.influences.sides import Factors, Gradients
from linmaps.numerics.singular import svd


class Low(NamedTuple):
    """Views `[Q, G, O, I]` as products left `[Q, G, O, r]` right `[Q, G, r, I]`."""

    left: Tensor
    right: Tensor


Held = dict[str, Tensor | Low]


def compressed(layers: LayerCollection, views: dict[str, Tensor], rank: int) -> Held:
    """The best approximation of this rank to each view `[Q, O, I]` of a product, where it stores less; others as they are."""

    def one(layer: Layer, V: Tensor) -> Tensor | Low:
        if not layer.kronecker or layer.inner or rank * sum(V.shape[-2:]) >= V.shape[-2] * V.shape[-1] or not len(V):
            return V
        U, s, W = vmap(vmap(svd))(V if layer.grouped else V[:, None])
        return Low(U[..., :rank] * s[..., None, :rank], W[..., :rank, :])

    return {layer.name: one(layer, views[layer.name]) for layer in layers}


def products(held: Held, gradients: Gradients) -> dict[str, Tensor]:
    """The inner products of each layer, `[Q, B]`."""
    return {name: _inner(V, gradients[name]) for name, V in held.items()}


def _inner(held: Tensor | Low, found: Tensor | Factors) -> Tensor:
    if not isinstance(found, Factors):
        rows = (held.left @ held.right).flatten(1) if isinstance(held, Low) else held
        return rows[..., None].flatten(1) @ found[..., None].flatten(1).mT
    if not found.layer.kronecker or found.layer.inner:
        return torch.cat([_inner(held, example_gradients(*part)[0]) for part in _parts(found, found.layer.numel)], 1)
    Q, S = len(held[0]) if isinstance(held, Low) else len(held), found.a[0].shape[1] * len(found.a)
    if isinstance(held, Tensor) and not found.layer.diagonal and Q * S > Q + S:  # as rows they are fewer products
        return torch.cat([_inner(held, example_gradients(*part)[0]) for part in _parts(found, found.layer.numel)], 1)
    return torch.cat([_terms(held, *part).sum(-1) for part in _parts(found, Q * S * _width(held))], 1)


def token_products(held: Held, gradients: Gradients, layers: LayerCollection) -> dict[str, Tensor]:
    """The same with a term for each position of an example, `[Q, B, T]`.

    ValueError as of `positions`.
    """
    T = positions(gradients, layers)
    return {name: _by_token(V, gradients[name], T) for name, V in held.items()}


def own_products(held: dict[str, Tensor], gradients: Gradients, layers: LayerCollection) -> dict[str, Tensor]:
    """The same of each held gradient with the example of its number alone, `[B, T]`."""
    T = positions(gradients, layers)

    def own(V: Tensor, found: Tensor | Factors) -> Tensor:
        if not isinstance(found, Factors):  # unused
            return V.new_zeros(len(V), T)
        part = lambda a, g: Factors(found.layer, [t[None] for t in a], [t[:, None] for t in g])
        one = lambda V, a, g: _by_token(V[None], part(a, g), T)[0, 0]
        return vmap(one, (0, 0, 1))(V, found.a, found.g) if len(V) else V.new_zeros(0, T)

    return {name: own(V, gradients[name]) for name, V in held.items()}


def positions(gradients: Gradients, layers: LayerCollection) -> int:
    """The number of positions of an example, the same in all layers.

    ValueError for layers whose uses have no common positions, and for those without a rule.
    """
    T = 0
    for layer in layers:
        found = gradients[layer.name]
        if layer.family == UNUSED:
            continue
        if not isinstance(found, Factors):
            raise ValueError(
                f"per_token: {layer.name}: has an exact block ({layer.note or layer.kind}), whose gradient is no sum over "
                f"positions, expected layers that are; {_without(layer)}"
            )
        for a in found.a:
            T = T or a.shape[1]
            if a.shape[1] != T:
                raise ValueError(
                    f"per_token: {layer.name}: is used at {a.shape[1]} positions of an example, expected {T} as the layers "
                    f"before it; {_without(layer)}"
                )
    return T


def _by_token(held: Tensor | Low, found: Tensor | Factors, T: int) -> Tensor:
    if not isinstance(found, Factors):  # unused
        return _inner(held, found)[..., None].expand(-1, -1, T)
    if found.layer.kronecker and not found.layer.inner:
        Q = len(held[0]) if isinstance(held, Low) else len(held)
        S = T * len(found.a)
        terms = torch.cat([_terms(held, *part) for part in _parts(found, Q * S * _width(held))], 1)
        return terms.unflatten(-1, (len(found.a), T)).sum(-2)
    alone = Factors(
        found.layer, [t.flatten(0, 1)[:, None] for t in found.a], [t.flatten(1, 2)[:, :, None] for t in found.g]
    )
    return _inner(held, alone).unflatten(-1, (-1, T))


def _terms(held: Tensor | Low, layer: Layer, a: list[Tensor], g: list[Tensor]) -> Tensor:
    """g_s' V a_s of each held V, example and use, `[Q, B, S]`."""
    a_, (g_,) = joined(layer, a, g)
    if layer.diagonal:  # a is an index, V for what uses nothing
        if isinstance(held, Low):
            left = torch.einsum("qor,bso->qrbs", held.left[:, 0], g_)
            return (left * pad(held.right[:, 0], (0, 1))[:, :, a_]).sum(1)
        return torch.einsum("qobs,bso->qbs", pad(held, (0, 1))[:, :, a_], g_)
    if not layer.grouped:
        a_, g_ = a_[:, :, None], g_[:, :, None]
    if isinstance(held, Low):
        left, right = torch.einsum("qgor,bsgo->qbsgr", held.left, g_), torch.einsum("qgri,bsgi->qbsgr", held.right, a_)
        return (left * right).sum((-2, -1))
    outer = torch.einsum("qgoi,bsgi->qbsgo", held if layer.grouped else held[:, None], a_)
    return torch.einsum("qbsgo,bsgo->qbs", outer, g_)


def _width(held: Tensor | Low) -> int:
    """Numbers that a term of one position is made of."""
    if isinstance(held, Low):
        return held.left.shape[1] * held.left.shape[3]
    return math.prod(held.shape[1:-1])


def _parts(found: Factors, each: int) -> Iterator[Factors]:
    """The factors of some examples at a time, so that not too many numbers, `each` per example, are held."""
    size, batch = max(1, AT_ONCE // max(1, each)), len(found.a[0])
    for k in range(0, batch, size):
        yield Factors(found.layer, [t[k : k + size] for t in found.a], [t[:, k : k + size] for t in found.g])


def _without(layer: Layer) -> str:
    return f"leave it out: make F with layers=layers.remove({layer.name!r})"
