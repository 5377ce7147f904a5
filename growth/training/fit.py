"""Train, grow, train, ...: the recipe that ties statistics, closed forms, search, surgery and training, as one function.

r inputs of the pair, p hidden units, N samples in memory, B of them in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad
from tqdm import tqdm

from fisher.checks.axes import batch_size as count_samples
from fisher.checks.finiteness import finite
from growth.carry.state import grow_like
from growth.checks.data import DIVERGED
from growth.checks.doors import door
from growth.closed_form.delta import Delta, optimal_delta
from growth.closed_form.neurons import optimal_neurons
from growth.closed_form.sides import awake
from growth.closed_form.signs import choose_sign
from growth.closed_form.units import Neurons
from growth.moments.accumulation import statistics
from growth.moments.first_order import Statistics
from growth.reading.buffers import buffers_fixed
from growth.reading.layers import layers_of
from growth.reading.losses import Loss, LossName, per_sample
from growth.reading.pairs import Pair, check_pairs
from growth.surgery.enlarge import Scale, grow
from growth.training.descent import Optimizer, sgd
from growth.training.schedules import plans
from growth.training.search import line_search
from growth.training.steps import Fit, Step
from linmaps import trees
from linmaps.checks import number
from linmaps.trees.seals import sealed
from linmaps.trees.tree import Tree

Method = Callable[[Statistics, int], Neurons]
CHUNK = 4096
METRIC: dict[str, Any] = {"output_metric": "fisher", "shrinkage": 0.1}


@door("f", "loss", "score")
def fit_and_grow(
    f: Callable[..., Tensor],
    params: Tree,
    data: tuple[Any, Any],
    pair: Pair | Sequence[Pair],
    *,
    order: Sequence[Tensor],
    target: int | Sequence[int],
    k: int | Sequence[int],
    loss: LossName | Loss = "cross_entropy",
    optimizer: Optimizer | None = None,
    method: Method | None = None,
    delta: bool = True,
    scale: Scale | None = None,
    ridge: float = 0.1,
    score: Callable[[Any], Tensor] | None = None,
    progress: bool = False,
    check_finite: bool = True,
) -> Fit[Tree]:
    """Train `f(params, x)`, and between phases of training grow a pair by k units at a time to the width `target`.

    A growth step is one `statistics`, `optimal_delta`, `method(stats, k)`, `choose_sign`, `line_search`, `grow`, and
    `grow_like` for the optimizer's state.

    pair: one or several, neighbours too, which grow at once, by amplitudes in common; then target may be a list.
    data: (x, target) in memory.  order: indices of batches, one tensor `[steps, B]` per phase, see `shuffles`; there is
    one phase before each growth step and one at the end.  k: units per step, or a list of them (`growth.geometric`, ...).
    optimizer: `sgd()` by default; any pair of pure functions (init, update).
    method: (stats, k) -> Neurons; None: `optimal_neurons` with the output metric "fisher" (shrinkage 0.1), ridge as below.
    delta: also change the weights that are there.  scale: amplitudes as in `grow`; None: by `line_search`, which looks at
    the loss now; for units that preserve the function, give 1.0.
    ridge: relative, times the mean of the diagonal of S and of S_prev.  It keeps the large steps that the search finds
    from fitting noise: on 1,300 digits, 0.01 cost 0.3 % of test accuracy against 0.1.
    score: params -> a scalar tensor, evaluated after each phase (a test accuracy); progress: a bar on standard error.
    Units without gain (masked, or amplitude 0) get generic incoming weights and zero outgoing ones, so that none is dead.

    check_finite: look for NaN and infinity in params, in data and in the loss after each phase, where training may diverge.

    Works under `vmap` over stacked params (and stacked order, if members shall differ in it): an ensemble grows at once.
    All is a constant for derivatives.  Cost of a growth step: two passes with backward, 56 forwards.

    Raises ValueError where k, target, order do not fit the width of the pair, and where its parts raise.
    Source: Verbockhaven et al., "Growing tiny networks" (2024).

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.eye(2)[:1], "b.weight": torch.zeros(2, 1)}
    >>> order = growth.shuffles(2, [1, 1], 2, generator=torch.Generator())
    >>> fit = growth.fit_and_grow(
    ...     f, p, (torch.eye(2), torch.tensor([0, 1])), growth.Pair("a", "b"), order=order, target=2, k=1
    ... )
    >>> [step.width for step in fit.steps], bool(fit.steps[1].grown < fit.steps[1].before)
    ([1, 2], True)
    """
    params, f, data = trees.map(lambda t: t.detach(), params), buffers_fixed(f), sealed(data, "data")
    number(ridge, "ridge", low=0, tensor=False)
    pairs, alone = check_pairs(pair)
    if check_finite:
        finite(params, "params", DIVERGED)
        finite(data, "data", "clean or drop these examples (or pass check_finite=False)")
    widths = [layers_of(params, p)[0].weight.shape[0] for p in pairs]
    steps_of_each = plans(widths, target, k, len(order))
    optimizer = sgd() if optimizer is None else optimizer
    each, parts = per_sample(loss), _parts(data)
    state = optimizer.init(params)
    steps: list[Step] = []
    final = _mean_loss(f, params, parts, each)
    zero = torch.zeros_like(final)
    fixed = None if scale is None else [zero + t for t in (scale if isinstance(scale, tuple) else (scale, scale))]
    with tqdm(total=sum(len(t) for t in order), desc="fit_and_grow", leave=False, disable=not progress) as bar:
        for units, batches in zip([[0] * len(pairs), *zip(*steps_of_each)], order):
            before, grown, used, gain, decrease = final, final, (zero, zero), zero, zero
            chosen = [p for p, n in zip(pairs, units) if n]
            if chosen:
                stats = statistics(f, params, parts, chosen, loss, check_finite=check_finite)
                changes = [optimal_delta(one, _size(one.S, ridge), **METRIC) for one in stats]
                if method is None:
                    news = [
                        optimal_neurons(one, n, delta=change, ridge=_size(one.S_prev, ridge), **METRIC)
                        for one, n, change in zip(stats, filter(None, units), changes)
                    ]
                else:
                    news = [method(one, n) for one, n in zip(stats, filter(None, units))]
                given: list[Delta | None] = [change if delta else None for change in changes]
                news = choose_sign(f, params, parts, chosen, news, loss, check_finite=check_finite)
                s, t = (
                    fixed or line_search(f, params, parts, chosen, news, given, loss, check_finite=check_finite).scale
                )
                awakened = [awake(new, t, one) for new, one in zip(news, stats)]
                scales: Any = [(s, amplitude) for _, amplitude in awakened]
                larger = grow(params, chosen, [new for new, _ in awakened], delta=given, scale=scales)
                state, params = grow_like(state, params, larger, heads=()), larger
                used, gain = (s, t), torch.stack([new.gain for new in news]).sum()
                decrease = torch.stack([change.decrease for change in changes]).sum() if delta else zero
                grown, widths = _mean_loss(f, params, parts, each), [w + n for w, n in zip(widths, units)]
            for index in batches:
                params, state = _trained(f, params, state, data, index, each, optimizer)
                bar.update()
            final = _mean_loss(f, params, parts, each)
            if check_finite:
                cure = "the training diverged: a smaller lr, or a larger ridge; or pass check_finite=False"
                finite(final, f"fit_and_grow: the loss after phase {len(steps)}", cure)
            found = torch.full_like(zero, torch.nan) if score is None else score(params)
            size = sum(t.numel() for t in trees.leaves(params))
            width = widths[0] if alone else tuple(widths)
            steps.append(Step(width, size, before, grown, final, used, gain, decrease, found))
    return Fit(params, state, tuple(steps))


def _parts(data: Any) -> list[tuple[Any, Any]]:
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(f"data: got {type(data).__name__}, expected a tuple (x, target) of tensors in memory")
    n = count_samples(data)
    return [trees.map(lambda t, i=i: t[i : i + CHUNK], data) for i in range(0, n, CHUNK)]


def _mean_loss(f: Callable[..., Tensor], params: Any, parts: list[tuple[Any, Any]], each: Loss) -> Tensor:
    totals = [each(f(params, x), target).sum() for x, target in parts]
    return torch.stack(totals).sum() / sum(count_samples(x) for x, _ in parts)


def _trained(
    f: Callable[..., Tensor], params: Any, state: Any, data: Any, index: Tensor, each: Loss, optimizer: Optimizer
) -> tuple[Any, Any]:
    x, target = trees.map(lambda t: t.index_select(0, index), data)
    gradient = grad(lambda p: each(f(p, x), target).mean())(params)
    step, state = optimizer.update(gradient, state, params)
    return trees.add(params, step), state


def _size(S: Tensor, ridge: float) -> Tensor:
    return ridge * S.diagonal().sum() / max(1, len(S))
