"""K-FAC as a pair of pure functions: natural gradient steps on moving averages of Kronecker factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size
from fisher.checks.placements import placed
from fisher.collector.collection import LayerCollection
from fisher.distributed.stages import Reduce, mean_over_all
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.columns import Estimator
from fisher.likelihoods.names import LikelihoodName
from fisher.recipes.optimizers.adaptation import adapted
from fisher.recipes.optimizers.batchnorm import Statistics, held, of_batch, standing_in
from fisher.recipes.optimizers.curvature import Damped, damped_solve, widened
from fisher.recipes.optimizers.falls import check_measurable, measured, rise
from fisher.recipes.optimizers.lengths import exact_step, rated_step
from fisher.recipes.optimizers.memory import KFACState, step_number
from fisher.recipes.optimizers.model import gram_of_layers, model_of
from fisher.recipes.optimizers.protocol import Optimizer
from fisher.recipes.optimizers.schedules import Turn, scheduled
from fisher.recipes.optimizers.settings import Loss, Settings
from fisher.recipes.optimizers.upkeep import Upkeep, lifted, the_batch
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision, outside_graphs
from linmaps.numerics.dtypes import working
from linmaps.trees.keys import names
from linmaps.trees.mappings import is_mapping


@full_precision("f")
@typed
def kfac(
    f: Callable[..., Tensor],
    likelihood: LikelihoodName | Likelihood = "categorical",
    *,
    layers: LayerCollection | None = None,
    estimator: Estimator = "mc",
    decay: float = 0.95,
    factors_every: int = 1,
    bases_every: int = 10,
    damping: Any = 1e-1,
    adapt: bool = True,
    rate: Any = None,
    momentum: Any = 0.9,
    clip: float | None = None,
    weight_decay: Any = 0.0,
    loss: Loss | None = None,
    l2: float = 0.0,
    norm_constraint: float | None = None,
    adapt_every: int = 5,
    factor: float = 1.5,
    lower: float = 0.25,
    upper: float = 0.75,
    minimum: float = 1e-8,
    kind: Damped = "pi",
    correct: bool = False,
    statistics: Statistics | None = None,
    forget: float = 0.1,
    reduce: Reduce | None = None,
) -> Optimizer:
    """K-FAC: an optimizer whose steps are (F + damping I)^-1 gradient, F a moving average of Kronecker factors.

        state = optimizer.init(params, batch, generator=generator)
        updates, state = optimizer.update(gradient, state, params, batch=batch, generator=generator)
        params = trees.add(params, updates)

    f, likelihood, estimator, layers: as of `fim`; "mc" draws by the generator, or takes `noise` [n, *y.shape].  gradient:
    of the mean negative log-likelihood over the batch, or of the loss that stands in its place.  batch: x, (x, target)
    or (x, target, weight), whose gradient is that of the weighted losses over the number of examples.
    Padded tokens: F is 1/B times the sum over the n tokens that count, of B examples.  The gradient of a mean over tokens, as of
    cross_entropy(ignore_index=), is B / n times that of the loss that F belongs to, and so is the step where rate is a number
    (and the ratio of adapt is off).  Give the gradient of the sum over tokens over B,
    cross_entropy(logits.mT, targets, ignore_index=-100, reduction="sum") / len(x), and Categorical(class_axis=-1) as likelihood,
    which leaves out the same targets.
    layers: a sub-collection leaves all other params as they are (their updates are 0); a state of other layers, or of soap, is
    refused.

    rate=None: with d = -(F + (damping + l2) I)^-1 g and v the update before, the update is c_1 d + c_2 v, the minimum of the
    quadratic model of the batch, g's + s'(F + (damping + l2) I)s / 2 with the whole F of the batch in place of its factors, so
    that neither rate nor momentum is to be tuned; momentum=0 leaves v out.  Else the update is rate d + momentum v.

    kind: how d is damped, as in `PMatKFAC.solve`: "pi" on both factors, in their eigenbases; "default" exactly, which takes more
    steps (an autoencoder of MNIST is at 100 nats after 100 steps, with "pi" at 82).
    decay: of the moving average, free of bias.  factors_every, bases_every, adapt_every: steps between new factors, new
    eigenbases of them, and changes of the damping.
    correct: EKFAC, the eigenvalues are a moving average of the second moments of gradients in the bases (George et al., 2018),
    from the pass that the factors come from; into new bases they are turned.  Eigenvectors of small eigenvalues, which rounding
    turns, then matter: two runs in float32 part by 1e-4 within ten steps, at equal losses (in float64 by 1e-14).
    adapt: the damping follows ratio = (loss(params + s) - loss(params)) / (g's + s'(F + l2 I)s / 2): times `factor` where that
    is below `lower`, over `factor` where it is above `upper`, never below `minimum` (as in `natural_gradient_step`).
    loss: (params, batch) -> a scalar, or [B], for that ratio; None: the likelihood's, which needs targets.
    clip: the update s is scaled down to s'F s <= clip with the whole F of the batch (twice the divergence of the predictions).
    clip=1 keeps a start with large logits in hand, whose softmax is saturated, so that F shows little of the curvature.
    norm_constraint: with a rate, d is scaled down to -rate^2 d'g <= norm_constraint, d's norm by the factors alone.
    l2: adds l2/2 |params|^2 to the objective: to its gradient, curvature and ratio; leave it out of `gradient`.
    weight_decay: decoupled, -rate weight_decay params beside the update (c_1 for the rate where that is None).
    rate, momentum, weight_decay, damping: numbers, or functions of the number of the step, 0, 1, ...; such a damping is not
    adapted.  damping may be {layer: number} as of `solve`, F.relative(0.1) for one, where inputs are small (digits / 100: a loss
    of 0.5 after 20 steps, with 0.1 of 2.3): state.damping, 1 at first, is the factor of them all that is adapted.

    statistics: (params, x) -> {path: value}, the leaves of params that batch norm in train mode takes from the batch, as
    `in_train_mode(f)` makes it; f is as in eval mode, with these leaves as running averages.  The curvature is that of f at the
    statistics of the batch, as constants (examples stay apart); the ratio's loss has those of the new params; the updates of
    these leaves are forget (value - leaf), so that params hold the running averages.  `gradient` is the user's, through the
    statistics or not.

    reduce: of several processes, each with a batch of its own, as in `fim`: `fisher.distributed.all_reduce()`.  The factors, the
    products with F of the model, its clips and the damping's ratio are those of all batches together, and the eigenvectors are
    computed split over the ranks.  `gradient` is the one of the mean loss over all examples, as DDP and FSDP leave it, the same
    at all ranks; of each rank's own mean gradient over n examples make it by `sums, count = reduce(trees.scale(n, g), n)`,
    `gradient = trees.scale(1 / count, sums)`.  All ranks then have the same updates and state, bit by bit, and have to draw with
    generators of different seeds.  A rank may have no example (`x[:0]`), with layers given.  Not with statistics.

    init takes the factors of one batch; of several (a list of them, burn-in) their mean, which weighs as much as so many steps
    would.  state: a `KFACState`; state.damping is a scalar tensor.
    A step is one fim (one forward, one backward), K tangents along the K directions, every adapt_every steps a forward, every
    bases_every steps the eigenvectors.  All of it is pure, and maps over stacked params and states by vmap (give noise, or
    estimator="exact").  Values of state.step are looked at; no others decide what is done.

    Raises ValueError or TypeError where `fim` does, for numbers out of range, and for adapt without targets.

    Martens and Grosse (2015); Grosse and Martens (2016); clip: Ba, Grosse and Martens (2017); weight_decay: Loshchilov and
    Hutter (2019), Zhang et al. (2019).

    >>> import torch, fisher
    >>> from linmaps import trees
    >>> f, w, x = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, torch.eye(2)
    >>> optimizer = kfac(f, "gaussian", estimator="exact", damping=0.0, adapt=False)
    >>> batch = (x, torch.ones(2, 1))
    >>> state = optimizer.init(w, batch)
    >>> updates, state = optimizer.update({"w": torch.full((2, 1), -0.5)}, state, w, batch=batch)
    >>> trees.add(w, updates)["w"].T, state
    (tensor([[1., 1.]]), KFACState(step 1, 1 layers, 2 parameters, damping 0))
    """
    upkeep = Upkeep(
        doors.function(f),
        find_likelihood(likelihood),
        estimator,
        layers,
        decay,
        factors_every,
        bases_every,
        correct,
        statistics,
        reduce,
    )
    rules = Settings(
        damping, adapt, rate, momentum, clip, weight_decay, loss, l2, norm_constraint, adapt_every, factor, lower, upper, minimum,
        kind, forget,
    )  # fmt: skip

    @outside_graphs
    @typed
    def init(
        params: Any, batch: Any, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> KFACState:
        return _init(upkeep.f, upkeep, rules, params, batch, noise, generator)

    @outside_graphs
    @typed
    def update(
        grads: Any,
        state: KFACState,
        params: Any,
        batch: Any,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        turn: Turn | None = None,
    ) -> tuple[Any, KFACState]:
        if turn is None:
            turn = _turn(upkeep, rules, state)
            _look(upkeep, rules, state, params, batch, turn)
        made, after = _update(upkeep.f, rules.loss, upkeep, rules, grads, state, params, batch, noise, generator, turn)
        return placed(made, params), after

    def prepare(state: KFACState, params: Any, batch: Any, noise: Any = None, generator: Any = None) -> dict[str, Any]:
        turn = _turn(upkeep, rules, state)
        _look(upkeep, rules, state, params, batch, turn)
        drawn = upkeep.drawn(params, batch, noise, generator, turn)
        return {"noise": drawn, "turn": turn.in_tensors(trees.leaves(state.velocity)[0])}

    return Optimizer(init, update, prepare)


def _number(upkeep: Upkeep, rules: Settings, state: KFACState) -> int:
    upkeep.of_kind(state)
    return step_number(state.step, "kfac") if upkeep.numbered or rules.numbered else 0


def _look(upkeep: Upkeep, rules: Settings, state: KFACState, params: Any, batch: Any, turn: Turn) -> None:
    if rules.adapts and not turn.adapts and _number(upkeep, rules, state) == 0:  # said at once, not when it is its turn
        check_measurable(upkeep.f, rules.loss, upkeep.likelihood, params, batch)


def _turn(upkeep: Upkeep, rules: Settings, state: KFACState) -> Turn:
    n = _number(upkeep, rules, state)
    return upkeep.turn(n, rules.due(n), rules.at(n, trees.leaves(state.velocity)[0]))


@full_precision("f")
def _init(
    f: Callable[..., Tensor], upkeep: Upkeep, rules: Settings, params: Any, batch: Any, noise: Any, generator: Any
) -> KFACState:
    params = parameters(params)
    like = trees.leaves(params)[0]
    damping = 1.0 if is_mapping(rules.damping) else scheduled(rules.damping, 0, "damping", like, low=0)
    state = dataclasses.replace(upkeep, f=f).started(params, batch, noise, generator, damping)
    rules.of_layers(damping, state.factors.layers)
    return state


@full_precision("f", "loss")
def _update(
    f: Callable[..., Tensor],
    loss: Loss | None,
    upkeep: Upkeep,
    rules: Settings,
    grads: Any,
    state: KFACState,
    params: Any,
    batch: Any,
    noise: Any,
    generator: Any,
    turn: Turn,
) -> tuple[Any, KFACState]:
    grads, params = upkeep.checked(grads, state, params)
    x, target, weight = the_batch(batch)
    values, running = of_batch(upkeep.statistics, params, x), params
    upkeep.check_layers(state, values)
    params, f = standing_in(params, values), held(f, values)
    if rules.adapts and loss is None and target is None:
        raise ValueError(
            "batch: got no target, expected (x, target): the damping is adapted by the loss; or give loss=..., or adapt=False"
        )
    state = dataclasses.replace(upkeep, f=f).refreshed(state, params, batch, noise, generator, turn)
    layers = state.factors.layers
    own, own_f = layers.restrict(params), f if layers.complete else layers.restricted(f, params)
    wide, g = widened(own), widened(layers.restrict(grads))
    g = trees.axpy(rules.l2, wide, g) if rules.l2 else g
    like = trees.leaves(wide)[0]
    damping: Any = turn.at("damping", state.damping, like, low=0)
    added = rules.of_layers(damping, layers)
    d = trees.scale(-1.0, damped_solve(state.bases, g, added, rules.kind))
    shift = (lambda directions: gram_of_layers(layers, directions, added)) if is_mapping(added) else added
    model = lambda directions: model_of(own_f, upkeep.likelihood, own, x, target, g, directions, weight, upkeep.reduce)
    if rules.rate is None:
        made = exact_step(rules, model, d, state.velocity, shift)
    else:
        made = rated_step(rules, model, d, state.velocity, g, turn)
    step = made.step
    if turn.adapts and made.model is not None and made.lengths is not None:
        moved = trees.map(lambda p, s: (p + s).to(p.dtype), own, step)
        examples = batch_size(x)
        if upkeep.reduce is not None and not examples:
            happened = None
        elif loss is None:
            there = lifted(layers, moved, params, params)
            there = standing_in(there, of_batch(upkeep.statistics, there, x))
            happened = rise(upkeep.likelihood, made.model.y, f(there, x), target, weight)
        else:
            before, after = (
                measured(loss, lifted(layers, p, params, params), batch, batch_size(x)) for p in (own, moved)
            )
            happened = working(after - before).mean()
        happened = mean_over_all(upkeep.reduce, happened, examples)
        happened = happened + rules.l2 * (trees.dot(wide, step) + trees.dot(step, step) / 2)
        foreseen = made.model.change(made.lengths, rules.l2)
        damping = adapted(
            damping,
            happened,
            foreseen,
            factor=rules.factor,
            lower=rules.lower,
            upper=rules.upper,
            minimum=rules.minimum,
        )
    decay = turn.at("weight_decay", rules.weight_decay, like, low=0)
    still = isinstance(decay, (int, float)) and decay == 0
    whole = step if still else trees.axpy(-made.rate * decay, wide, step)
    updates = trees.map(
        lambda t, p: t.to(p.dtype).clone(), whole, own
    )  # none of the state's own: chains change them in place
    damping = torch.zeros_like(state.damping) + damping
    old = dict(zip(names(trees.paths(running)), trees.leaves(running))) if values else {}
    changed = {path: rules.forget * (new - old[path]) for path, new in values.items()}
    return standing_in(lifted(layers, updates, params), changed), dataclasses.replace(
        state, step=state.step + 1, velocity=step, damping=damping
    )
