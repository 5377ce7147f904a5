"""Noise: how far statistics of finitely many samples are from those of the population, and which λ it makes by itself.

n samples, K parts of the data; r, q, taps as in `statistics`; H `[r+1, q taps]` the whitened target of `optimal_neurons`,
λ its singular values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import get_args

import torch
from torch import Tensor

from growth.checks.doors import door
from growth.checks.records import owned
from growth.closed_form.delta import Delta, optimal_delta
from growth.closed_form.gates import ungated
from growth.closed_form.neurons import Target, optimal_neurons
from growth.moments.first_order import MEANS, Statistics, check_statistics
from growth.moments.metric import InputMetric, OutputMetric, check_metric, on_outputs, output_root
from linmaps.checks import number
from linmaps.numerics.dtypes import working
from linmaps.numerics.eigen import eigh
from linmaps.numerics.numeric import positive_root
from linmaps.trees import record
from linmaps.trees.printed import cell, on_a_line


@record()
class StandardErrors:
    """Standard error of each mean statistic over all samples, scalars, in its units: √E|mean - expectation|², Frobenius.

    count: samples in all parts.

    >>> import torch
    >>> StandardErrors(*[torch.ones(())] * 7).S
    tensor(1.)
    """

    S: Tensor
    M: Tensor
    S_prev: Tensor
    M_prev: Tensor
    P: Tensor
    E: Tensor
    count: Tensor

    def __repr__(self) -> str:
        said = [f"{name} {cell(getattr(self, name))}" for name in MEANS]
        return on_a_line(self, [f"{cell(self.count)} samples", *said])


@door()
def standard_errors(parts: Iterable[Statistics]) -> StandardErrors:
    """Standard errors of the merged statistics of independent parts of the data, from how far the parts are apart.

        se² = V / n,    V = Σ_k n_k |T_k - T|² / (K - 1),    T = Σ_k n_k T_k / n

    for each statistic T: V is the variance of one sample, estimated without bias.  Infinite for a single part.
    parts: statistics of K batches or shards, an iterable that is gone through once; only running sums are kept.

    Raises ValueError without a part, TypeError for a part that is none.

    >>> import torch
    >>> from growth.strategies import from_rows
    >>> parts = [from_rows(*torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(i))) for i in range(8)]
    >>> standard_errors(parts).M < standard_errors(parts[:2]).M
    tensor(True)
    """
    total: Statistics | None = None
    squares: dict[str, Tensor] = {}
    seen = 0
    for seen, part in enumerate(parts, 1):
        owned(part, f"part {seen - 1}", total, Statistics, "growth.statistics")
        if total is None:
            squares = {n: torch.zeros_like(working(part.count)) for n in MEANS}
            total = part
            continue
        weight = working(total.count * part.count / (total.count + part.count))
        for n in MEANS:  # by Welford's recursion: no difference of large sums
            squares[n] = squares[n] + weight * (working(getattr(part, n)) - working(getattr(total, n))).square().sum()
        total = total + part
    if total is None:
        raise ValueError("parts: got none, expected the statistics of at least two parts of the data")
    dtype, over = total.S.dtype, seen - 1
    errors = {
        n: (positive_root(s / (over * working(total.count))) if over else torch.full_like(s, math.inf)).to(dtype)
        for n, s in squares.items()
    }
    return StandardErrors(**errors, count=total.count)


@door()
def split_half(first: Statistics, second: Statistics) -> StandardErrors:
    """Standard errors of `first + second` from the statistics of two halves (or any two parts) of the data.

        se = |T_1 - T_2| √(n_1 n_2) / (n_1 + n_2)

    `standard_errors` of two parts; of many batches that is the sharper estimate.

    >>> import torch
    >>> from growth.strategies import from_rows
    >>> a, b = (from_rows(*torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(i))) for i in range(2))
    >>> torch.isclose(split_half(a, b).M, torch.linalg.norm(a.M - b.M) / 2)
    tensor(True)
    """
    return standard_errors([first, second])


@door()
def noise_floor(
    stats: Statistics,
    probability: float = 0.01,
    *,
    input_metric: InputMetric | None = "covariance",
    output_metric: OutputMetric | None = None,
    shrinkage: float | Tensor = 0.0,
) -> Tensor:
    """The λ that gradients without any relation to the inputs of `before` exceed with at most this probability.

    If G is independent of b2, the n columns of √n H are a random mixture of rows with covariance Σ = E ⊗ I_taps, and the
    edge of its spectrum (with the identity Γ on the inputs, or S_prev if they are not whitened) is at most

        (√(|Γ| tr Σ) + √(tr Γ |Σ|) + √(2 log(1/probability) |Γ| |Σ|)) / √n,

    |·| the largest eigenvalue: the edge of Marchenko and Pastur for Σ = I, and what it becomes for other Σ (Chevet), with
    the deviation of a Gaussian process above its mean.  Exact bounds for Gaussian G, limits for many samples of others,
    one to three times what noise makes, the nearer the larger the layers; more cautious where the positions of a sample
    are unlike each other, and for the residual, which is smaller than G.
    Give it to `optimal_neurons(noise_floor=...)` of the same statistics and metrics.  Where the size of G depends on b2
    take `split_floor`.

    Raises ValueError for a probability outside (0, 1), an unknown metric, statistics that are not finite.
    Source: Davidson and Szarek, "Local operator theory, random matrices and Banach spaces" (2001), theorem 2.13; Chevet,
    "Séries de variables aléatoires gaussiennes à valeurs dans E ⊗ F" (1978).

    >>> import torch
    >>> from growth.strategies import from_rows
    >>> stats = from_rows(*torch.randn(3, 400, 2, generator=torch.Generator().manual_seed(0)))
    >>> optimal_neurons(stats, 2, noise_floor=noise_floor(stats)).eigenvalues
    tensor([0., 0.])
    """
    owned(stats, "stats", None, Statistics, "growth.statistics")
    ungated(stats, "noise_floor")
    _check(probability, input_metric, output_metric, shrinkage)
    check_statistics(stats, "S_prev", "E")
    deviation = math.sqrt(2 * math.log(1 / probability))
    return _edge(stats, input_metric, output_metric, shrinkage, deviation).to(stats.S.dtype)


@door()
def split_floor(
    first: Statistics,
    second: Statistics,
    probability: float = 0.01,
    *,
    target: Target = "residual",
    delta: Delta | None = None,
    input_metric: InputMetric | None = "covariance",
    output_metric: OutputMetric | None = None,
    shrinkage: float | Tensor = 0.0,
) -> Tensor:
    """The λ of noise in `first + second`, seen in the difference of two halves, and a margin for this probability.

        L + max(1, L / e) 2 √(log(1/probability) |Γ| |Σ| / n),    L = |H_1 - H_2| √(n_1 n_2) / n

    Whatever is common to both halves cancels and the rest has the law of the noise in H, also where the gradients of
    samples differ in size with b2.  The second term is the deviation of both from their mean (Γ and Σ as in
    `noise_floor`), more where L is above the edge e of noise of equal sizes.
    target, delta and metrics: those of the `optimal_neurons(first + second)` that the floor is for.

    Raises ValueError where `optimal_neurons` and `noise_floor` do.

    >>> import torch
    >>> from growth.strategies import from_rows
    >>> a, b = (from_rows(*torch.randn(3, 200, 2, generator=torch.Generator().manual_seed(i))) for i in range(2))
    >>> optimal_neurons(a + b, 2, noise_floor=split_floor(a, b)).eigenvalues
    tensor([0., 0.])
    """
    _check(probability, input_metric, output_metric, shrinkage)
    owned(first, "first", None, Statistics, "growth.statistics")
    owned(second, "second", first, Statistics, "growth.statistics")
    ungated(first, "split_floor")
    both = first + second
    part = first.count / both.count
    change = {n: getattr(first, n) - getattr(second, n) for n in ("M_prev", "P", "M")}
    apart = dataclasses.replace(both, **change)
    if target == "residual" and delta is None:
        delta = optimal_delta(both, output_metric=output_metric, shrinkage=shrinkage)
    elif delta is not None:
        owned(delta, "delta", both, Delta, "optimal_delta")
    if delta is not None:
        delta = dataclasses.replace(delta, pair=None)  # it is of the whole, not of the difference
    found = optimal_neurons(
        apart,
        1,
        target,
        delta=delta,
        input_metric=input_metric,
        output_metric=output_metric,
        shrinkage=shrinkage,
    )
    half = working(found.eigenvalues[0]) * working(part * (1 - part)).sqrt()
    metrics = input_metric, output_metric, shrinkage
    edge = _edge(both, *metrics, 0.0)
    margin = _edge(both, *metrics, math.sqrt(4 * math.log(1 / probability)), mean=False)
    larger = torch.where(half > edge, half / torch.where(edge > 0, edge, 1.0), 1.0)
    return (half + larger * margin).to(both.S.dtype)


def _edge(
    stats: Statistics,
    input_metric: InputMetric | None,
    output_metric: OutputMetric | None,
    shrinkage: float | Tensor,
    deviation: float,
    mean: bool = True,
) -> Tensor:
    E, S_prev = working(stats.E), working(stats.S_prev)
    if output_metric is not None:
        root, unit = output_root(stats, shrinkage)
        E = on_outputs(root, on_outputs(root, E / unit, 1).mT, 1)
    out_top, out_sum = _top(E), stats.taps * E.diagonal().sum()
    in_top, in_sum = torch.ones_like(out_top), (S_prev.detach().diagonal() > 0).sum().to(E.dtype)
    if input_metric is None:
        in_top, in_sum = _top(S_prev), S_prev.diagonal().sum()
    total = deviation * positive_root(in_top * out_top)
    if mean:
        total = total + positive_root(in_top * out_sum) + positive_root(in_sum * out_top)
    return total / working(stats.count).sqrt()


def _top(m: Tensor) -> Tensor:
    return eigh((m + m.mT) / 2)[0][-1:].sum()


def _check(
    probability: float, input_metric: InputMetric | None, output_metric: OutputMetric | None, shrinkage: float | Tensor
) -> None:
    check_metric(output_metric, shrinkage)
    if input_metric not in (None, *get_args(InputMetric)):
        raise ValueError(f'input_metric: got {input_metric!r}, expected "covariance" or None')
    number(probability, "probability", low=0, above=True, high=1, below=True, tensor=False)
