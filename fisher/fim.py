"""fim: the Fisher information of a pure function at params, in any representation, in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher import check
from fisher.axes import batch_size
from fisher.columns import chunks
from fisher.columns import estimator as make_estimator
from fisher.fold import batches
from fisher.fold import check_finite as data_finite
from fisher.layers import LayerCollection
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.pmat import PMat, PMatKFAC
from fisher.reducers import REDUCERS, Reducer, leaf_rows
from fisher.taps import column_rows, pull
from linmaps import trees

SHARING = ("expand", "reduce")


def fim(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    representation: type[PMat] = PMatKFAC,
    likelihood: str | Likelihood = "categorical",
    estimator: str = "exact",
    layers: LayerCollection | None = None,
    generator: torch.Generator | None = None,
    n_samples: int = 1,
    chunk_size: int | None = None,
    progress: bool = False,
    *,
    noise: Tensor | None = None,
    sharing: str = "expand",
    check_finite: bool = True,
) -> Any:
    """Fisher information F = 1/B sum over b of J_b' H_b J_b of `f(params, x)`, as a matrix object.

    J_b is the Jacobian of f at x_b with respect to params, H_b the Fisher matrix of the output distribution at f(x_b).

    data: one batch x, `(x, target)`, or an iterable of those; the mean is over all examples seen.
    representation: PMatKFAC, PMatDiag or PMatDense.  likelihood: "categorical" (logits), "gaussian", or an object.
    estimator: "exact", or "mc" with `n_samples` targets drawn by `generator` (or by `noise` `[n, *y.shape]` under vmap).
    layers: from `LayerCollection.from_function`; made and checked here if not given (two forwards, four backwards more).
    chunk_size: output columns differentiated at once; memory is C B S O per layer for C columns.
    sharing: "expand" or "reduce", what KFAC does over positions.  check_finite: report NaN in data, params and result.

    One forward and one backward over C columns (C - 1 of C classes).  Pure; composes with vmap over stacked params, grad,
    jacrev, jacfwd.  Raises ValueError or TypeError that name path, what was got, what was expected and the cure.

    KFAC: Martens and Grosse (2015); expand and reduce: Eschenhagen et al. (2023).

    >>> import torch, fisher
    >>> f = lambda p, x: torch.tanh(x @ p["w"] + p["b"]) @ p["v"]
    >>> p = {"w": torch.ones(2, 3), "b": torch.zeros(3), "v": torch.eye(3)}
    >>> F = fisher.fim(f, p, torch.ones(4, 2), fisher.PMatKFAC)
    >>> F
    PMatKFAC(2 factored + 0 exact blocks, d = 18, 36 numbers stored, float32, cpu)
    >>> natural = F.solve({"w": torch.ones(2, 3), "b": torch.ones(3), "v": torch.ones(3, 3)}, regul=1e-2)
    """
    if representation not in REDUCERS:
        raise ValueError(
            f"representation: got {getattr(representation, '__name__', representation)!r}, expected one of "
            f"{sorted(r.__name__ for r in REDUCERS)}"
        )
    if sharing not in SHARING:
        raise ValueError(f"sharing: got {sharing!r}, expected one of {list(SHARING)}")
    columns = make_estimator(
        estimator, find_likelihood(likelihood), generator=generator, noise=noise, n_samples=n_samples
    )
    if check_finite:
        check.finite(params, "params", "the training has diverged: go back to finite parameters")
    seen, sums = 0, None
    for number, (x, _) in enumerate(batches(data, progress=progress, what="fim")):
        if noise is not None and number:
            raise ValueError("noise: got several batches, expected one; give a generator, or call fim once per batch")
        if check_finite:
            data_finite(x, f"data: batch {number}")
        if batch_size(x) == 0:
            continue
        if layers is None:
            layers = LayerCollection.from_function(f, params, x)
        reducer = REDUCERS[representation](layers, sharing)
        part = _one_batch(f, params, x, layers, columns, reducer, chunk_size)
        sums = part if sums is None else trees.add(sums, part)
        seen += batch_size(x)
    if sums is None or layers is None:
        raise ValueError("data: got no example, expected at least one; the mean over no example is not defined")
    inputs, summed = trees.scale(1.0 / seen, sums)
    made = REDUCERS[representation](layers, sharing).finish(inputs, summed)
    if check_finite:
        check.finite(made, "fim", "f's outputs or their gradients overflow at these params and data")
    return made


def _one_batch(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    layers: LayerCollection,
    columns: Callable[[Tensor], Tensor],
    reducer: Reducer,
    chunk_size: int | None,
) -> tuple[Any, Any]:
    """Sums over one batch: (those of the inputs, those of the columns)."""
    layers.layout.check(params, "params (of the LayerCollection)")
    y, kept, back = pull(f, params, x, layers, layers.tapped, reducer.keep)
    at_output = columns(y)
    if at_output.shape[0] == 0:  # one class: a distribution without parameters
        at_output = torch.zeros_like(y)[None]
    total = None
    free = tuple(layer.leaves[0] for layer in layers.exact)
    for chunk in chunks(at_output, chunk_size):
        g = column_rows(layers, back(chunk), batch_size(x))
        part = reducer.columns(kept, g, leaf_rows(f, params, x, free, chunk))
        total = part if total is None else trees.add(total, part)
    return reducer.inputs(kept), total
