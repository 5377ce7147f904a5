"""Units whose two sides are chosen apart: signs for which none is dead, sizes of inputs, descent, random sides.

k units, A `[k, r+1]` incoming with the bias, out `[q taps, k]` outgoing; r, q, taps as in `statistics`.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from growth.closed_form.delta import split
from growth.closed_form.draws import drawing, standard
from growth.closed_form.units import Neurons, live
from growth.moments.first_order import Statistics
from linmaps.numerics.dtypes import working
from linmaps.numerics.numeric import positive_root


def with_weights(stats: Statistics, found: Neurons, A: Tensor, out: Tensor) -> Neurons:
    """`found` with other weights, signs for which no unit is dead, and their slopes."""
    turn = steep_sign(stats, A)
    dtype = stats.S.dtype
    gains = (-working(stats.slope) * ((A @ working(stats.M_prev)) * out.mT).sum(1)).to(dtype)
    fan_in, fan_in_bias = split((turn[:, None] * A).to(dtype), stats.bias_before)
    return dataclasses.replace(
        found,
        fan_in=fan_in,
        fan_in_bias=fan_in_bias,
        fan_out=(turn * out).to(dtype),
        eigenvalues=found.eigenvalues.to(dtype),
        gains=gains,
        gain=gains.sum(),
    )


def steep_sign(stats: Statistics, A: Tensor) -> Tensor:
    """The sign for which each unit is on the steeper side of a kink for the mean input, so for some input: `[k]`."""
    one = A.new_ones(len(A))
    if stats.bias_before:
        mean = working(stats.S_prev)[-1]
    elif stats.bias_after:
        mean = working(stats.P)[..., -1]
        mean = mean.sum(0) if stats.taps > 1 else mean
    else:
        return one
    steeper = working(stats.slope_plus.abs() - stats.slope_minus.abs())
    return torch.where((A.detach() @ mean.detach()) * steeper.detach() < 0, -one, one)


def descent(stats: Statistics, out: Tensor, otherwise: Tensor) -> Tensor:
    """Unit rows along which Ω makes A descend, -σ'(0) M_prev Ω; where M_prev Ω is 0 the rows `otherwise`, normalized."""
    rows = torch.where(stats.slope < 0, 1.0, -1.0).to(out.dtype) * (working(stats.M_prev) @ out).mT
    rows = torch.where((rows != 0).any(1, keepdim=True), rows, otherwise)
    peak = rows.detach().abs().amax(1, keepdim=True)
    rows = rows / torch.where(peak > 0, peak, 1.0)  # squares stay away from underflow
    norms = positive_root((rows**2).sum(1, keepdim=True))
    return rows / torch.where(norms > 0, norms, 1.0)


def input_size(stats: Statistics) -> Tensor:
    """Root mean square of an input row of `before`, its 1 included."""
    S_prev = working(stats.S_prev)
    rows = S_prev[-1, -1] if stats.bias_before else working(stats.positions / stats.count) * stats.taps
    size = positive_root(S_prev.diagonal().sum() / rows)
    return torch.where(size > 0, size, 1.0)


def met_inputs(stats: Statistics) -> Tensor:
    """1 for inputs that are not always 0, such as the padding row of a table, else 0, `[r+1]`; 1 if all are."""
    met = stats.S_prev.detach().diagonal() != 0
    return (met | ~met.any()).to(working(stats.S_prev).dtype)


def random_sides(
    stats: Statistics, found: Neurons, generator: torch.Generator | None, draws: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Random rows of mean square pre-activation 1 and columns of norm 1 for masked units, zero for the others."""
    M_prev = working(stats.M_prev)
    if generator is None and draws is None:
        return M_prev.new_zeros(found.size, len(M_prev)), M_prev.new_zeros(M_prev.shape[1], found.size)
    normal = standard((found.size, sum(M_prev.shape)), M_prev, generator, draws)
    masked = found.eigenvalues == 0
    A, out = normal[:, : len(M_prev)] / input_size(stats) * met_inputs(stats), normal[:, len(M_prev) :].mT
    return torch.where(masked[:, None], A, 0.0), torch.where(masked, out / positive_root((out**2).sum(0)), 0.0)


def awake(new: Neurons, t: Tensor, stats: Statistics) -> tuple[Neurons, Tensor]:
    """(new, amplitude) of the same effect without dead units: masked ones get generic incoming weights.

    Where t = 0 the amplitude becomes 1 and fan_out zero; generic rows have pre-activations of mean square about 1, and
    the sign for which their mean is positive.
    """
    idle = t <= 0
    amplitude = torch.where(idle, 1.0, t)
    k, d = new.joined.shape
    rows = drawing(None, new.fan_in)(k, d) * met_inputs(stats).to(new.fan_in)
    energy = stats.S_prev.diagonal().sum() * amplitude / 2
    rows = rows / torch.where(energy > 0, energy, 1.0).sqrt()
    mean = stats.S_prev[-1] if stats.bias_before else stats.S_prev.new_ones(d)
    rows = torch.where((rows @ mean)[:, None] < 0, -rows, rows)
    masked, r = ~live(new), new.fan_in.shape[1]
    bias = new.fan_in_bias
    return dataclasses.replace(
        new,
        fan_in=torch.where(masked[:, None], rows[:, :r], new.fan_in),
        fan_in_bias=None if bias is None else torch.where(masked, rows[:, -1], bias),
        fan_out=torch.where(idle, 0.0, new.fan_out),
    ), amplitude
