"""When to grow: scores of a pair, comparable across layers, and triggers that make of them numbers of units.

r, p, q as in `statistics`; k new units.  Scores are scalar tensors.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fisher.checks.finiteness import finite
from fisher.pmat.layered.factored import KroneckerBlock
from growth.checks.doors import count, door
from growth.checks.records import owned
from growth.closed_form.delta import optimal_delta
from growth.closed_form.gates import ungated
from growth.closed_form.units import Neurons
from growth.moments.first_order import Statistics
from growth.moments.solvers import check_solver
from linmaps.checks import alike, number
from linmaps.checks.annotations import typed
from linmaps.numerics import lapack
from linmaps.numerics.dtypes import working
from linmaps.numerics.eigen import pinv

Of = Literal["new", "layer"]


@door()
def senn_score(stats: Statistics, ridge: float | Tensor = 0.0, *, new: Neurons | None = None, of: Of = "new") -> Tensor:
    """The squared natural-gradient norm g'F⁻¹g of new outgoing weights on the residual, with a Kronecker-factored F.

        η = vec(Γ)' (C ⊗ G + ridge I)⁻¹ vec(Γ),    Γ = E[h R'],   C = E[h h'],   R = -(G - ΔW b1),

    in the convention of fisher.PMatKFAC: G = E · samples / positions, sums over positions in C and Γ.  h are the units
    `new` as linearised at 0, σ'(0) A b2; without `new` all inputs of `before` at once, which no choice of units exceeds.
    of="layer": the same of the weights there are, Γ = M and C = S.  The sum of both scores is a lower bound of that of
    the grown layer, and equals it where h is uncorrelated with b1.
    ridge: as `regul` of F.solve; 0 takes the pseudo-inverse.

    Raises ValueError for a negative ridge, another `of`, and `new` with of="layer".
    Source: Mitchell et al., "Self-expanding neural networks" (2023); Martens and Grosse (2015) for the factors.

    >>> from growth.strategies import from_rows, rows
    >>> stats = from_rows(*rows(0, 20, 3, 2, 2))
    >>> senn_score(stats) > senn_score(stats, 0.1)
    tensor(True)
    """
    check_solver(ridge, None)
    owned(stats, "stats", None, Statistics, "growth.statistics")
    if new is not None:
        owned(new, "new", stats, Neurons, "optimal_neurons")
        alike(new, "new", stats, "the statistics")
    if of not in get_args(Of) or (of == "layer" and new is not None):
        raise ValueError(f'of: got {of!r}{" with new" if new is not None else ""}, expected "new", or "layer" alone')
    if of == "new":
        ungated(stats, "senn_score")
    if of == "layer":
        gamma, C, taps = working(stats.M), working(stats.S), 1
    else:
        moved = working(optimal_delta(stats).joined)
        gamma, C, taps = working(stats.crossed(moved)) - working(stats.M_prev), working(stats.S_prev), stats.taps
        if new is not None:
            A = working(stats.slope) * working(new.joined).to(C.dtype)
            gamma, C = A @ gamma, A @ C @ A.mT
    G = working(stats.E) * (stats.count / stats.positions)
    V = gamma.reshape(len(C), len(G), taps).permute(2, 1, 0)
    if isinstance(ridge, Tensor) or ridge:
        symmetric = [(m + m.mT) / 2 for m in (C, G)]
        X = KroneckerBlock(*symmetric).solve(V, ridge, "default")
    else:
        X = pinv(G) @ V @ pinv(C)
    return (V * X).sum().to(stats.S.dtype)


@typed
def senn_trigger(added: Tensor, current: Tensor, *, ratio: float = 2.0, least: float = 0.0) -> Tensor:
    """Whether to grow, a bool: the score would rise to more than `ratio` times the current one, and by more than `least`.

    added, current: `senn_score(stats)` and `senn_score(stats, of="layer")`.  Both sides of the first condition scale
    alike, so it does not depend on the scale of the loss; `least` stops growth once nothing is left to gain.

    >>> import torch
    >>> senn_trigger(torch.tensor(3.0), torch.tensor(2.0)), senn_trigger(torch.tensor(1.0), torch.tensor(2.0))
    (tensor(True), tensor(False))
    """
    number(ratio, "ratio", low=1)
    number(least, "least", low=0)
    finite({"added": added, "current": current}, "senn_trigger", "compute scores at finite statistics")
    return (added > (ratio - 1) * current) & (added > least)


@door()
def north_score(stats: Statistics | Tensor, eps: float = 0.01) -> Tensor:
    """The effective rank φ of the hidden units: the fraction of singular values of H / √n above eps.

    H `[n, p]` are the activations b1, a row per sample and position; their singular values are the roots of the
    eigenvalues of the second moment H'H / n, from S without its bias coordinate, or from a matrix given as such.  1 for
    a layer without units.  A count: its derivative is 0.

    Raises ValueError for eps < 0 and a matrix that is not square.
    Source: Maile et al., "When, where, and how to add new neurons to ANNs" (2022).

    >>> import torch
    >>> north_score(torch.diag(torch.tensor([1.0, 0.04, 1e-6, 0.0])))
    tensor(0.5000)
    """
    if isinstance(stats, Statistics):
        p = stats.S.shape[-1] - int(stats.bias_after)
        S = working(stats.S)[:p, :p] * (stats.count / stats.positions)
        dtype = stats.S.dtype
    else:
        S, dtype = working(stats), stats.dtype
    if S.ndim != 2 or S.shape[0] != S.shape[1]:
        raise ValueError(f"north_score: got shape {tuple(S.shape)}, expected a square matrix [p, p], or Statistics")
    number(eps, "eps", low=0, cure="it is in units of the activations")
    if S.shape[0] == 0:
        return S.new_ones((), dtype=dtype)
    values = lapack.eigvalsh(S.detach()).to(dtype)
    return torch.where(values.isnan(), values, (values > eps**2).to(dtype)).mean()


@typed
def north_trigger(score: Tensor, baseline: Tensor, width: int, *, gamma: float = 0.97, most: int) -> Tensor:
    """How many units to add, an integer tensor in [0, most]: ⌊width (φ - γ φ_0)⌋.

    score, baseline: `north_score` now and at the start.  A layer whose units stay independent as it trains gets more of
    them, one whose units become redundant gets none.  most is static: solve for that many and `keep` the first.

    Raises ValueError for gamma < 0, most < 0.

    >>> import torch
    >>> north_trigger(torch.tensor(1.0), torch.tensor(1.0), 40, gamma=0.9, most=8)
    tensor(4)
    """
    number(gamma, "gamma", low=0)
    count(most, "most")
    count(width, "width")
    finite({"score": score, "baseline": baseline}, "north_trigger", "compute scores at finite statistics")
    units = width * (score.detach() - gamma * baseline.detach())
    return (units + 1e-4).floor().clamp(0, most).to(torch.int64)  # 10 (1 - 0.9) is below 1 in floating point


@door()
def gradmax_score(stats: Statistics, k: int | None = None) -> Tensor:
    """The largest squared gradient norm that new incoming weights can get: σ'(0)² Σ_{j≤k} s_j², s_j of M_prev descending.

    That of k units with zero incoming weights and orthonormal outgoing ones; k=None: of as many as there are outputs,
    σ'(0)² |M_prev|².  Growing where it is largest grows where training will move fastest.

    Raises ValueError for k < 0.
    Source: Evci et al., "GradMax" (2022).

    >>> from growth.strategies import from_rows, rows
    >>> stats = from_rows(*rows(0, 20, 3, 2, 2))
    >>> (
    ...     gradmax_score(stats, 1) < gradmax_score(stats, 2),
    ...     (gradmax_score(stats, 2) - gradmax_score(stats)).abs() < 1e-12,
    ... )
    (tensor(True), tensor(True))
    """
    owned(stats, "stats", None, Statistics, "growth.statistics")
    ungated(stats, "gradmax_score")
    if k is not None:
        count(k)
    M = working(stats.slope) * working(stats.M_prev)
    if k is None:
        return (M * M).sum().to(stats.S.dtype)
    values = lapack.svdvals(M)[:k]
    return (values * values).sum().to(stats.S.dtype)
