"""A pass that sums nothing: the function kept with its data, PMatImplicit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fisher.checks import purity
from fisher.checks.axes import batch_size
from fisher.checks.reverse_mode import reverse
from fisher.collector.calls.batching import soundly
from fisher.derivatives.plain import plainly
from fisher.likelihoods.base import noticed
from fisher.passes.run import Pass, checked_batches
from fisher.pmat import PMat, PMatImplicit, PMatLowRank
from fisher.reducers import Options
from fisher.trials import modes
from linmaps import trees
from linmaps.numerics.numeric import running

FEW = 32  # examples that show what kind of output f has


def unsummed(run: Pass, data: Any, columns: Any, options: Options) -> PMat:
    """PMatImplicit of all batches, less the mean gradient's square if centered."""
    seen = list(checked_batches(run, data))
    f, params = run.f, run.params
    layers = run.found(seen[0][0]) if seen else run.layers  # refuses examples that are not apart
    if run.layers is not None and seen and run.check_finite:
        purity.steady(soundly(f), params, seen[0][0])
    if seen and run.check_finite:
        modes.forward(f, params, seen[0][0], "PMatImplicit")
    if layers is not None and layers.singly:
        raise ValueError(
            "PMatImplicit: a torch call or an autograd.Function in f has a wrong rule for torch.func.vmap, by which products "
            "with several vectors would be wrong; write it by other calls, or take another representation"
        )
    if run.layers is not None and not run.layers.complete:
        f, params = run.layers.restricted(f, params), run.layers.restrict(params)
    if seen:
        few = trees.map(lambda t: t[:FEW], seen[0][:2])
        y = f(params, few[0])
        noticed(run.columns.likelihood, y)
        run.columns.counts(y, few[1])
    F = PMatImplicit.of(f, params, seen, run.columns.likelihood, columns=columns, check=False, check_finite=False)
    F = F if layers is None else F.on_layers(layers)
    if not options.centered:
        return F
    total = sum(batch_size(x) for x, *_ in seen)
    mean: Any = None
    for x, target, weight in seen:
        y, back = _backward(f, params, x)
        part = trees.scale(1 / total, back(columns(y, target, weight)[0])[0])
        mean = running(mean, part)
    return F - PMatLowRank(trees.map(lambda t, p: t[None].to(p.dtype), mean, params))


def _backward(f: Callable[..., Tensor], params: Any, x: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    y, back = reverse(lambda p: plainly(f)(p, x), params)
    return y, back
