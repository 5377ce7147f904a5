"""Choose among new units, scale and join them: functions of `Neurons`, all but `compact` with sizes that are static.

k new units: fan_in `[k, r]`, fan_out `[q, k]`; a unit is masked when it is zero on both sides.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from growth.checks.doors import count
from growth.checks.records import owned
from growth.closed_form.units import Neurons, check_units, live
from growth.reading.along import joined
from linmaps.checks import alike, number, values
from linmaps.checks.annotations import typed
from linmaps.numerics.numeric import positive_root

Factor = float | Tensor


@typed
def truncate(new: Neurons, k: int) -> Neurons:
    """The first k units: of closed-form units, which come sorted, the best rank-k choice.

    Raises TypeError unless k is an int, ValueError unless 0 <= k <= new.size, or where `new` brings a joint delta.

    >>> import torch
    >>> one, zero = torch.ones(()), torch.zeros(())
    >>> new = Neurons(torch.ones(3, 2), None, torch.ones(1, 3), torch.ones(3), torch.tensor([3.0, 2.0, 1.0]), one, zero)
    >>> truncate(new, 2).size, truncate(new, 2).gain
    (2, tensor(5.))
    """
    check_units(new)
    count(k, high=new.size, cure="add units with merge_neurons")
    return taken(new, slice(0, k))


@typed
def keep(new: Neurons, which: float | Tensor, *, fan_in: bool = True, fan_out: bool = True) -> Neurons:
    """`new` of the same size in which the units not kept are masked: zero rows and columns, eigenvalue and gain 0.

    which: a mask, bool `[k]`, or a threshold relative to the largest eigenvalue: kept are those with

        λ_j >= which · max λ.

    fan_in, fan_out: which sides of the other units become zero; with one side only they stay in the network, without
    effect on its function at first, and learn (fan_in: only where σ has a slope at 0, so not with ReLU).

    Raises ValueError for a mask of another shape or dtype, a threshold outside [0, 1], no side at all, or where `new`
    brings a joint delta.

    >>> import torch
    >>> one, zero = torch.ones(()), torch.zeros(())
    >>> new = Neurons(torch.ones(2, 1), None, torch.ones(1, 2), torch.tensor([1.0, 0.2]), torch.ones(2), 2 * one, zero)
    >>> keep(new, 0.5).fan_out, keep(new, torch.tensor([False, True])).gains
    (tensor([[1., 0.]]), tensor([0., 1.]))
    """
    check_units(new)
    if not (fan_in or fan_out):
        raise ValueError("keep: got fan_in=False and fan_out=False, expected a side of the other units to make zero")
    if isinstance(which, Tensor) and which.dtype == torch.bool:
        if tuple(which.shape) != (new.size,):
            raise ValueError(f"which: got a mask of shape {tuple(which.shape)}, expected ({new.size},), one per unit")
        kept = which
    elif isinstance(which, Tensor):
        if which.ndim:
            raise ValueError(
                f"which: got {which.dtype} {tuple(which.shape)}, expected a mask, bool ({new.size},), or a threshold"
            )
        number(which, "which", low=0, high=1)
        kept = _above(new.eigenvalues, which)
    else:
        number(which, "which", low=0, high=1, cure=f"or give a mask, bool ({new.size},)")
        kept = _above(new.eigenvalues, which)
    rows = kept if fan_in else torch.ones_like(kept)
    gains = torch.where(kept, new.gains, 0.0)
    return dataclasses.replace(
        new,
        fan_in=torch.where(rows[:, None], new.fan_in, 0.0),
        fan_in_bias=None if new.fan_in_bias is None else torch.where(rows, new.fan_in_bias, 0.0),
        fan_out=torch.where(kept, new.fan_out, 0.0) if fan_out else new.fan_out,
        eigenvalues=torch.where(kept, new.eigenvalues, 0.0),
        gains=gains,
        gain=gains.sum(),
    )


@typed
def compact(new: Neurons) -> Neurons:
    """`new` without its masked units.

    The size of the answer depends on values, so this runs outside of `vmap` only; a joint delta stays, since masked
    units add nothing to it.

    Raises ValueError under `vmap`.

    >>> import torch
    >>> one, zero = torch.ones(()), torch.zeros(())
    >>> fan_in = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    >>> compact(Neurons(fan_in, None, fan_in.T, torch.ones(2), torch.ones(2), one, zero)).size
    1
    """
    check_units(new, delta=True)
    mask = values(live(new))
    if mask is None or mask.ndim > 1:
        raise ValueError(
            "compact: called under vmap or while a graph is made, expected one set of units of known gains: how many are "
            "kept is a value, and members keep units of different number; keep masked units, or call compact on the result"
        )
    return taken(new, mask.nonzero()[:, 0])


@typed
def scale_neurons(new: Neurons, *, fan_in: Factor = 1.0, fan_out: Factor = 1.0) -> Neurons:
    """`new` with fan_in (and its bias) times a and fan_out times b: numbers, scalar tensors, or `[k]`, one per unit.

        gains_j -> a b gains_j,      eigenvalues λ_j -> sqrt(|a b|) λ_j,

    since the slope is linear in either side, and λ_j² is a decrease.  With a kink at 0, the first holds for a >= 0.

    Raises ValueError for factors of another shape, or where `new` brings a joint delta.

    >>> import torch
    >>> one, zero = torch.ones(()), torch.zeros(())
    >>> new = Neurons(torch.ones(1, 2), None, torch.ones(1, 1), torch.ones(1), torch.ones(1), one, zero)
    >>> scaled = scale_neurons(new, fan_in=2.0, fan_out=2.0)
    >>> scaled.fan_in, scaled.eigenvalues, scaled.gain
    (tensor([[2., 2.]]), tensor([2.]), tensor(4.))
    """
    check_units(new)
    a, b = (_factor(new, f, name) for f, name in ((fan_in, "fan_in"), (fan_out, "fan_out")))
    gains = a * b * new.gains
    return dataclasses.replace(
        new,
        fan_in=a[:, None] * new.fan_in,
        fan_in_bias=None if new.fan_in_bias is None else a * new.fan_in_bias,
        fan_out=new.fan_out * b,
        eigenvalues=positive_root((a * b).abs()) * new.eigenvalues,
        gains=gains,
        gain=gains.sum(),
    )


@typed
def merge_neurons(a: Neurons, b: Neurons) -> Neurons:
    """The units of a, then those of b, for one pair: as many as both; eigenvalues are sorted in each part only.

    Raises ValueError where the units have other layers (inputs, outputs, bias), or bring a joint delta.

    >>> import torch
    >>> one, zero = torch.ones(()), torch.zeros(())
    >>> new = Neurons(torch.ones(1, 2), None, torch.ones(1, 1), torch.ones(1), torch.ones(1), one, zero)
    >>> merge_neurons(new, new).fan_out
    tensor([[1., 1.]])
    """
    check_units(a, "a")
    check_units(b, "b")
    owned(b, "b", a, Neurons, "optimal_neurons")
    alike(b, "b", a, "a")
    sides = [(n.fan_in.shape[1], n.fan_out.shape[0], *(t is not None for t in _optional(n))) for n in (a, b)]
    if sides[0] != sides[1]:
        raise ValueError(
            f"merge_neurons: b has (inputs, outputs, bias, gate, its bias) {sides[1]}, expected {sides[0]} as a has; give units "
            "of one pair"
        )
    join = lambda name: torch.cat([getattr(a, name), getattr(b, name)])
    return dataclasses.replace(
        a,
        fan_in=join("fan_in"),
        fan_in_bias=None if a.fan_in_bias is None else join("fan_in_bias"),
        fan_out=torch.cat([a.fan_out, b.fan_out], 1),
        eigenvalues=join("eigenvalues"),
        gains=join("gains"),
        gain=a.gain + b.gain,
        pair=b.pair if a.pair is None else joined(a.pair, b),
        norm=b.norm if a.norm is None else a.norm,
        gate=None if a.gate is None else join("gate"),
        gate_bias=None if a.gate_bias is None else join("gate_bias"),
    )


def _optional(new: Neurons) -> tuple[Tensor | None, ...]:
    return new.fan_in_bias, new.gate, new.gate_bias


def taken(new: Neurons, index: slice | Tensor) -> Neurons:
    """The units at these places."""
    gains = new.gains[index]
    return dataclasses.replace(
        new,
        fan_in=new.fan_in[index],
        fan_in_bias=None if new.fan_in_bias is None else new.fan_in_bias[index],
        fan_out=new.fan_out[:, index],
        eigenvalues=new.eigenvalues[index],
        gains=gains,
        gain=gains.sum(),
        gate=None if new.gate is None else new.gate[index],
        gate_bias=None if new.gate_bias is None else new.gate_bias[index],
    )


def _above(values: Tensor, threshold: Factor) -> Tensor:
    largest = values.amax() if len(values) else values.new_zeros(())
    return (values >= threshold * largest) & (values > 0)


def _factor(new: Neurons, factor: Factor, name: str) -> Tensor:
    t = torch.as_tensor(factor, dtype=new.fan_in.dtype, device=new.fan_in.device)
    if isinstance(factor, bool) or tuple(t.shape) not in ((), (new.size,)):
        raise ValueError(f"{name}: got {factor!r}, expected a number, a scalar tensor, or ({new.size},), one per unit")
    seen = values(t)
    if seen is not None and not bool(seen.isfinite().all()):
        raise ValueError(f"{name}: got {factor!r}, expected finite numbers")
    return t.expand(new.size)
