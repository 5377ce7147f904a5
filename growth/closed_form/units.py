"""Neurons: new hidden units between two layers, as data; a unit that is zero on both sides is masked.

k new units, r inputs of `before`, q outputs of `after`, taps as in `statistics`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from growth.checks.records import Axes
from growth.closed_form.delta import Delta
from growth.moments.norms import NormMoments
from growth.reading.pairs import Pair
from linmaps.trees import record
from linmaps.trees.printed import cell, on_a_line, sizes


@record(static=("pair",))
class Neurons:
    """New hidden units: fan_in `[k, r]`, fan_in_bias `[k]` (None without a bias), fan_out `[q taps, k]`.

    eigenvalues `[k]`: singular values λ of the whitened N, descending; a unit with λ = 0 is masked (zero in, zero out).
    gains `[k]`: first-order decrease of the mean loss by each unit (loss per unit of amplitude); gain: their sum.  True
    slopes for an activation smooth at 0, and after `choose_sign`; of statistics alone, for one with a kink (ReLU), the mean
    of the slopes of a unit and of its opposite (-A_j, -Ω_j), which the better of the two exceeds.  Either may be negative, the
    loss then rises at first: of units for the residual target, which are made to go with the delta, when they go without it.
    sigma0: the activation at 0, which `grow` compensates.  delta: with joint=True the change to be applied along.
    gate `[k, r]`, gate_bias `[k]`: of units of a `Gated` pair their rows in the gate (None: no gate, or one without a bias).
    norm: the moments of inputs from which `grow` computes what the pair's batch norm gets (None: the identity's).
    pair: that of the statistics (None: not known), checked where the units are used.

    >>> import torch
    >>> zero = torch.zeros(())
    >>> Neurons(torch.ones(1, 3), None, torch.ones(2, 1), torch.ones(1), torch.ones(1), zero + 1, zero)
    Neurons(1 units: 3 -> 2, gain = 1, float32, cpu)
    """

    fan_in: Tensor
    fan_in_bias: Tensor | None
    fan_out: Tensor
    eigenvalues: Tensor
    gains: Tensor
    gain: Tensor
    sigma0: Tensor
    delta: Delta | None = None
    pair: Pair | None = dataclasses.field(default=None, repr=False)
    gate: Tensor | None = None
    gate_bias: Tensor | None = None
    norm: NormMoments | None = dataclasses.field(default=None, repr=False)

    axes: ClassVar[Axes] = Axes(
        {
            "fan_in": "kr",
            "fan_in_bias?": "k",
            "fan_out": "qk",
            "gate?": "kr",
            "gate_bias?": "k",
            "eigenvalues": "e",  # hand-picked units keep those of all
            "gains": "g",
            "gain": "",
            "sigma0": "",
        },
        cast=True,
    )

    def __repr__(self) -> str:
        r, q = (getattr(t, "shape", "??")[k] for t, k in ((self.fan_in, -1), (self.fan_out, -2)))
        bias = " + bias" if self.fan_in_bias is not None else ""
        units = f"{sizes(self.gains, 1)} {'units' if self.gate is None else 'gated units'}: {r}{bias} -> {q}"
        return on_a_line(self, [self.pair, units, f"gain = {cell(self.gain)}"], self.fan_in)

    @property
    def size(self) -> int:
        """Number of units, the masked ones included."""
        return self.fan_in.shape[-2]

    @property
    def joined(self) -> Tensor:
        """`[fan_in | fan_in_bias]`, as many columns as S_prev."""
        return self.fan_in if self.fan_in_bias is None else torch.cat([self.fan_in, self.fan_in_bias[:, None]], 1)

    @property
    def joined_gate(self) -> Tensor | None:
        """`[gate | gate_bias]`, as many columns as gate rows have numbers; None without a gate."""
        if self.gate is None or self.gate_bias is None:
            return self.gate
        return torch.cat([self.gate, self.gate_bias[:, None]], 1)


def live(new: Neurons) -> Tensor:
    """Which units are not masked, bool `[k]`."""
    return (new.joined != 0).any(1) | (new.fan_out != 0).any(0)


def check_units(new: Neurons, name: str = "new", *, delta: bool = False) -> None:
    """Raise unless `new` are units, without a joint delta if `delta` is False."""
    if not isinstance(new, Neurons):
        raise TypeError(f"{name}: got {type(new).__name__}, expected growth.Neurons")
    if new.delta is not None and not delta:
        raise ValueError(
            f"{name}: comes with the delta of a joint solution, which belongs to all of these units as they are; expected "
            "units alone: solve for another k, or give dataclasses.replace(new, delta=None)"
        )
