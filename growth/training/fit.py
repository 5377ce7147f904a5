"""Train, grow, train, ...: the recipe that ties statistics, closed forms, search, surgery and training, as one function.

r inputs of the pair, p hidden units, B samples of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fisher.checks.finiteness import finite
from fisher.checks.ranks import first_rank
from growth.checks.buffers import buffers_fixed, parameter_count
from growth.checks.data import DIVERGED
from growth.checks.doors import door
from growth.checks.losses import Loss, LossName, per_sample
from growth.reading.layers import layers_of
from growth.reading.pairs import Pair, check_pairs
from growth.surgery.enlarge import Scale
from growth.training.choice import CHOICES, Choose, alone, rooms, steepest
from growth.training.descent import gradients, moved, sgd
from growth.training.feeds import Memory, drawn, feed
from growth.training.growing import mean_loss, taken
from growth.training.proposals import Method, proposed
from growth.training.rules import Rule
from growth.training.schedules import plans
from growth.training.steps import Fit, Step
from linmaps import trees
from linmaps.checks import number
from linmaps.trees.seals import unsealed
from linmaps.trees.tree import Tree


@door("f", "loss", "score")
def fit_and_grow(
    f: Callable[..., Tensor],
    params: Tree,
    data: Any,
    pair: Pair | Sequence[Pair],
    *,
    order: Sequence[Tensor] | Sequence[int],
    target: int | Sequence[int],
    k: int | Sequence[int],
    loss: LossName | Loss = "cross_entropy",
    optimizer: Any = None,
    method: Method | None = None,
    delta: bool = True,
    choose: Choose = "all",
    scale: Scale | None = None,
    ridge: float = 0.1,
    generator: torch.Generator | None = None,
    noise: Sequence[Tensor] | None = None,
    score: Callable[[Any], Tensor] | None = None,
    progress: bool = False,
    check_finite: bool = True,
) -> Fit[Tree]:
    """Train `f(params, x)`, and between phases of training grow a pair by k units at a time to the width `target`.

    A growth step is one `statistics`, `optimal_delta`, `method(stats, k)`, `choose_sign`, `line_search`, `grow`, and
    `grow_like` for the optimizer's state.

    data, order: (x, target) in memory, with indices of batches, one tensor `[steps, B]` per phase, see `shuffles`; or batches of
    those that come again (a DataLoader, a list), one in memory at a time, with epochs, one int per phase.  There is one phase
    before each growth step and one at the end.  A loader that shuffles draws from its own generator; losses are means over one
    pass each.
    pair: one or several, neighbours too, which grow at once, by amplitudes in common; then target may be a list.  k: units per
    step, or a list of them (`growth.geometric`, ...).
    choose: "all", or "slope": in each step one pair grows, that whose k units (those left to its target, if less) gain most per
    parameter that they add, by the slopes that `choose_sign` measures for all in one pass; the others wait, targets need not be
    reached, and `Step.width` says who grew.  `growth.compare(..., params=params)` is the table of it.
    optimizer: `sgd()` by default; any two pure functions init(params), update(gradient, state, params) -> (step to be added,
    state), those of torchopt too.  One that names `batch` gets the (x, target) of the step by this keyword, in init the first;
    one that names `generator` or `noise`, as `fisher.recipes.kfac` does, gets what is given: noise is a tensor
    `[steps, ...]` per phase.  State goes over growth by `optimizer.carry(state, params, grown)` if there
    is one, else by `grow_like`.
    method: (stats, k) -> Neurons; None: `optimal_neurons` with the output metric "fisher" (shrinkage 0.1), ridge as below.
    delta: also change the weights that are there.  scale: amplitudes as in `grow`; None: by `line_search`, which looks at
    the loss now; for units that preserve the function, give 1.0.
    ridge: relative, times the mean of the diagonal of S and of S_prev.  It keeps the large steps that the search finds
    from fitting noise: on 1,300 digits, 0.01 cost 0.3 % of test accuracy against 0.1.
    score: params -> a scalar tensor, evaluated after each phase (a test accuracy); progress: a bar on standard error.
    Units without gain (masked, or amplitude 0) get generic incoming weights and zero outgoing ones, so that none is dead.

    check_finite: look for NaN and infinity in params, in data and in the loss after each phase, where training may diverge.

    Works under `vmap` over stacked params (and stacked order, if members shall differ in it): an ensemble grows at once, by
    choose="all".
    All is a constant for derivatives.  Cost of a growth step: two passes with backward, 56 forwards.

    Raises ValueError where k, target, order do not fit the width of the pair, for batches that come but once, for choose="slope"
    under `vmap`, and where its parts raise; TypeError for epochs with tensors in memory, indices with batches, and for an
    optimizer without these functions.
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
    params, f = trees.map(lambda t: t.detach(), params), buffers_fixed(f)
    number(ridge, "ridge", low=0, tensor=False)
    if choose not in CHOICES:
        raise ValueError(f"choose: got {choose!r}, expected one of {list(CHOICES)}")
    pairs, one = check_pairs(pair)
    if check_finite:
        finite(params, "params", DIVERGED)
    batches = feed(data, order, check_finite=check_finite)
    noises = drawn(noise, order)
    widths = [layers_of(params, p)[0].weight.shape[0] for p in pairs]
    growths = max(0, len(order) - 1)
    if choose == "slope":
        alone(params, *([batches.data, *order] if isinstance(batches, Memory) else []))
        rooms(widths, target, k, growths)
    else:
        plan = plans(widths, target, k, len(order))
    rule, each = Rule(sgd() if optimizer is None else optimizer), per_sample(loss)
    state = rule.start(params, generator)
    steps: list[Step] = []
    final = mean_loss(f, params, batches.parts, loss)
    zero = torch.zeros_like(final)
    with tqdm(total=batches.total, desc="fit_and_grow", leave=False, disable=not (progress and first_rank())) as bar:
        for phase, _ in enumerate(order):
            before, grown, used, gain, decrease = final, final, (zero, zero), zero, zero
            units = [0] * len(pairs)
            if phase and choose == "slope":
                units = rooms(widths, target, k, growths)[phase - 1]
            elif phase:
                units = [each_step[phase - 1] for each_step in plan]
            if any(units):
                able, own = [p for p, n in zip(pairs, units) if n], [n for n in units if n]
                found = proposed(
                    f, params, batches.parts, able, own, loss, method=method, ridge=ridge, check_finite=check_finite
                )
                found = [steepest(params, found)] if choose == "slope" else found
                made = taken(f, params, batches.parts, found, loss, scale=scale, delta=delta, check_finite=check_finite)
                state = rule.carry(state, params, made.params, pairs)
                params, used, gain, decrease, grown = made.params, made.amplitudes, made.gain, made.decrease, made.grown
                widths = [layers_of(params, p)[0].weight.shape[0] for p in pairs]
            for (x, t), noise_here in zip(batches.phase(phase), noises(phase)):
                loss_of = functools.partial(_batch_loss, f, each, x, t)
                gradient = gradients(loss_of, params)
                batch = unsealed(x), unsealed(t)
                step, state = rule.update(gradient, state, params, batch=batch, generator=generator, noise=noise_here)
                params = moved(params, step)
                bar.update()
            final = mean_loss(f, params, batches.parts, loss)
            if check_finite:
                cure = "the training diverged: a smaller lr, or a larger ridge; or pass check_finite=False"
                finite(final, f"fit_and_grow: the loss after phase {len(steps)}", cure)
            scored = torch.full_like(zero, torch.nan) if score is None else score(params)
            size = parameter_count(params)
            width = widths[0] if one else tuple(widths)
            steps.append(Step(width, size, before, grown, final, used, gain, decrease, scored))
    return Fit(params, state, tuple(steps))


def _batch_loss(f: Callable[..., Tensor], each: Loss, x: Any, target: Any, params: Any) -> Tensor:
    return each(f(params, x), target).mean()
