"""The best new hidden units between two layers, in closed form.

k new units, r, p, q as in `statistics`; A `[k, r+1]` incoming (last column the bias), Ω `[q, k]` outgoing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growth.delta import Delta, check_solver, make_delta, optimal_delta, split
from growth.statistics import Statistics
from linmaps.linalg import eigh, pinv, working
from linmaps.trees import record


@record()
class Neurons:
    """New hidden units: fan_in `[k, r]`, fan_in_bias `[k]` (None without a bias), fan_out `[q, k]`.

    eigenvalues `[k]`: singular values λ of the whitened N, descending; a unit with λ = 0 is masked (zero in, zero out).
    gains `[k]`: first-order decrease of the mean loss by each unit (loss per unit of amplitude); gain: their sum.
    sigma0: the activation at 0, which `grow` compensates.  delta: with joint=True the change to be applied along.

    >>> import torch
    >>> zero = torch.zeros(())
    >>> Neurons(torch.ones(1, 3), None, torch.ones(2, 1), torch.ones(1), torch.ones(1), zero + 1, zero).size
    1
    """

    fan_in: Tensor
    fan_in_bias: Tensor | None
    fan_out: Tensor
    eigenvalues: Tensor
    gains: Tensor
    gain: Tensor
    sigma0: Tensor
    delta: Delta | None = None

    @property
    def size(self) -> int:
        """Number of units, the masked ones included."""
        return self.fan_in.shape[-2]

    @property
    def joined(self) -> Tensor:
        """`[fan_in | fan_in_bias]`, as many columns as S_prev."""
        return self.fan_in if self.fan_in_bias is None else torch.cat([self.fan_in, self.fan_in_bias[:, None]], 1)


def optimal_neurons(
    stats: Statistics,
    k: int,
    target: str = "residual",
    *,
    joint: bool = False,
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
    delta: Delta | None = None,
) -> Neurons:
    """The k units whose joint effect on the output is the best rank-k approximation of the desired move.

    With the whitened target S_prev^{-1/2} N = Y diag(λ) Z',  N = -M_prev + P ΔW' (residual: what changing the layer
    after by ΔW leaves) or N = -M_prev (gradient):

        A = diag(√λ) Y' S_prev^{-1/2} [k, r+1],    Ω = Z diag(√λ) [q, k],    A_j S_prev A_j' = |Ω_j|² = λ_j,

    which minimise E |R - Ω A b2|², R = -(G - ΔW b1), and lower it by Σ λ_j².  The units are added:
    W -> [W, √t Ω], U -> [U; √t A].  gains = -σ'(0) A_j M_prev Ω_j is the exact slope in t of the mean loss for an
    activation smooth at 0; for one with a kink σ' is the mean of both sides, and then the slope of the better sign of
    each unit is at least this: see `choose_sign`.

    joint=True solves for units and ΔW at once: S_prev is replaced by its Schur complement S_prev - P S⁺ P', `delta` of
    the answer is ΔW + Ω A P S⁺ and must be applied with the units at the same amplitude; the drop is decrease(ΔW) + Σ
    λ_j², exactly, for linearised units.  The threshold on a difference is cautious, above all in float32; and on ReLU
    networks joint units with a line search were measured worse than the default.

    k is static; units beyond the rank (at most min(q, rank S_prev)), without gain or below rounding are zero rows at
    the end.
    ridge, rtol: as in `optimal_delta`, for S and for S_prev.  delta: a solve of `optimal_delta` to be used again.
    The sign of a unit is fixed by a generic linear form of Ω_j, so that an ensemble equals the loop; where λ's are equal
    only what does not depend on the basis is a smooth function: ΩA, λ, gains.

    Raises ValueError for k < 0, an unknown target, joint with target="gradient", a delta of another shape.
    Source: Verbockhaven et al., "Growing tiny networks" (2024).

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.zeros(1, 2), "b.weight": torch.zeros(2, 1)}
    >>> data = torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> s = growth.statistics(f, p, data, growth.Pair("a", "b"), "squared_error")
    >>> new = growth.optimal_neurons(s, 3)
    >>> new.eigenvalues.round(decimals=3), new.gain.round(decimals=3)
    (tensor([2.1210, 0.7070, 0.0000]), tensor(5.))
    """
    check_solver(ridge, rtol)
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k: got {k!r}, expected an int, the number of units to add (it is static)")
    if k < 0:
        raise ValueError(f"k: got {k}, expected >= 0; use growth.prune to remove units")
    if target not in ("residual", "gradient"):
        raise ValueError(f'target: got {target!r}, expected "residual" or "gradient"')
    if joint and target != "residual":
        raise ValueError('joint=True: got target="gradient", expected "residual"; both are solved for together')
    M_prev, P, S_prev = working(stats.M_prev), working(stats.P), working(stats.S_prev)
    N, metric, size = -M_prev, S_prev, None
    inverse = moved = None
    if target == "residual":
        if joint:
            inverse = pinv(working(stats.S), ridge, rtol)
            metric, size = _schur(stats, inverse)
        if delta is None:
            delta = (
                make_delta(stats, (inverse @ working(stats.M)).mT)
                if inverse is not None
                else optimal_delta(stats, ridge, rtol)
            )
        moved = working(delta.joined)
        if tuple(moved.shape) != (stats.M.shape[1], stats.M.shape[0]):
            raise ValueError(
                f"delta: got [weight | bias] of shape {tuple(moved.shape)}, expected {tuple(stats.M.mT.shape)}; give "
                "optimal_delta of the same statistics"
            )
        N = N + P @ moved.mT
    A, fan_out, values = _decompose(N, pinv(metric, ridge, rtol, size=size), k, _floor(M_prev, S_prev))
    gains = -working(stats.slope) * ((A @ M_prev) * fan_out.mT).sum(1)
    dtype = stats.S.dtype
    solved = None
    if inverse is not None and moved is not None:
        solved = make_delta(stats, moved + fan_out @ (A @ P @ inverse))
    fan_in, fan_in_bias = split(A.to(dtype), stats.bias_before)
    return Neurons(
        fan_in,
        fan_in_bias,
        fan_out.to(dtype),
        values.to(dtype),
        gains.to(dtype),
        gains.sum().to(dtype),
        stats.sigma0,
        solved,
    )


def _schur(stats: Statistics, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """S_prev - P S⁺ P', what the inputs of `after` leave unexplained of those of `before`; and the size of its terms.

    Rounding of S, P and S_prev moves it by machine epsilon times |S_prev| + |P S⁺|² |S|.
    """
    P, S_prev = working(stats.P), working(stats.S_prev)
    fit = P @ inverse
    metric = S_prev - fit @ P.mT
    if stats.bias_before and stats.bias_after:  # the constant is an input of both: explained, exactly
        metric = torch.nn.functional.pad(metric[:-1, :-1], (0, 1, 0, 1))
    norm = torch.linalg.matrix_norm
    return metric, norm(S_prev.detach()) + norm(fit.detach()) ** 2 * norm(working(stats.S).detach())


def _floor(M_prev: Tensor, S_prev: Tensor) -> Tensor:
    """|M_prev|² / |S_prev|, the natural scale of λ²: rounding alone makes λ² of machine epsilon times this."""
    size = (S_prev * S_prev).sum().detach().sqrt()
    return (M_prev * M_prev).sum().detach() / torch.where(size > 0, size, 1.0)


def _decompose(N: Tensor, inverse: Tensor, k: int, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A `[k, r+1]`, Ω `[q, k]`, λ `[k]` from N' S_prev⁺ N `[q, q]`, whose eigenvectors are Z: no root of S_prev."""
    q = N.shape[1]
    peak = N.detach().abs().amax() if N.numel() else N.new_zeros(())
    unit = torch.where(peak > 0, peak, 1.0)  # keeps squares away from underflow at any scale of loss and inputs
    N = N / unit
    whitened = inverse @ N
    squares, Z = (t.flip(-1) for t in eigh(N.mT @ whitened))  # descending
    generic = torch.cos(1.7 * torch.arange(q, device=N.device)).to(N.dtype)
    Z = torch.where(generic @ Z.detach() < 0, -Z, Z)  # LAPACK's signs depend on rounding; these do not
    keep = min(k, q)
    squares, Z = squares[:keep], Z[:, :keep]
    rounding = 8 * max(q, 8) * torch.finfo(N.dtype).eps
    largest = squares.detach()[:1].sum()
    alive = (squares.detach() > rounding * largest) & (squares.detach() > rounding * floor / unit**2)
    values = torch.where(alive, squares, 1.0).sqrt()
    root = values.sqrt()
    A = torch.where(alive[:, None], (whitened @ Z).mT / root[:, None], 0.0)
    fan_out = torch.where(alive, Z * root, 0.0)
    more = k - keep
    pad = torch.nn.functional.pad
    A, fan_out = A * unit**0.5, fan_out * unit**0.5
    return pad(A, (0, 0, 0, more)), pad(fan_out, (0, more)), pad(torch.where(alive, values, 0.0) * unit, (0, more))
