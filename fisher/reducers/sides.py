"""Factors of a weight that is used as W and as W': the moments of both its sides, over all uses.

The gradient is a sum over uses of l r', l `[O]` on the side of the outputs of W and r `[I]` on that of its inputs: where W is
used as it is, l is an output-gradient and r an input, where W' is used the other way around.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fisher.collector.blocks.tied import swapped
from fisher.collector.blocks.uses import Layer
from linmaps.numerics.numeric import total

Factors = tuple[Tensor, Tensor]


def of_both_sides(layer: Layer, factors: Sequence[Factors], positions: Sequence[Tensor]) -> Factors:
    """(A, G) of all uses, from those of the uses of each kind, and over how many positions each G is a mean.

    An output-gradient has the scale of the loss, an input has not, and a product l r' is the same for (c l, r / c).  So each
    kind k is scaled to have moments L_k, R_k of one trace, t_k = sqrt(tr L_k tr R_k): G (x) A is (sum of L_k) (x) (sum of R_k),
    times what makes its trace that of the sum of L_k (x) R_k.  It is linear in the scale of the loss, and that of a single kind
    is as ever.
    """
    ways = [swapped(layer, w) for w in layer.inner]
    pooled = [_pooled([(f, n) for f, n, own in zip(factors, positions, ways) if own == way]) for way in set(ways)]
    sides = [(G, A) if way else (A, G) for (A, G), way in zip(pooled, set(ways))]
    traces = [(_trace(R) * _trace(L)).clamp(min=0.0) for R, L in sides]
    roots = [torch.where(t > 0, torch.where(t > 0, t, 1.0).sqrt(), 0.0) for t in traces]
    moved = [(_scaled(R, root), _scaled(L, root)) for (R, L), root in zip(sides, roots)]
    A, G = (_sum([pair[k] for pair in moved]) for k in (0, 1))
    both = total(roots) ** 2
    return A, G * torch.where(both > 0, total(traces) / torch.where(both > 0, both, 1.0), 0.0)


def _pooled(found: list[tuple[Factors, Tensor]]) -> Factors:
    """Factors of uses that lay the weight out alike: lookups beside products."""
    if len(found) == 1:
        return found[0][0]
    every = total([n for _, n in found])
    return _sum([A for (A, _), _ in found]), _sum([G * (n / every) for (_, G), n in found])


def _scaled(m: Tensor, to: Tensor) -> Tensor:
    """m times what makes its trace `to`."""
    t = _trace(m)
    return m * torch.where(t > 0, to / torch.where(t > 0, t, 1.0), 0.0)


def _trace(m: Tensor) -> Tensor:
    return m.sum() if m.ndim == 1 else m.diagonal().sum()


def _sum(parts: list[Tensor]) -> Tensor:
    """The sum of matrices, of which some are diagonals `[n]`."""
    if len({m.ndim for m in parts}) == 1:
        return total(parts)
    return total([torch.diag(m) if m.ndim == 1 else m for m in parts])
