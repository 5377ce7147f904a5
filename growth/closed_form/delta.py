"""The optimal change of existing weights: the layer-wise natural gradient of the layer after a pair.

r, p, q as in `statistics`; ΔW `[q, p+1]`, its last column the bias.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from growth.checks.doors import door
from growth.checks.records import Axes, owned
from growth.moments.first_order import Statistics, check_statistics
from growth.moments.metric import OutputMetric, check_metric, shrunk
from growth.moments.solvers import check_solver, pseudo_solve
from growth.reading.pairs import Pair, bare
from linmaps.numerics.dtypes import working
from linmaps.trees import record
from linmaps.trees.printed import cell, on_a_line, sizes


@record(static=("output_metric", "pair"))
class Delta:
    """A change of `after`, to be subtracted: weight `[q, p]`, bias `[q]` (None without a bias), decrease `[]`.

    decrease is the slope of the mean loss along it: mean loss(W - t ΔW) = mean loss - t decrease + O(t²).
    output_metric: that of `optimal_delta` which made it; pair: that of the statistics (None: not known).

    >>> import torch
    >>> Delta(torch.ones(1, 2), None, torch.tensor(0.5)).bias is None
    True
    """

    weight: Tensor
    bias: Tensor | None
    decrease: Tensor
    output_metric: OutputMetric | None = dataclasses.field(default=None, repr=False)
    pair: Pair | None = dataclasses.field(default=None, repr=False)

    axes: ClassVar[Axes] = Axes({"weight": "qp", "bias?": "q", "decrease": ""}, cast=True)

    def __repr__(self) -> str:
        metric = None if self.output_metric is None else f"metric {self.output_metric}"
        change = sizes(self.weight, wider=" + bias" if self.bias is not None else "")
        return on_a_line(self, [self.pair, change, metric, f"decrease = {cell(self.decrease)}"], self.weight)

    @property
    def joined(self) -> Tensor:
        """`[weight | bias]`, as many columns as S."""
        return self.weight if self.bias is None else torch.cat([self.weight, self.bias[:, None]], 1)


def split(joined: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
    """`[weight | bias]` as its two parts."""
    return (joined[:, :-1], joined[:, -1]) if bias else (joined, None)


@door()
def optimal_delta(
    stats: Statistics,
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
    *,
    output_metric: OutputMetric | None = None,
    shrinkage: float | Tensor = 0.0,
) -> Delta:
    """The change of the layer `after` whose effect on its output is closest to the loss gradient, of minimum norm.

        ΔW = argmin E |G - ΔW b1|² = ((S + ridge I)⁺ M)' [q, p+1],     decrease = tr(M' ΔW')

    It is subtracted: W - t ΔW.  For the squared error t = 1 is the exact least-squares refit of the layer.
    ridge: added to the diagonal of S, in its units (input²).  rtol: eigenvalues of S below rtol times the largest count
    as zero (None: the dtype's accuracy); so duplicate, constant and dead inputs are harmless, and differentiable while
    the rank does not change.  None lets a Cholesky factorization replace the eigenvectors where no eigenvalue is close
    to zero; it is the same change, faster.
    output_metric="fisher": the natural gradient of the layer with Kronecker factors S and E,

        ΔW = E_α⁺ M' (S + ridge I)⁺,     E_α = (1 - α) E + α tr(E)/q I,   α = shrinkage,

    which does not change with the units of the output, as the plain change does; E may be exact, see `with_fisher`.

    Raises ValueError for a negative ridge or rtol, an unknown metric, a shrinkage outside [0, 1] or without a metric,
    and statistics that are not finite.
    Source: Verbockhaven et al., "Growing tiny networks" (2024); Martens and Grosse, "Optimizing neural networks with
    Kronecker-factored approximate curvature" (2015).

    >>> import torch, growth
    >>> f = lambda p, x: (x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.eye(2), "b.weight": torch.zeros(1, 2)}
    >>> data = torch.eye(2), torch.tensor([[1.0], [3.0]])
    >>> growth.optimal_delta(growth.statistics(f, p, data, growth.Pair("a", "b"), "squared_error"))
    Delta(Pair('a', 'b'), 1 x 2, decrease = 5, float32, cpu)
    """
    check_solver(ridge, rtol)
    owned(stats, "stats", None, Statistics, "growth.statistics")
    check_metric(output_metric, shrinkage)
    check_statistics(stats, "S", "M", *(["E"] if output_metric else []))
    change = pseudo_solve(working(stats.S), working(stats.M), ridge, rtol).mT
    if output_metric is not None:
        change = pseudo_solve(shrunk(stats.E, shrinkage), change)
    return make_delta(stats, change, output_metric)


def make_delta(stats: Statistics, joined: Tensor, output_metric: OutputMetric | None = None) -> Delta:
    """The record of a change `[q, p+1]`, with its slope tr(M' ΔW')."""
    weight, bias = split(joined.to(stats.S.dtype), stats.bias_after)
    return Delta(weight, bias, slope_of(stats, joined).to(stats.S.dtype), output_metric, bare(stats.pair))


def slope_of(stats: Statistics, joined: Tensor) -> Tensor:
    """tr(M' ΔW'), the decrease of a change `[q, p+1]`."""
    return (working(stats.M) * joined.mT).sum()
