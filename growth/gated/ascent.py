"""How what a gated unit explains moves with its gate row: one pass over data at given units.

k units of gate rows a `[k, d]`, d inputs of the gate with a last 1 where it has a bias; x, R as in `statistics`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from growth.closed_form.units import Neurons
from growth.moments.solvers import pseudo_solve
from growth.reading.activations import Activation, applied
from growth.reading.observe import View
from linmaps.numerics.dtypes import working


@dataclasses.dataclass(frozen=True)
class _Sums:
    """N = Σ s (u x)(w R) and E = Σ (s u x)² `[k]`, their derivatives by a `[k, d]`, C = Σ x x' `[d, d]`."""

    N: Tensor
    E: Tensor
    dN: Tensor
    dE: Tensor
    C: Tensor


def uphill(views: Iterable[View], new: Neurons, plain: Tensor | None) -> Tensor:
    """Moves `[k, d]` of gate rows along which |N| / √E rises most, u and w being fixed.

    The gradient by a in the metric C of the inputs of the gate, of the size of a in it: pre-activations move by as much as
    they are.  plain: the change ΔW `[q, p+1]` whose residual R = -(G - ΔW b1) is explained; None: R = -G.
    """
    total = functools.reduce(_added, (_sums(view, new, plain) for view in views))
    rows = working(cast(Tensor, new.joined_gate))
    safe = lambda t: torch.where(t == 0, 1.0, t)
    slope = total.dN / safe(total.N)[:, None] - total.dE / (2 * safe(total.E))[:, None]
    moves = pseudo_solve(total.C, slope.mT).mT
    energy = lambda t: ((t @ total.C) * t).sum(1)
    own, moved = energy(rows), energy(moves)
    size = torch.where(own > 0, own, total.C.diagonal().sum() / len(total.C))
    return torch.where(moved > 0, size / safe(moved), 0.0).sqrt()[:, None] * moves


def _added(a: _Sums, b: _Sums) -> _Sums:
    return _Sums(*(s + t for s, t in zip(vars(a).values(), vars(b).values())))


def _sums(view: View, new: Neurons, plain: Tensor | None) -> _Sums:
    b2, b1, g = (t.flatten(0, 1) for t in (view.b2, view.b1, view.g))
    like = lambda t: working(t).to(b2)
    if plain is not None:
        change = like(plain)
        g = g - pad(b1, (0, change.shape[1] - b1.shape[1]), value=1.0) @ change.mT
    x = b2 if new.gate_bias is None else pad(b2, (0, 1), value=1.0)
    s, slope = applied(cast(Activation, view.gate), x @ like(cast(Tensor, new.joined_gate)).mT)
    u = b2 @ like(new.fan_in).mT
    u = u if new.fan_in_bias is None else u + like(new.fan_in_bias)
    w = -g @ like(new.fan_out)
    first, second = slope * u * w, 2 * s * slope * u * u
    return _Sums((s * u * w).sum(0), (s * u).square().sum(0), first.mT @ x, second.mT @ x, x.mT @ x)
