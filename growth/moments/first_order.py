"""First-order statistics of a pair of layers: all that closed-form growth needs.

r inputs of `before`, p of `after`, q outputs of `after`; with a bias the input has a last coordinate 1, so the sizes are
r+1 and p+1.  Of a convolution the inputs are the entries of a patch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from growth.checks.records import Axes, owned
from growth.moments import norms
from growth.moments.gates import GateMoments, merged
from growth.moments.norms import NormMoments
from growth.reading.pairs import Pair
from linmaps import trees
from linmaps.checks import alike, values
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.trees import record
from linmaps.trees.printed import cell, on_a_line

MEANS = ("S", "M", "S_prev", "M_prev", "P", "E")


@record(static=("bias_before", "bias_after", "pair", "taps"))
class Statistics:
    """What one pass leaves of the data; means over samples, so `a + b` merges passes over different samples.

    With b2 the input of `before`, b1 the input of `after` (each with a last coordinate 1 if that layer has a bias) and
    G = d loss_i / d a the gradient of a sample's loss at the output of `after` (no minus):

        S = E[b1 b1'] [p+1, p+1]        M = E[b1 G'] [p+1, q]         P = E[b2 b1'] [r+1, p+1]
        S_prev = E[b2 b2'] [r+1, r+1]   M_prev = E[b2 G'] [r+1, q]    E = E[G G'] [q, q]

    count: samples; positions: rows over all samples; sigma0, slope_plus, slope_minus: value and one-sided derivatives
    of the activation at 0.  Static: whether each layer has a bias, the pair, and taps.  S in units of input^2, M of input
    x loss/output.

    gates: of a `Gated` pair the moments of units whose gate rows are given; S_prev, M_prev, P are then those of an open gate.

    norm: of a pair with a batch norm (torch's, right behind `before`) the moments of b2 at the positions that it measures.

    taps e: positions of `after`'s kernel that a new unit may use.  More than one: G belongs to the output position, b2 to
    the hidden position under the tap (zero where that is padding, also its 1), S_prev sums over taps, and there is one
    column per output and tap: M_prev `[r+1, q e]`, output-major, and P `[e, r+1, p+1]`.

    Source: Verbockhaven, Rudkiewicz, Charpiat, Chevallier, "Growing tiny networks" (2024).

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.eye(2), "b.weight": torch.eye(2)}
    >>> x = torch.eye(2)
    >>> s = growth.statistics(f, p, (x, x), growth.Pair("a", "b"), "squared_error")
    >>> (s + s).count, torch.equal((s + s).S, s.S)
    (tensor(4.), True)
    """

    S: Tensor
    M: Tensor
    S_prev: Tensor
    M_prev: Tensor
    P: Tensor
    E: Tensor
    count: Tensor
    positions: Tensor
    sigma0: Tensor
    slope_plus: Tensor
    slope_minus: Tensor
    gates: GateMoments | None = None
    norm: NormMoments | None = None
    bias_before: bool = True
    bias_after: bool = True
    pair: Pair | None = None
    taps: int = 1

    axes: ClassVar[Axes] = Axes(
        {"S": "aa", "M": "aq", "S_prev": "bb", "M_prev": "bt", "P": "*ba", "E": "qq"}
        | dict.fromkeys(("count", "positions", "sigma0", "slope_plus", "slope_minus"), "")
    )

    def __repr__(self) -> str:
        sides = ((self.S_prev, self.bias_before), (self.S, self.bias_after), (self.E, False))
        wide = [t.shape[-1] if isinstance(t, Tensor) else 0 for t, _ in sides]
        widths = " -> ".join(f"{n - 1} + bias" if one else f"{n}" for n, (_, one) in zip(wide, sides))
        widths += f", {self.taps} taps" if self.taps > 1 else ""
        widths += f", {self.gates.rows.shape[-2]} gates" if self.gates is not None else ""
        return on_a_line(self, [self.pair, f"{cell(self.count)} samples", widths], self.S)

    @full_precision()
    def crossed(self, change: Tensor) -> Tensor:
        """P ΔW', how the change `[q, p+1]` of `after` meets the inputs of `before`: `[r+1, q taps]`, like M_prev."""
        P = self.P.to(change.dtype)
        if self.taps == 1:
            return P @ change.mT
        return torch.einsum("erd,qd->rqe", P, change).flatten(1)

    @property
    def slope(self) -> Tensor:
        """The derivative of the activation at 0; where it has a kink there, the mean of both sides."""
        return (self.slope_plus + self.slope_minus) / 2

    @typed
    def __add__(self, other: Statistics) -> Statistics:
        if not isinstance(other, Statistics):
            return NotImplemented
        name = "Statistics + Statistics"
        owned(other, "other", self, Statistics, "growth.statistics")
        trees.check_like(other, self, name)
        alike(other, name, self, "the first")
        static = [(s.bias_before, s.bias_after, s.taps) for s in (self, other)]
        if static[0] != static[1]:
            raise ValueError(
                f"{name}: got (bias before, bias after, taps) {static[1]} after {static[0]}, expected statistics of one pair"
            )
        count = self.count + other.count
        share = other.count / count
        means: dict[str, Any] = {n: torch.lerp(getattr(self, n), getattr(other, n), share) for n in MEANS}
        pair = other.pair if self.pair is None else self.pair
        means["gates"] = merged(self.gates, other.gates, share)
        means["norm"] = norms.merged(self.norm, other.norm, share)
        return dataclasses.replace(self, **means, count=count, positions=self.positions + other.positions, pair=pair)


def check_statistics(stats: Statistics, *names: str) -> None:
    """Raise a ValueError that names what holds a NaN or an infinity: no factorization could say which it was."""
    found = [(n, t) for n in names if (t := values(getattr(stats, n))) is not None and t.numel()]
    bad = [n for n, t in found if not bool(torch.stack(torch.aminmax(t)).isfinite().all())]
    if bad:
        raise ValueError(
            f"statistics: {bad} are not finite, expected finite numbers; look for NaN or overflow in params and data "
            "(statistics with check_finite=True names the batch)"
        )
