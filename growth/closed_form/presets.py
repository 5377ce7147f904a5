"""Known ways to grow, as settings of the closed form: which side is optimal, which is zero, small or random.

k new units, fan_in A `[k, r+1]` (last column the bias), fan_out Ω `[q taps, k]`; r, q, taps as in `statistics`.  All return
`Neurons` whose gains are true slopes, so 0 where one side is zero: then `gradient_norms` says what a unit will learn.

No preset leaves dead units.  Where σ has a kink at 0, the sign of a unit is such that it is active for some input (known
from E[b2], if either layer has a bias), and a side that is zero is the size √tiny of the dtype if σ'(0) were 0 otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from growth.checks.doors import count, door
from growth.checks.records import owned
from growth.closed_form.delta import split
from growth.closed_form.draws import drawing, standard
from growth.closed_form.gates import dealt, ungated
from growth.closed_form.neurons import optimal_neurons
from growth.closed_form.normalization import check_positive
from growth.closed_form.sides import descent, input_size, met_inputs, random_sides, steep_sign, with_weights
from growth.closed_form.units import Neurons
from growth.moments.first_order import Statistics, check_statistics
from growth.reading.pairs import bare
from linmaps.checks import alike, number
from linmaps.numerics.dtypes import working
from linmaps.numerics.numeric import positive_root


@door()
def tiny(stats: Statistics, k: int, **options: Any) -> Neurons:
    """TINY: the optimal units for what the layer after cannot do by itself (residual), to be added without a delta.

    `optimal_neurons(stats, k, "residual", **options)`; on a network with a kink at 0 let `choose_sign` follow.

    Source: Verbockhaven et al., "Growing tiny networks" (2024).

    >>> from growth.strategies import from_rows, rows
    >>> tiny(from_rows(*rows(0, 20, 3, 2, 2)), 2).size
    2
    """
    new = optimal_neurons(stats, k, "residual", **options)
    turn = steep_sign(stats, working(new.joined)).to(new.fan_in.dtype)
    bias = None if new.fan_in_bias is None else turn * new.fan_in_bias
    return dataclasses.replace(new, fan_in=turn[:, None] * new.fan_in, fan_in_bias=bias, fan_out=turn * new.fan_out)


@door()
def gradmax(
    stats: Statistics,
    k: int,
    *,
    scale: float | Tensor = 1e-3,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    **options: Any,
) -> Neurons:
    """GradMax: outgoing weights of norm 1 that maximise the gradient of the incoming ones, which are small.

        -M_prev = Σ s_j u_j v_j',   Ω_j = v_j,   A_j = ε u_j,   ε = scale / √(tr S_prev / rows),

    so that max over |Ω_j| = 1, orthogonal, of Σ_j |M_prev Ω_j|² is attained; eigenvalues are s_j = |M_prev Ω_j|.  A_j, along
    the descent direction, is not 0, where ReLU would have no gradient; pre-activations have root mean square at most
    `scale`, and so much the function moves.  For the norms of the paper see `normalize(kind="gradmax")`.

    generator or draws (standard normal `[k, r+1 + q taps]`): random units of these sizes in place of those beyond the
    rank, which are masked otherwise; their eigenvalues stay 0.  options: as of `optimal_neurons`.
    Raises ValueError for a scale that is not positive, draws of another shape, and where `optimal_neurons` does.

    Source: Evci et al., "GradMax: growing neural networks using gradient information" (2022).

    >>> from growth.strategies import from_rows, rows
    >>> gradmax(from_rows(*rows(0, 20, 3, 2, 2)), 2).fan_out.norm(dim=0)
    tensor([1.0000, 1.0000], dtype=torch.float64)
    """
    ungated(stats, "gradmax")
    check_positive(scale, "scale")
    found = optimal_neurons(stats, k, "gradient", input_metric=None, **options)
    root = positive_root(working(found.eigenvalues))
    random_in, random_out = random_sides(stats, found, generator, draws)
    out = working(found.fan_out) / torch.where(root > 0, root, 1.0) + random_out
    return with_weights(stats, found, scale / input_size(stats) * descent(stats, out, random_in), out)


@door()
def senn(
    stats: Statistics,
    k: int,
    *,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    **options: Any,
) -> Neurons:
    """Units with Ω = 0 whose incoming weights follow the natural gradient of the residual, with both metrics.

    fan_in of `optimal_neurons(stats, k, "residual", output_metric="fisher", **options)`: the directions in which the
    natural gradient of new outgoing weights is longest.  The function is preserved.  generator, draws: as in `gradmax`.

    Source: Mitchell et al., "Self-expanding neural networks" (2023), whose directions are these in closed form.

    >>> from growth.strategies import from_rows, rows
    >>> new = senn(from_rows(*rows(0, 20, 3, 2, 2)), 2)
    >>> new.fan_out.any(), new.gain, (new.eigenvalues > 0).all()
    (tensor(False), tensor(0., dtype=torch.float64), tensor(True))
    """
    return zero_out(stats, k, generator=generator, draws=draws, output_metric="fisher", **options)


@door()
def zero_out(
    stats: Statistics,
    k: int,
    *,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    **options: Any,
) -> Neurons:
    """Function-preserving: the incoming weights of `optimal_neurons(stats, k, **options)`, and Ω = 0.

    The first gradient step moves Ω, the next ones both sides.  eigenvalues are those of the solution, gains 0.
    generator, draws: as in `gradmax`.

    >>> from growth.strategies import from_rows, rows
    >>> zero_out(from_rows(*rows(0, 20, 3, 2, 2)), 2).fan_out.any()
    tensor(False)
    """
    found = _alone(optimal_neurons(stats, k, **options))
    random_in, _ = random_sides(stats, found, generator, draws)
    return with_weights(stats, found, working(found.joined) + random_in, 0 * working(found.fan_out))


@door()
def zero_in(
    stats: Statistics,
    k: int,
    *,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    **options: Any,
) -> Neurons:
    """Function-preserving: the outgoing weights of `optimal_neurons(stats, k, **options)`, and A = 0.

    The first gradient step moves A, the next ones both sides.  Where σ has a kink at 0, A is along this step, with
    pre-activations of at most √tiny of the dtype (1e-19 in float32, 1e-154 in float64): nothing for the function, but on
    one side of the kink, so that A has the gradient of that side.  eigenvalues are those of the solution, gains 0.  An
    activation with σ(0) = σ'(0) = 0, such as a square, gives no gradient there: take `zero_out` or `gradmax`.
    generator, draws: as in `gradmax`.

    >>> from growth.strategies import from_rows, rows
    >>> zero_in(from_rows(*rows(0, 20, 3, 2, 2)), 2).fan_in.any()
    tensor(False)
    """
    found = _alone(optimal_neurons(stats, k, **options))
    random_in, random_out = random_sides(stats, found, generator, draws)
    out = working(found.fan_out) + random_out
    least = torch.finfo(stats.S.dtype).tiny ** 0.5 / input_size(stats)
    A = torch.where(stats.slope_plus == stats.slope_minus, 0.0, least * descent(stats, out, random_in))
    new = with_weights(stats, found, A, out)
    return dataclasses.replace(new, gains=0 * new.gains, gain=0 * new.gain)


@door()
def random(
    stats: Statistics,
    k: int,
    *,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    std: float | Tensor | None = None,
    std_out: float | Tensor = 0.0,
) -> Neurons:
    """k random units, the most promising first: normal fan_in of deviation `std`, fan_out of `std_out` (0: preserving).

    std=None: that which gives pre-activations of mean square 1; the deviation of the weights that are there
    (`params[...].std()`) copies theirs.  With std_out > 0 the sign of A_j makes the slope at a smooth activation positive.

        λ_j = |A_j M_prev| / √(A_j S_prev A_j')

    are the eigenvalues, at most those of `optimal_neurons(stats, k, "gradient")`: what the best Ω_j could gain.  So the
    head of many candidates, `truncate(random(stats, 100, ...), 10)`, is a selection.  Without any gradient λ = 0.
    Inputs that are 0 in all data get weight 0.
    generator or draws (standard normal `[k, r+1 + q taps]`); without either fixed generic numbers, the same at every call.
    Units of a `Gated` pair have the gate rows of the statistics, in turn.

    >>> import torch
    >>> from growth.strategies import from_rows, rows
    >>> random(from_rows(*rows(0, 20, 3, 2, 2)), 4, generator=torch.Generator().manual_seed(0)).fan_in.shape
    torch.Size([4, 3])
    """
    count(k)
    owned(stats, "stats", None, Statistics, "growth.statistics")
    check_statistics(stats, "S_prev", "M_prev")
    for value, name in ((std, "std"), (std_out, "std_out")):
        if value is not None:
            number(value, name, low=0)
    S_prev, M_prev = working(stats.S_prev), working(stats.M_prev)
    if generator is None and draws is None:
        draws = 2**0.5 * drawing(None, M_prev)(k, sum(M_prev.shape))
    normal = standard((k, sum(M_prev.shape)), M_prev, generator, draws)
    if stats.gates is not None:
        std = 1 / input_size(stats) if std is None else std
        return dealt(stats, normal, lambda one, draws: random(one, len(draws), draws=draws, std=std, std_out=std_out))
    A = normal[:, : len(M_prev)] * (1 / input_size(stats) if std is None else std) * met_inputs(stats)
    squares = ((A @ S_prev) * A).sum(1)
    scores = positive_root(((A @ M_prev) ** 2).sum(1) / torch.where(squares > 0, squares, 1.0))
    order = scores.argsort(descending=True, stable=True)
    A, out = A[order], (std_out * normal[:, len(M_prev) :])[order].mT
    A = torch.where((A @ M_prev * out.mT).sum(1)[:, None] * stats.slope > 0, -A, A)
    fan_in, fan_in_bias = split(A, stats.bias_before)
    zero = A.new_zeros(k)
    new = Neurons(fan_in, fan_in_bias, out, scores[order], zero, zero.sum(), stats.sigma0)
    return with_weights(
        stats,
        dataclasses.replace(new, pair=bare(stats.pair), norm=stats.norm),
        A,
        out,
    )


@door()
def gradient_norms(stats: Statistics, new: Neurons) -> Tensor:
    """The norm `[k]` of the gradient of the mean loss with respect to all weights of each new unit, to first order.

        √(|σ'(0) M_prev Ω_j|² + |σ(0) E[G] + σ'(0) M_prev' A_j'|²)

    Exact for an activation smooth at 0, where one side is zero and A_j is small; with a kink σ' is the mean of both sides.
    In the units of loss per weight.

    >>> from growth.strategies import from_rows, rows
    >>> stats = from_rows(*rows(0, 20, 3, 2, 2))
    >>> new = gradmax(stats, 2, scale=1e-9)
    >>> (gradient_norms(stats, new) - new.eigenvalues).abs().max() < 1e-8
    tensor(True)
    """
    owned(stats, "stats", None, Statistics, "growth.statistics")
    ungated(stats, "gradient_norms")
    owned(new, "new", stats, Neurons, "optimal_neurons")
    alike(new, "new", stats, "the statistics")
    M_prev, slope = working(stats.M_prev), working(stats.slope)
    inward = slope * M_prev @ working(new.fan_out)
    outward = slope * (working(new.joined) @ M_prev).mT
    if stats.bias_after or stats.bias_before:  # without both σ(0) is 0
        mean = working(stats.M)[-1].repeat_interleave(stats.taps) if stats.bias_after else M_prev[-1]
        outward = outward + (working(stats.sigma0) * mean)[:, None]
    return positive_root((inward**2).sum(0) + (outward**2).sum(0)).to(stats.S.dtype)


def _alone(new: Neurons) -> Neurons:
    return dataclasses.replace(new, delta=None)  # a joint delta is for the units at full size
