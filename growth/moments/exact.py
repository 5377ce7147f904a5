"""The exact Fisher matrix at the outputs of a layer, in place of E: an expectation over targets that the model draws.

q outputs of `after`; C columns of the output's Fisher.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast, overload

from torch import Tensor

from fisher import LayerCollection
from fisher.checks.arguments import detached
from fisher.checks.finiteness import finite
from fisher.collector.taps import column_rows, pull
from fisher.distributed.marks import Symmetric
from fisher.distributed.stages import Reduce, callable_or_none, over_all
from fisher.likelihoods import Categorical, Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.columns import estimator
from fisher.likelihoods.names import LikelihoodName
from growth.checks.buffers import counters_fixed
from growth.checks.data import examples, few
from growth.checks.doors import door
from growth.checks.records import owned
from growth.moments.first_order import Statistics
from growth.reading.between import written_out
from growth.reading.locate import located
from growth.reading.pairs import Pair, as_list, check_pairs
from linmaps.numerics.dtypes import working
from linmaps.trees.tree import Tree


@overload
def output_fisher(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Pair,
    likelihood: LikelihoodName | Likelihood = ...,
    *,
    layers: LayerCollection | None = ...,
    chunk_size: int | None = ...,
    progress: bool = ...,
    check_finite: bool = ...,
    reduce: Reduce | None = ...,
) -> Tensor: ...
@overload
def output_fisher(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Sequence[Pair],
    likelihood: LikelihoodName | Likelihood = ...,
    *,
    layers: LayerCollection | None = ...,
    chunk_size: int | None = ...,
    progress: bool = ...,
    check_finite: bool = ...,
    reduce: Reduce | None = ...,
) -> list[Tensor]: ...
@door("f")
def output_fisher(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Pair | Sequence[Pair],
    likelihood: LikelihoodName | Likelihood = "categorical",
    *,
    layers: LayerCollection | None = None,
    chunk_size: int | None = None,
    progress: bool = False,
    check_finite: bool = True,
    reduce: Reduce | None = None,
) -> Any:
    """The exact Fisher matrix at the output a of the layer `after`, `[q, q]`; for a list of pairs a list, in one pass.

        F = E[J' H J],    J = d y / d a,    H the Fisher matrix of the output distribution at y

    (mean over samples, summed over the positions of a), the expectation of E over targets drawn by the model: it needs no
    targets, and no sampling.  For the softmax of C classes H = diag(π) - π π'.
    likelihood: a name of `fisher.likelihoods` ("categorical": logits `[B, ..., C]`, classes last, as in `statistics`) or
    an object.  data: x, `(x, target)`, or an iterable of those; positions whose target is the likelihood's ignore_index count
    nowhere.  layers, progress, check_finite, reduce: as in `statistics`; a rank without samples has layers given.
    chunk_size: columns of the root of H differentiated at once; None: all.
    Cost: one forward and one backward over the C - 1 columns per batch.

    Source: Amari, "Natural gradient works efficiently in learning" (1998); Martens, "New insights and perspectives on the
    natural gradient method" (2020), section 8.

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.eye(2), "b.weight": torch.zeros(2, 2)}
    >>> growth.output_fisher(f, p, torch.eye(2), growth.Pair("a", "b"))
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """
    pairs, alone = check_pairs(pair)
    callable_or_none(reduce)
    f, params = counters_fixed(f, detached(params))
    rule = Categorical(class_axis=-1) if likelihood == "categorical" else find_likelihood(likelihood)
    columns = estimator("exact", rule)
    sums: list[Tensor] = []
    samples = 0
    how = {"progress": progress, "check_finite": check_finite, "none": reduce is not None}
    for _, x, target, n in examples(data, params, what="output Fisher", **how):
        if layers is None:
            layers = LayerCollection.from_function(f, params, few(x))
        known: LayerCollection = layers
        pairs = [written_out(f, params, p, known, few(x)) for p in pairs]
        uses = [located(known, params, p).after[0] for p in pairs]  # into a sum the gradient is the same
        y, _, back = pull(f, params, x, known, tuple(sorted(set(uses))), lambda *_: ())
        for part in columns.parts(y, target, chunk_size):
            new = _moments(column_rows(known, back(part), n), uses)
            sums = [s + t for s, t in zip(sums, new)] if sums else new
        samples += n
    total, count = over_all(reduce, [Symmetric(s) for s in sums] or None, samples)
    means = [s / count for s in total]
    if check_finite:
        finite(means, "output_fisher", "f's outputs or their derivatives overflow at these params and data")
    return means[0] if alone else means


def _moments(g: dict[int, Tensor], uses: Sequence[int]) -> list[Tensor]:
    """g'g of these uses: gradients of one chunk of columns are gone before the next."""
    rows = (working(g[k]).flatten(0, 2) for k in uses)
    return [r.mT @ r for r in rows]


@door("f")
def with_fisher(
    stats: Tree,
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Pair | Sequence[Pair],
    likelihood: LikelihoodName | Likelihood = "categorical",
    **options: Any,
) -> Tree:
    """`stats` with E replaced by the exact Fisher matrix at the output of `after`: see `output_fisher` for the options.

    The empirical E is that of the gradients at the given targets and shrinks as they are fitted; the exact one does not.
    Lists of pairs and of statistics give a list.

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.eye(2), "b.weight": torch.zeros(2, 2)}
    >>> data, pair = (torch.eye(2), torch.tensor([0, 1])), growth.Pair("a", "b")
    >>> growth.with_fisher(growth.statistics(f, p, data, pair), f, p, data, pair).E.trace()
    tensor(0.5000)
    """
    pairs, alone = check_pairs(pair)
    old = as_list(stats, len(pairs), "stats")
    for s, p in zip(old, pairs):
        owned(s, "stats", p, Statistics, "growth.statistics")
    new = []
    for s, p, E in zip(old, pairs, output_fisher(f, params, data, pairs, likelihood, **options)):
        if s.E.shape != E.shape:
            raise ValueError(
                f"{p}: stats have {s.E.shape[0]} outputs, the layer after has {E.shape[0]}; give statistics of this pair"
            )
        new.append(dataclasses.replace(s, E=E.to(s.E.dtype)))
    return cast(Tree, new[0] if alone else new)
