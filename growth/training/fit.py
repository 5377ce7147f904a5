"""Train, grow, train, ...: the recipe that ties statistics, closed forms, search, surgery and training, as one function.

r inputs of the pair, p hidden units, N samples in memory, B of them in a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad
from tqdm import tqdm

from fisher.checks.axes import batch_size as count_samples
from fisher.checks.finiteness import finite
from fisher.recipes.optimizers.protocol import Optimizer, asked_for
from growth.checks.data import DIVERGED
from growth.checks.doors import door
from growth.reading.buffers import buffers_fixed
from growth.reading.layers import layers_of
from growth.reading.losses import Loss, LossName, per_sample
from growth.reading.pairs import Pair, check_pairs
from growth.surgery.enlarge import Scale
from growth.training.descent import sgd
from growth.training.growing import Method, step
from growth.training.schedules import plans
from growth.training.steps import Fit, Step
from linmaps import trees
from linmaps.checks import number
from linmaps.trees.seals import sealed
from linmaps.trees.tree import Tree

CHUNK = 4096


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
    generator: torch.Generator | None = None,
    noise: Sequence[Tensor] | None = None,
) -> Fit[Tree]:
    """Train `f(params, x)`, and between phases of training grow a pair by k units at a time to the width `target`.

    A growth step is one `statistics`, `optimal_delta`, `method(stats, k)`, `choose_sign`, `line_search`, `grow`, and
    `grow_like` for the optimizer's state.

    pair: one or several, neighbours too, which grow at once, by amplitudes in common; then target may be a list.
    data: (x, target) in memory.  order: indices of batches, one tensor `[steps, B]` per phase, see `shuffles`; there is
    one phase before each growth step and one at the end.  k: units per step, or a list of them (`growth.geometric`, ...).
    optimizer: `sgd()` by default; any pair of pure functions (init, update).  To one that names them, as `fisher.recipes.kfac`
    does, go the batch, the generator and the noise: one tensor `[steps, n, B, *out]` per phase, as order.
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
    state = _started(optimizer, params, data, order, generator, noise)
    steps: list[Step] = []
    final = _mean_loss(f, params, parts, each)
    zero = torch.zeros_like(final)
    with tqdm(total=sum(len(t) for t in order), desc="fit_and_grow", leave=False, disable=not progress) as bar:
        for units, batches in zip([[0] * len(pairs), *zip(*steps_of_each)], order):
            before, grown, used, gain, decrease = final, final, (zero, zero), zero, zero
            chosen = [p for p, n in zip(pairs, units) if n]
            if chosen:
                own = [n for n in units if n]
                made = step(
                    f, params, parts, chosen, own, loss, state=state, scale=scale, method=method, delta=delta, ridge=ridge,
                    check_finite=check_finite,
                )  # fmt: skip
                state, params, used, gain, decrease = made.state, made.params, made.amplitudes, made.gain, made.decrease
                grown, widths = made.grown, [w + n for w, n in zip(widths, units)]
            drawn = itertools.repeat(None) if noise is None else noise[len(steps)]
            for index, own in zip(batches, drawn):
                params, state = _trained(f, params, state, data, index, each, optimizer, generator, own)
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


def _started(
    optimizer: Optimizer,
    params: Any,
    data: Any,
    order: Sequence[Tensor],
    generator: Any,
    noise: Sequence[Tensor] | None,
) -> Any:
    """The state of the optimizer before the first step, of one that asks for a batch on the first."""
    if noise is not None and [len(t) for t in noise] != [len(t) for t in order]:
        got = [len(t) for t in noise]
        raise ValueError(f"noise: got {got} steps by phase, expected {[len(t) for t in order]}, as order has")
    first = next((phase[0] for phase in order if len(phase)), None)
    if first is None or not asked_for(optimizer.init, batch=None):
        return optimizer.init(params)
    own = None if noise is None else next(phase[0] for phase in noise if len(phase))
    return optimizer.init(
        params, **asked_for(optimizer.init, batch=_batch(data, first), noise=own, generator=generator)
    )


def _batch(data: Any, index: Tensor) -> Any:
    return trees.map(lambda t: t.index_select(0, index), data)


def _trained(
    f: Callable[..., Tensor],
    params: Any,
    state: Any,
    data: Any,
    index: Tensor,
    each: Loss,
    optimizer: Optimizer,
    generator: Any,
    noise: Any,
) -> tuple[Any, Any]:
    x, target = batch = _batch(data, index)
    gradient = grad(lambda p: each(f(p, x), target).mean())(params)
    asked = asked_for(optimizer.update, batch=batch, noise=noise, generator=generator)
    step, state = optimizer.update(gradient, state, params, **asked)
    return trees.add(params, step), state
