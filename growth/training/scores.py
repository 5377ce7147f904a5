"""Where to grow and when: scores of a pair, comparable across layers, and triggers that make of them numbers of units.

r, p, q as in `statistics`; k new units.  Scores are scalar tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import debug_unwrap

from fisher.checks.finiteness import finite
from fisher.pmat.layered.factored import KroneckerBlock
from growth.checks.doors import count, door
from growth.checks.records import owned
from growth.closed_form.delta import Delta, optimal_delta
from growth.closed_form.units import Neurons
from growth.moments.first_order import Statistics
from growth.moments.solvers import check_solver
from growth.reading.pairs import Pair, as_list, check_pairs
from linmaps.checks import alike, number
from linmaps.checks.annotations import typed
from linmaps.numerics import lapack
from linmaps.numerics.dtypes import working
from linmaps.numerics.eigen import pinv
from linmaps.trees import record


@typed
def improvement(new: Neurons | None, delta: Delta | None) -> Tensor:
    """The first-order decrease of the mean loss by a growth step, per unit of amplitude: delta.decrease + new.gain.

    Both are true slopes, so that improvements of different layers compare; of an activation with a kink at 0 after
    `choose_sign`, before it the gain is the mean over both signs of each unit.  Either part may be None.

    >>> import torch
    >>> improvement(None, Delta(torch.ones(1, 2), None, torch.tensor(0.5)))
    tensor(0.5000)
    """
    if new is not None:
        owned(new, "new", None, Neurons, "optimal_neurons")
    if delta is not None:
        owned(delta, "delta", new, Delta, "optimal_delta")
    if new is None and delta is None:
        raise ValueError("improvement: got neither new units nor a delta, expected at least one")
    parts = [t for t in (None if delta is None else delta.decrease, None if new is None else new.gain) if t is not None]
    return sum(parts[1:], parts[0])


@record(static=("names", "units"))
class Comparison:
    """Growth steps side by side, one per pair: decreases `[n]` of the deltas, gains `[n]` of the new units.

    improvements is their sum, best the index `[]` of the largest.  Prints as a table; of an ensemble (fields
    `[members, n]`) mean ± standard deviation.

    >>> import torch
    >>> Comparison(("a - b", "b - c"), (2, 2), torch.tensor([0.5, 0.25]), torch.tensor([1.0, 3.0]))
     pair  units  decrease  gain  improvement
    a - b      2       0.5     1          1.5
    b - c      2      0.25     3         3.25  best
    """

    names: tuple[str, ...]
    units: tuple[int, ...]
    decreases: Tensor
    gains: Tensor

    @property
    def improvements(self) -> Tensor:
        return self.decreases + self.gains

    @property
    def best(self) -> Tensor:
        return self.improvements.argmax(-1)

    def __repr__(self) -> str:
        d, g, total = (plain(t).movedim(-1, 0) for t in (self.decreases, self.gains, self.improvements))
        best = int(total.reshape(len(total), -1).mean(1).argmax())
        rows = [
            [name, k, d[i], g[i], total[i], "best" if i == best else ""]
            for i, (name, k) in enumerate(zip(self.names, self.units))
        ]
        return aligned(["pair", "units", "decrease", "gain", "improvement", ""], rows)


@typed
def compare(pairs: Sequence[Pair], news: Any, deltas: Any) -> Comparison:
    """The growth steps of several pairs as a `Comparison`: lists of new units and of deltas, entries may be None.

    Raises ValueError for lists of other lengths and pairs without any step.

    >>> import torch
    >>> change = Delta(torch.ones(1, 2), None, torch.tensor(0.5))
    >>> compare([Pair("a", "b"), Pair("b", "c")], None, [change, change]).improvements
    tensor([0.5000, 0.5000])
    """
    each, _ = check_pairs(pairs)
    units, changes = as_list(news, len(each), "news"), as_list(deltas, len(each), "deltas")
    for pair, n, d in zip(each, units, changes):
        for step, name, kind, made in ((n, "news", Neurons, "optimal_neurons"), (d, "deltas", Delta, "optimal_delta")):
            if step is not None:
                owned(step, name, pair, kind, made)
    totals = [improvement(n, d) for n, d in zip(units, changes)]
    zero = torch.zeros_like(totals[0])
    return Comparison(
        tuple(f"{p.before} - {p.after}" for p in each),
        tuple(0 if n is None else n.size for n in units),
        torch.stack([zero if d is None else d.decrease for d in changes]),
        torch.stack([zero if n is None else n.gain for n in units]),
    )


@door()
def senn_score(
    stats: Statistics, ridge: float | Tensor = 0.0, *, new: Neurons | None = None, of: str = "new"
) -> Tensor:
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
    if of not in ("new", "layer") or (of == "layer" and new is not None):
        raise ValueError(f'of: got {of!r}{" with new" if new is not None else ""}, expected "new", or "layer" alone')
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
    if k is not None:
        count(k)
    M = working(stats.slope) * working(stats.M_prev)
    if k is None:
        return (M * M).sum().to(stats.S.dtype)
    values = lapack.svdvals(M)[:k]
    return (values * values).sum().to(stats.S.dtype)


def plain(value: Tensor) -> Tensor:
    """The numbers of a tensor, for printing: detached, out of all transforms, float64 on the CPU."""
    return debug_unwrap(value, recurse=True).detach().to("cpu", torch.float64)


def cell(value: Any) -> str:
    """A number as text of four digits; of several, as over an ensemble, mean ± standard deviation.

    >>> import torch
    >>> cell(torch.tensor(0.25)), cell(3), cell(torch.tensor([1.0, 2.0]))
    ('0.25', '3', '1.5 ± 0.71')
    """
    if not isinstance(value, Tensor):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    t = plain(value)
    if t.numel() == 1:
        return f"{t.item():.4g}"
    return f"{t.mean().item():.4g} ± {t.std().item():.2g}" if t.numel() else "-"


def aligned(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with columns aligned to the right, but a last one without a name.

    >>> print(aligned(["units", "loss", ""], [[2, 1.5, ""], [14, 0.25, "best"]]))
    units  loss
        2   1.5
       14  0.25  best
    """
    lines = [list(head), *([c if isinstance(c, str) else cell(c) for c in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths)).rstrip() for line in lines)
