"""Train, grow, train, ...: the recipe that ties statistics, closed forms, search, surgery and training, as one function.

r inputs of the pair, p hidden units, N samples in memory, B of them in a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad
from tqdm import tqdm

from fisher.axes import batch_size as count_samples
from growth.carry import grow_like
from growth.delta import optimal_delta
from growth.losses import Loss, per_sample
from growth.neurons import Neurons, optimal_neurons
from growth.pairs import Pair, layers_of
from growth.schedules import in_steps_of
from growth.scores import aligned
from growth.search import line_search
from growth.select import live
from growth.signs import choose_sign
from growth.statistics import Statistics, statistics
from growth.surgery import Scale, grow
from linmaps import trees
from linmaps.trees import record

Method = Callable[[Statistics, int], Neurons]
CHUNK = 4096
METRIC: dict[str, Any] = {"output_metric": "fisher", "shrinkage": 0.1}


class Optimizer(NamedTuple):
    """Two pure functions: init(params) -> state, update(gradient, state, params) -> (step to be added, state).

    >>> import torch
    >>> rule = sgd(0.5)
    >>> rule.update({"w": torch.ones(1)}, rule.init({"w": torch.zeros(1)}), {"w": torch.zeros(1)})[0]
    {'w': tensor([-0.5000])}
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]


