"""Blocks of leaves that are seen through: J'(G (x) A)J with J the derivative of the weights that f makes of them.

n parameters of the leaves, m numbers of a derived weight; J [m, n].  The block is dense `[n, n]`, or its diagonal `[n]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import vjp, vmap

from fisher.collector.blocks.uses import Layer
from fisher.collector.weights import Weights

AT_ONCE = 2**24  # numbers of derivatives of weights held at a time
MOST = 2**36  # multiplications that a diagonal may cost; beyond, it is that of the gradients of single examples

Product = Callable[[Tensor], Tensor]  # V [K, *view] -> F V, symmetric


def pulled_back(phi: Weights, leaves: Sequence[Tensor], products: Sequence[Product], diagonal: bool) -> Tensor:
    """Sum over the derived weights of J'F J: `[n, n]`, or its diagonal `[n]`."""
    n = sum(t.numel() for t in leaves)
    found = leaves[0].new_zeros((n,) if diagonal else (n, n))
    for k, product in enumerate(products):
        found = found + _one(phi, k, tuple(leaves), product, diagonal, n)
    return found


def _one(phi: Weights, k: int, leaves: tuple[Tensor, ...], product: Product, diagonal: bool, n: int) -> Tensor:
    view, back = vjp(lambda own: phi(own)[k], leaves)  # type: ignore[misc]
    m, shape = view.numel(), view.shape

    def rows(V: Tensor) -> Tensor:
        """J'V of each of K cotangents `[K, *view]`, `[K, n]`."""
        return _flat(vmap(lambda v: back(v)[0])(V), len(V))

    def along(T: Tensor) -> Tensor:
        """J T of each of K tangents `[K, n]`, `[K, *view]`: the derivative of J'u in u, which is linear."""
        zero = torch.zeros_like(view)
        _, twice = vjp(lambda u: back(u)[0], zero)  # type: ignore[misc]
        parts = T.split([t.numel() for t in leaves], -1)
        tangents = tuple(p.reshape(len(T), *t.shape) for p, t in zip(parts, leaves))
        return vmap(lambda t: twice(t)[0])(tangents)

    unit = torch.eye(min(m, n), dtype=view.dtype, device=view.device)
    if m <= n and diagonal:
        parts = (e.reshape(-1, *shape) for e in unit.split(max(1, AT_ONCE // max(1, n))))
        return sum((rows(e) * rows(product(e).to(e.dtype))).sum(0) for e in parts)  # type: ignore[return-value]
    if m <= n:
        J = rows(unit.reshape(m, *shape))
        moved = product(J.mT.reshape(n, *shape)).reshape(n, m)
        return moved @ J.to(moved.dtype)
    found = []
    whole = not diagonal and n * m <= 4 * AT_ONCE
    for e in unit.split(max(1, AT_ONCE // max(1, m))):
        columns = along(e)
        if whole:
            found.append(columns)
            continue
        moved = product(columns)
        found.append((moved * columns).flatten(1).sum(1) if diagonal else rows(moved.to(view.dtype)))
    together = torch.cat(found)
    if not whole:
        return together
    moved = product(together).flatten(1)
    return moved @ together.flatten(1).mT.to(moved.dtype)


def _flat(parts: tuple[Tensor, ...], n: int) -> Tensor:
    return torch.cat([t.reshape(n, -1) for t in parts], -1)


def by_weights(layer: Layer, small: bool) -> bool:
    """Whether the block is made of derivatives of the weights, not of the gradients of single examples."""
    each = sum(min(w.numel, layer.numel) * w.numel * sum(w.shape) for w in layer.inner)
    return layer.factored and (small or each <= MOST)
