"""The best new hidden units between two layers, in closed form.

k new units, r, p, q as in `statistics`; A `[k, r+1]` incoming (last column the bias), Ω `[q taps, k]`
outgoing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fisher.checks.agreement import generic
from growth.checks.doors import count, door
from growth.checks.records import owned
from growth.closed_form.delta import Delta, make_delta, optimal_delta, slope_of, split
from growth.closed_form.gates import best_of_gates
from growth.closed_form.select import keep as kept
from growth.closed_form.units import Neurons
from growth.moments.first_order import Statistics, check_statistics
from growth.moments.metric import InputMetric, OutputMetric, check_metric, on_outputs, output_root, schur, shrunk
from growth.moments.solvers import check_solver, pseudo_form, pseudo_solve
from growth.reading.pairs import bare
from linmaps.checks import alike, number, values
from linmaps.numerics.dtypes import working
from linmaps.numerics.eigen import eigh

Target = Literal["residual", "gradient"]


@door()
def optimal_neurons(
    stats: Statistics,
    k: int,
    target: Target = "residual",
    *,
    joint: bool = False,
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
    delta: Delta | None = None,
    input_metric: InputMetric | None = "covariance",
    output_metric: OutputMetric | None = None,
    shrinkage: float | Tensor = 0.0,
    threshold: float | Tensor = 0.0,
    noise_floor: float | Tensor | None = None,
) -> Neurons:
    """The k units whose joint effect on the output is the best rank-k approximation of the desired move.

    With the whitened target S_prev^{-1/2} N = Y diag(λ) Z',  N = -M_prev + P ΔW' (residual: what changing the layer
    after by ΔW leaves) or N = -M_prev (gradient):

        A = diag(√λ) Y' S_prev^{-1/2} [k, r+1],    Ω = Z diag(√λ) [q taps, k],    A_j S_prev A_j' = |Ω_j|² = λ_j,

    which minimise E |R - Ω A b2|², R = -(G - ΔW b1), and lower it by Σ λ_j².  The units are added:
    W -> [W, √t Ω], U -> [U; √t A].  gains = -σ'(0) A_j M_prev Ω_j is the exact slope in t of the mean loss, whatever the
    metrics, for an activation smooth at 0; for one with a kink σ' is the mean of both sides, and gains_j that of the slopes
    of (A_j, Ω_j) and (-A_j, -Ω_j): no moment of the data says more.  `choose_sign` finds both and takes the better.

    Metrics.  input_metric=None: I for S_prev, so that A_j A_j' = λ_j (large inputs count more; that of GradMax).
    output_metric="fisher": the desired move is the natural one and errors are measured by the metric of outputs E_α =
    (1 - α) E + α tr(E)/q I, α = shrinkage: the least of E |E_α^{1/2} (E_α⁺ R - Ω A b2)|², of S_prev^{-1/2} N E_α^{-1/2} =
    Y diag(λ) Z', with Ω = E_α^{-1/2} Z diag(√λ), Ω_j' E_α Ω_j = λ_j.  E may be exact: `with_fisher`.  With both metrics λ
    and what units do to the function are the same in all units of inputs and outputs.

    joint=True solves for units and ΔW at once: S_prev is replaced by its Schur complement S_prev - P S⁺ P', `delta` of
    the answer is ΔW + Ω A P S⁺ and must be applied with the units at the same amplitude; the drop is decrease(ΔW) + Σ
    λ_j², exactly, for linearised units.  The threshold on a difference is cautious, above all in float32; and on ReLU
    networks joint units with a line search were measured worse than the default.

    Of a `Gated` pair the units of each gate row a of the statistics (`statistics(..., gates=)`) are found so, with inputs
    σ(a b2) b2 in place of b2 and σ' = 1, and the k with the largest λ are taken, with their gate rows.  What units of two
    gates both explain counts for both, other than in `gated_neurons`, which searches the rows too.

    k is static; units beyond the rank (at most min(q taps, rank S_prev)), without gain or below rounding are zero rows at
    the end, and so are those with λ < threshold λ_1 (in [0, 1)) or λ < noise_floor (in units of λ: `growth.noise_floor`).
    ridge, rtol: as in `optimal_delta`, for S and for S_prev.  delta: a solve of `optimal_delta` to be used
    again, of the same output metric.
    The sign of a unit is fixed by a generic linear form of Ω_j, so that an ensemble equals the loop; where λ's are equal
    only what does not depend on the basis is a smooth function: ΩA, λ, gains.

    Raises ValueError for k < 0, an unknown target or metric, joint with target="gradient", without the input metric or
    with several taps, a delta of another shape, statistics that are not finite.
    Source: Verbockhaven et al., "Growing tiny networks" (2024); input_metric=None: Evci et al., "GradMax" (2022).

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.zeros(1, 2), "b.weight": torch.zeros(2, 1)}
    >>> data = torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> s = growth.statistics(f, p, data, growth.Pair("a", "b"), "squared_error")
    >>> new = growth.optimal_neurons(s, 3)
    >>> new.eigenvalues.round(decimals=3), new.gain.round(decimals=3)
    (tensor([2.1210, 0.7070, 0.0000]), tensor(5.))
    """
    owned(stats, "stats", None, Statistics, "growth.statistics")
    check_solver(ridge, rtol)
    check_metric(output_metric, shrinkage)
    _check(k, target, joint, input_metric, threshold, noise_floor, stats.taps)
    check_statistics(stats, "S", "M", "S_prev", "M_prev", "P", *(["E"] if output_metric else []))
    if stats.gates is not None:
        if joint:
            raise ValueError(
                "joint=True: got statistics of a gated pair, expected False; units of two gates have no joint solution"
            )
        if target == "residual" and delta is None:
            delta = optimal_delta(stats, ridge, rtol, output_metric=output_metric, shrinkage=shrinkage)
        rest: dict[str, Any] = {"ridge": ridge, "rtol": rtol, "delta": delta, "shrinkage": shrinkage}
        rest |= {"input_metric": input_metric, "output_metric": output_metric, "noise_floor": noise_floor}
        return kept(best_of_gates(stats, k, lambda one: optimal_neurons(one, k, target, **rest)), threshold)
    M_prev, S_prev = working(stats.M_prev), working(stats.S_prev)
    N, metric, size = -M_prev, S_prev if input_metric else None, None
    plain = fit = None
    if target == "residual":
        if joint:
            solved = pseudo_solve(
                working(stats.S), torch.cat([working(stats.M), working(stats.P).mT], 1), ridge, rtol
            ).split([stats.M.shape[1], len(S_prev)], 1)
            plain, fit = solved[0].mT, solved[1].mT
            metric, size = schur(stats, fit)
        if delta is not None:
            plain = _plain(stats, delta, output_metric, shrinkage)
        elif plain is None:
            plain = working(optimal_delta(stats, ridge, rtol).joined)
        N = N + working(stats.crossed(plain))
    form = _plain_form if metric is None else lambda t: pseudo_form(metric, t, ridge, rtol, size=size)
    root = None if output_metric is None else output_root(stats, shrinkage)
    floors = threshold, noise_floor, _scale(M_prev, None if metric is None else S_prev, root)
    A, fan_out, values = _decompose(N, form, root, k, stats.taps, floors)
    gains = -working(stats.slope) * ((A @ M_prev) * fan_out.mT).sum(1)
    again = None
    if fit is not None and plain is not None:
        natural = plain if output_metric is None else pseudo_solve(shrunk(stats.E, shrinkage), plain)
        again = make_delta(stats, natural + fan_out @ (A @ fit), output_metric)
    dtype = stats.S.dtype
    fan_in, fan_in_bias = split(A.to(dtype), stats.bias_before)
    return Neurons(
        fan_in,
        fan_in_bias,
        fan_out.to(dtype),
        values.to(dtype),
        gains.to(dtype),
        gains.sum().to(dtype),
        stats.sigma0,
        again,
        bare(stats.pair),
        norm=stats.norm,
    )


def _plain(stats: Statistics, delta: Delta, output_metric: OutputMetric | None, shrinkage: float | Tensor) -> Tensor:
    """The least-squares change of which a given delta is the natural one."""
    owned(delta, "delta", stats, Delta, "optimal_delta")
    moved = working(delta.joined)
    if tuple(moved.shape) != (stats.M.shape[1], stats.M.shape[0]):
        raise ValueError(
            f"delta: got [weight | bias] of shape {tuple(moved.shape)}, expected {tuple(stats.M.mT.shape)}; give "
            "optimal_delta of the same statistics"
        )
    alike(delta, "delta", stats, "the statistics")
    if delta.output_metric != output_metric:
        raise ValueError(
            f"delta: made with output_metric={delta.output_metric!r}, expected {output_metric!r} as for the units; the "
            "residual of one metric is none of another"
        )
    if delta.pair is not None:
        _same_solve(stats, delta, moved)
    return moved if output_metric is None else shrunk(stats.E, shrinkage) @ moved


def _same_solve(stats: Statistics, delta: Delta, moved: Tensor) -> None:
    """Raise a ValueError unless a delta has the decrease that these statistics give it."""
    bound = working(stats.M).norm() * moved.norm()
    own, given, size = (values(t) for t in (slope_of(stats, moved), working(delta.decrease), bound))
    if own is not None and given is not None and size is not None and bool(((own - given).abs() > 1e-3 * size).any()):
        raise ValueError(
            f"delta: its decrease is {float(given.flatten()[0]):.4g}, by these statistics {float(own.flatten()[0]):.4g}, "
            "expected the same; give optimal_delta of the same statistics"
        )


def _check(
    k: Any, target: Target, joint: bool, input_metric: InputMetric | None, threshold: Any, noise_floor: Any, taps: int
) -> None:
    count(k)
    if target not in get_args(Target):
        raise ValueError(f'target: got {target!r}, expected "residual" or "gradient"')
    if input_metric not in (None, *get_args(InputMetric)):
        raise ValueError(f'input_metric: got {input_metric!r}, expected "covariance" or None')
    if joint and target != "residual":
        raise ValueError('joint=True: got target="gradient", expected "residual"; both are solved for together')
    if joint and input_metric is None:
        raise ValueError(
            'joint=True: got input_metric=None, expected "covariance"; the joint optimum has its own metric'
        )
    if joint and taps > 1:
        raise ValueError(
            f'joint=True: got statistics with {taps} taps, expected 1; their positions overlap: use taps="centre" or '
            "joint=False"
        )
    number(threshold, "threshold", low=0, high=1, below=True)
    if noise_floor is not None:
        number(noise_floor, "noise_floor", low=0)


def _scale(M_prev: Tensor, S_prev: Tensor | None, root: tuple[Tensor, Tensor] | None) -> Tensor:
    """|M_prev|² / (|S_prev| |E|), the natural scale of λ²: rounding alone makes λ² of machine epsilon times this."""
    size = M_prev.new_ones(()) if S_prev is None else (S_prev * S_prev).sum().detach().sqrt()
    size = size if root is None else size * root[1] * len(root[0]) ** 0.5
    return (M_prev * M_prev).sum().detach() / torch.where(size > 0, size, 1.0)


def _plain_form(N: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    return N.mT @ N, lambda Z: N @ Z


def _decompose(
    N: Tensor,
    form: Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]],
    root: tuple[Tensor, Tensor] | None,
    k: int,
    taps: int,
    floors: tuple[float | Tensor, float | Tensor | None, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """A `[k, r+1]`, Ω `[q taps, k]`, λ `[k]` from R' N' S_prev⁺ N R, whose eigenvectors are Z: no root of S_prev."""
    Q = N.shape[1]
    peak = N.detach().abs().amax() if N.numel() else N.new_zeros(())
    unit = torch.where(peak > 0, peak, 1.0)  # keeps squares away from underflow at any scale of loss and inputs
    N = N / unit
    N = N if root is None else on_outputs(root[0], N.mT, taps).mT
    gram, back = form(N)
    squares, Z = (t.flip(-1) for t in eigh(gram))  # descending
    keep = min(k, Q)
    largest, squares, Z = squares.detach()[:1].sum(), squares[:keep], Z[:, :keep]
    out = Z if root is None else on_outputs(root[0].mT, Z, taps)
    turn = torch.where(generic(N.new_empty(Q)) @ out.detach() < 0, -1.0, 1.0).to(
        N.dtype
    )  # LAPACK's signs depend on rounding
    threshold, noise, scale = floors
    gauge = unit if root is None else unit / root[1].sqrt()
    seen = squares.detach()
    least = 8 * max(Q, 8) * torch.finfo(N.dtype).eps
    alive = (seen > least * largest) & (seen > least * scale / gauge**2) & (seen >= threshold**2 * largest)
    values = torch.where(alive, squares, 1.0).sqrt()
    if noise is not None:
        alive = alive & (values.detach() * gauge >= noise)
    half = values.sqrt()
    A = torch.where(alive[:, None], (turn * back(Z)).mT / half[:, None], 0.0) * gauge**0.5
    fan_out = torch.where(alive, turn * out * half, 0.0) * (gauge**0.5 * (1.0 if root is None else 1 / root[1].sqrt()))
    more, pad = k - keep, torch.nn.functional.pad
    return pad(A, (0, 0, 0, more)), pad(fan_out, (0, more)), pad(torch.where(alive, values, 0.0) * gauge, (0, more))