def sgd(lr: float = 0.1, momentum: float = 0.9) -> Optimizer:
    """Gradient descent with momentum as in `torch.optim.SGD`: m <- μ m + g, step -lr m.

    >>> import torch
    >>> rule, w = sgd(1.0, 0.5), {"w": torch.zeros(())}
    >>> step, state = rule.update({"w": torch.ones(())}, rule.init(w), w)
    >>> rule.update({"w": torch.ones(())}, state, w)[0]
    {'w': tensor(-1.5000)}
    """

    def update(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        moment = trees.axpy(momentum, state["momentum"], gradient)
        return trees.scale(-lr, moment), {"momentum": moment}

    return Optimizer(lambda params: {"momentum": trees.zeros_like(params)}, update)


def adam(lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """Adam as in `torch.optim.Adam`; entries added by growth start with zero moments and the common step count.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization" (2015).

    >>> import torch
    >>> rule, w = adam(0.1), {"w": torch.zeros(())}
    >>> rule.update({"w": torch.tensor(7.0)}, rule.init(w), w)[0]
    {'w': tensor(-0.1000)}
    """
    first, second = betas

    def init(params: Any) -> Any:
        one = next(t for t in trees.leaves(params) if t.is_floating_point())
        zero = trees.zeros_like(params)
        return {"step": one.new_zeros(()), "mean": zero, "square": zero}

    def update(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        t = state["step"] + 1
        mean = trees.map(lambda m, g: first * m + (1 - first) * g, state["mean"], gradient)
        square = trees.map(lambda v, g: second * v + (1 - second) * g * g, state["square"], gradient)
        a, b = 1 - first**t, 1 - second**t
        step = trees.map(lambda m, v: -lr * (m / a) / ((v / b).sqrt() + eps), mean, square)
        return step, {"step": t, "mean": mean, "square": square}

    return Optimizer(init, update)


@record(static=("width", "parameters"))
class Step:
    """One phase: width p after growth, number of parameters, and scalars; losses are means over all data.

    before: loss at the start; grown: after growth; trained: after training; scale: amplitudes (t_delta, t_neurons); gain,
    decrease: slopes of units and delta; score: what the callable `score` gave after training (NaN without).

    >>> import torch
    >>> one = torch.ones(())
    >>> Step(2, 20, one, one, one, (one, one), one, one, one).width
    2
    """

    width: int
    parameters: int
    before: Tensor
    grown: Tensor
    trained: Tensor
    scale: tuple[Tensor, Tensor]
    gain: Tensor
    decrease: Tensor
    score: Tensor


@record()
class Fit:
    """The grown params, the optimizer's state, and one `Step` per phase; prints as a table of the steps.

    >>> import torch
    >>> one = torch.ones(())
    >>> Fit({}, {}, (Step(2, 20, one, one, one / 2, (0 * one, 0 * one), 0 * one, 0 * one, one),))
    width  parameters  before  grown  trained  t_delta  t_neurons  gain  decrease  score
        2          20       1      1      0.5        0          0     0         0      1
    """

    params: Any
    state: Any
    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        head = [
            "width",
            "parameters",
            "before",
            "grown",
            "trained",
            "t_delta",
            "t_neurons",
            "gain",
            "decrease",
            "score",
        ]
        rows = [
            [s.width, s.parameters, s.before, s.grown, s.trained, *s.scale, s.gain, s.decrease, s.score]
            for s in self.steps
        ]
        return aligned(head, rows)


def fit_and_grow(
    f: Callable[..., Tensor],
    params: Any,
    data: tuple[Any, Any],
    pair: Pair,
    *,
    order: Sequence[Tensor],
    target: int,
    k: int | Sequence[int],
    loss: str | Loss = "cross_entropy",
    optimizer: Optimizer | None = None,
    method: Method | None = None,
    delta: bool = True,
    scale: Scale | None = None,
    ridge: float = 0.1,
    score: Callable[[Any], Tensor] | None = None,
    progress: bool = False,
) -> Fit:
    """Train `f(params, x)`, and between phases of training grow the pair by k units at a time to the width `target`.

    A growth step is one `statistics`, `optimal_delta`, `method(stats, k)`, `choose_sign`, `line_search`, `grow`, and
    `grow_like` for the optimizer's state.

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
    params = trees.map(lambda t: t.detach(), params)
    width = layers_of(params, pair)[0].weight.shape[0]
    plan = _plan(width, target, k, order)
    optimizer = sgd() if optimizer is None else optimizer
    each, parts = per_sample(loss), _parts(data)
    state, steps = optimizer.init(params), []
    final = _mean_loss(f, params, parts, each)
    zero = torch.zeros_like(final)
    fixed = None if scale is None else [zero + t for t in (scale if isinstance(scale, tuple) else (scale, scale))]
    with tqdm(total=sum(len(t) for t in order), desc="fit_and_grow", leave=False, disable=not progress) as bar:
        for units, batches in zip([0, *plan], order):
            before, grown, used, gain, decrease = final, final, (zero, zero), zero, zero
            if units:
                stats = statistics(f, params, parts, pair, loss)
                change = optimal_delta(stats, _size(stats.S, ridge), **METRIC)
                if method is None:
                    size = _size(stats.S_prev, ridge)
                    new = optimal_neurons(stats, units, delta=change, ridge=size, **METRIC)
                else:
                    new = method(stats, units)
                change = change if delta else None  # type: ignore[assignment]
                new = choose_sign(f, params, parts, pair, new, loss)
                s, t = fixed or line_search(f, params, parts, pair, new, change, loss).scale
                awake, amplitude = _awake(new, t, stats)
                larger = grow(params, pair, awake, delta=change, scale=(s, amplitude))
                state, params = grow_like(state, params, larger), larger
                used, gain, decrease = (s, t), new.gain, zero if change is None else change.decrease
                grown, width = _mean_loss(f, params, parts, each), width + units
            for index in batches:
                params, state = _trained(f, params, state, data, index, each, optimizer)
                bar.update()
            final = _mean_loss(f, params, parts, each)
            found = torch.full_like(zero, torch.nan) if score is None else score(params)
            size = sum(t.numel() for t in trees.leaves(params))
            steps.append(Step(width, size, before, grown, final, used, gain, decrease, found))
    return Fit(params, state, tuple(steps))


def _plan(width: int, target: int, k: int | Sequence[int], order: Sequence[Tensor]) -> list[int]:
    plan = in_steps_of(width, target, k) if isinstance(k, int) else [int(n) for n in k]
    if width + sum(plan) != target or any(n < 0 for n in plan):
        raise ValueError(
            f"k: got steps {plan} from width {width}, expected units >= 0 that add up to {target} - {width}"
        )
    if len(order) != len(plan) + 1:
        raise ValueError(
            f"order: got {len(order)} phases, expected {len(plan) + 1}: one before each of the growth steps {plan} and one "
            "at the end; make them with shuffles(n, epochs, batch, generator=...)"
        )
    return plan


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


def _awake(new: Neurons, t: Tensor, stats: Statistics) -> tuple[Neurons, Tensor]:
    """(new, amplitude) of the same effect without dead units: masked ones get generic incoming weights.

    Where t = 0 the amplitude becomes 1 and fan_out zero; generic rows have pre-activations of mean square about 1, and
    the sign for which their mean is positive.
    """
    idle = t <= 0
    amplitude = torch.where(idle, 1.0, t)
    k, d = new.joined.shape
    rows = torch.cos(1.7 * torch.arange(1, k * d + 1, device=t.device).reshape(k, d) ** 1.5).to(new.fan_in)
    energy = stats.S_prev.diagonal().sum() * amplitude / 2
    rows = rows / torch.where(energy > 0, energy, 1.0).sqrt()
    mean = stats.S_prev[-1] if stats.bias_before else stats.S_prev.new_ones(d)
    rows = torch.where((rows @ mean)[:, None] < 0, -rows, rows)
    masked, r = ~live(new), new.fan_in.shape[1]
    bias = new.fan_in_bias
    return dataclasses.replace(
        new,
        fan_in=torch.where(masked[:, None], rows[:, :r], new.fan_in),
        fan_in_bias=None if bias is None else torch.where(masked, rows[:, -1], bias),
        fan_out=torch.where(idle, 0.0, new.fan_out),
    ), amplitude
