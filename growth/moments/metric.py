"""Metrics of outputs and of inputs: E as a preconditioner, shrunk to be safe; S_prev without what `after` sees already.

r inputs of `before`, p of `after`, q outputs of `after`, taps as in `statistics`.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from growth.moments.first_order import Statistics
from growth.moments.solvers import pseudo_root
from linmaps.checks import number
from linmaps.numerics.dtypes import working

OutputMetric = Literal["fisher"]
InputMetric = Literal["covariance"]


def check_metric(output_metric: OutputMetric | None, shrinkage: float | Tensor) -> None:
    """Raise unless the metric is None or "fisher" and the shrinkage, a number in [0, 1], has a metric."""
    if output_metric not in (None, *get_args(OutputMetric)):
        raise ValueError(
            f'output_metric: got {output_metric!r}, expected None or "fisher" (the matrix E of statistics)'
        )
    number(shrinkage, "shrinkage", low=0, high=1)
    if output_metric is None and (isinstance(shrinkage, Tensor) or shrinkage):
        raise ValueError(f'shrinkage: got {shrinkage} without a metric, expected output_metric="fisher" beside it')


def shrunk(E: Tensor, shrinkage: float | Tensor) -> Tensor:
    """(1 - α) E + α tr(E)/q I: the metric between E and its mean eigenvalue.

    >>> import torch
    >>> shrunk(torch.diag(torch.tensor([3.0, 1.0])), 0.5).diagonal()
    tensor([2.5000, 1.5000])
    """
    E = working(E)
    if not isinstance(shrinkage, Tensor) and shrinkage == 0:
        return E
    mean = E.diagonal().sum() / max(1, len(E))
    return (1 - shrinkage) * E + shrinkage * mean * torch.eye(len(E), dtype=E.dtype, device=E.device)


def output_root(stats: Statistics, shrinkage: float | Tensor) -> tuple[Tensor, Tensor]:
    """(R `[q, q]`, e) with R R' = (E_α / e)⁺ and e a constant about the size of E: numbers that no scale overflows."""
    E = shrunk(stats.E, shrinkage)
    size = E.detach().diagonal().abs().sum() / max(1, len(E))
    unit = torch.where(size > 0, size, 1.0)
    return pseudo_root(E / unit), unit


def on_outputs(R: Tensor, t: Tensor, taps: int) -> Tensor:
    """R' on the q of `[q taps, k]` (output-major, tap last), for each tap."""
    q, k = len(R), t.shape[1]
    return torch.einsum("qs,qek->sek", R, t.reshape(q, taps, k)).reshape(q * taps, k)


def schur(stats: Statistics, fit: Tensor) -> tuple[Tensor, Tensor]:
    """S_prev - P S⁺ P', what the inputs of `after` leave unexplained of those of `before`; and the size of its terms.

    fit = P S⁺ `[r+1, p+1]`.  Rounding of S, P and S_prev moves it by machine epsilon times |S_prev| + |P S⁺|² |S|.
    """
    P, S_prev = working(stats.P), working(stats.S_prev)
    metric = S_prev - fit @ P.mT
    if stats.bias_before and stats.bias_after:  # a constant that is an input of both is explained, exactly
        ones = torch.stack([t.detach()[-1, -1] for t in (S_prev, P, working(stats.S))])
        rest = torch.nn.functional.pad(metric[:-1, :-1], (0, 1, 0, 1))
        metric = torch.where((ones == ones[0]).all(), rest, metric)
    norm = torch.linalg.matrix_norm
    return metric, norm(S_prev.detach()) + norm(fit.detach()) ** 2 * norm(working(stats.S).detach())
