"""K-FAC as a pair of pure functions: natural gradient steps on moving averages of Kronecker factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast, get_args

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.checks.arguments import parameters
from fisher.checks.data import batches, one_batch
from fisher.collector.collection import LayerCollection
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.columns import ESTIMATORS, Estimator
from fisher.likelihoods.names import LikelihoodName
from fisher.passes.information import fim
from fisher.pmat import PMatKFAC
from fisher.recipes.optimizers.adaptation import adapted
from fisher.recipes.optimizers.curvature import Damped, averaged, damped_solve, eigenbases, own_axes, widened
from fisher.recipes.optimizers.memory import KFACState, step_number
from fisher.recipes.optimizers.model import Model, model_of
from fisher.recipes.optimizers.protocol import Optimizer
from fisher.recipes.optimizers.schedules import Schedule, check_schedule, scheduled
from linmaps import trees
from linmaps.checks import alike, number, size
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.numerics.dtypes import working

Loss = Callable[[Any, Any], Tensor]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the arguments of `kfac` say, checked."""

    likelihood: Likelihood
    estimator: Estimator
    layers: LayerCollection | None
    decay: float
    factors_every: int
    bases_every: int
    damping: Schedule
    adapt: bool
    rate: Schedule | None
    momentum: Schedule
    clip: float | None
    weight_decay: Schedule
    loss: Loss | None
    l2: float
    norm_constraint: float | None
    adapt_every: int
    factor: float
    lower: float
    upper: float
    minimum: float
    kind: Damped

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator: got {self.estimator!r}, expected one of {list(ESTIMATORS)}")
        if self.kind not in get_args(Damped):
            raise ValueError(f"kind: got {self.kind!r}, expected one of {list(get_args(Damped))}")
        doors.options(layers=self.layers)
        number(self.decay, "decay", low=0, high=1, below=True, tensor=False)
        for name in ("factors_every", "bases_every", "adapt_every"):
            size(getattr(self, name), name, 1, cure="a number of steps")
        check_schedule(self.damping, "damping", low=0)
        check_schedule(self.momentum, "momentum", low=0, high=1, below=True)
        check_schedule(self.weight_decay, "weight_decay", low=0)
        if self.rate is not None:
            check_schedule(self.rate, "rate", low=0)
        for name in ("clip", "norm_constraint"):
            if getattr(self, name) is not None:
                number(getattr(self, name), name, low=0, above=True, tensor=False)
        for name in ("l2", "factor", "lower", "upper", "minimum"):
            number(getattr(self, name), name, low=0, tensor=False)
        if not self.factor > 1 or not 0 < self.lower < self.upper:
            raise ValueError(
                f"got factor={self.factor}, lower={self.lower}, upper={self.upper}, expected factor > 1 and 0 < lower < upper"
            )
        if self.norm_constraint is not None and self.rate is None:
            raise ValueError(
                "norm_constraint: got it with rate=None, expected a rate; the exact length needs none, and clip bounds it too"
            )
        if self.loss is not None and not callable(self.loss):
            raise TypeError(f"loss: got {type(self.loss).__name__}, expected a function (params, batch) -> scalar or [B]")

    @property
    def adapts(self) -> bool:
        """Whether the damping follows the ratio: a schedule is not adapted."""
        return self.adapt and not callable(self.damping)

    @property
    def numbered(self) -> bool:
        """Whether what a step does depends on its number."""
        often = (self.factors_every, self.bases_every, self.adapt_every if self.adapts else 1)
        return max(often) > 1 or any(map(callable, (self.damping, self.rate, self.momentum, self.weight_decay)))


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
) -> Optimizer:
    """K-FAC: an optimizer whose steps are (F + damping I)^-1 gradient, F a moving average of Kronecker factors.

        state = optimizer.init(params, batch, generator=generator)
        updates, state = optimizer.update(gradient, state, params, batch=batch, generator=generator)
        params = trees.add(params, updates)

    f, likelihood, estimator, layers: as of `fim`; "mc" draws by the generator, or takes `noise` [n, *y.shape].  gradient:
    of the mean negative log-likelihood over the batch, or of the loss that stands in its place.  batch: x, or (x, target).
    layers: a sub-collection leaves all other params as they are (their updates are 0).

    rate=None: with d = -(F + (damping + l2) I)^-1 g and v the update before, the update is c_1 d + c_2 v, the minimum of the
    quadratic model of the batch, g's + s'(F + (damping + l2) I)s / 2 with the whole F of the batch in place of its factors, so
    that neither rate nor momentum is to be tuned; momentum=0 leaves v out.  Else the update is rate d + momentum v.

    kind: how d is damped, as in `PMatKFAC.solve`: "pi" on both factors, in their eigenbases ("default", exactly, needs more steps:
    on the autoencoder of Hinton and Salakhutdinov 90 nats after 100 steps in place of 83).
    decay: of the moving average, free of bias.  factors_every, bases_every, adapt_every: steps between new factors, new
    eigenbases of them, and changes of the damping.
    adapt: the damping follows ratio = (loss(params + s) - loss(params)) / (g's + s'(F + l2 I)s / 2): times `factor` where the ratio
    is below `lower`, over `factor` where it is above `upper`, never below `minimum` (as in `natural_gradient_step`).
    loss: (params, batch) -> a scalar, or [B], for that ratio; None: the likelihood's, which needs targets.
    clip: the update s is scaled down to s'F s <= clip with the whole F of the batch (twice the divergence of the predictions).
    norm_constraint: with a rate, d is scaled down to -rate^2 d'g <= norm_constraint, d's norm by the factors alone.
    l2: adds l2/2 |params|^2 to the objective: to its gradient, curvature and ratio; leave it out of `gradient`.
    weight_decay: decoupled, -rate weight_decay params beside the update (c_1 for the rate where that is None).
    rate, momentum, weight_decay, damping: numbers, or functions of the number of the step, 0, 1, ...; such a damping is not
    adapted.

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
    rules = Settings(
        find_likelihood(likelihood), estimator, layers, decay, factors_every, bases_every, damping, adapt, rate, momentum,
        clip, weight_decay, loss, l2, norm_constraint, adapt_every, factor, lower, upper, minimum, kind,
    )  # fmt: skip
    f = doors.function(f)
    start, advance = full_precision("f")(_init), full_precision("f")(_update)

    def init(params: Any, batch: Any, noise: Tensor | None = None, generator: torch.Generator | None = None) -> KFACState:
        return start(f, rules, params, batch, noise, generator)

    def update(
        grads: Any,
        state: KFACState,
        params: Any,
        batch: Any,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Any, KFACState]:
        return advance(f, rules, grads, state, params, batch, noise, generator)

    return Optimizer(init, update)


def _init(
    f: Callable[..., Tensor], rules: Settings, params: Any, batch: Any, noise: Any, generator: Any
) -> KFACState:
    params = parameters(params)
    data = batch if one_batch(batch) else list(batch)
    F = fim(
        f, params, data, PMatKFAC, rules.likelihood, rules.estimator, rules.layers, generator if rules.estimator == "mc" else None,
        noise=noise,
    )  # fmt: skip
    factors, own = widened(F), F.layers.restrict(params)
    one = trees.leaves(widened(own))[0]
    n = 1 if one_batch(data) else len(data)
    damping = scheduled(rules.damping, 0, "damping", low=0)
    return KFACState(
        torch.zeros((), dtype=torch.int64),
        factors,
        torch.full_like(one.sum(), 1 - rules.decay**n),
        own_axes(factors),
        trees.zeros_like(widened(own)),
        torch.zeros_like(one.sum()) + damping,
    )


def _update(
    f: Callable[..., Tensor],
    rules: Settings,
    grads: Any,
    state: KFACState,
    params: Any,
    batch: Any,
    noise: Any,
    generator: Any,
) -> tuple[Any, KFACState]:
    doors.of_type(state, KFACState, "state", "a KFACState, as init and update give them")
    layers = state.factors.layers
    params = layers.layout.check(parameters(params, False), "params")
    x, target = _one_batch(batch)
    if rules.adapts and rules.loss is None and target is None:
        raise ValueError(
            "batch: got no target, expected (x, target): the damping is adapted by the loss; or give loss=..., or adapt=False"
        )
    grads = layers.layout.check(grads, "grads")
    alike(grads, "grads", params, "params", strict=True)
    n = step_number(state.step, "kfac") if rules.numbered else 0
    state = _refreshed(f, rules, state, params, batch, noise, generator, n)

    own_f = f if layers.complete else layers.restricted(f, params)
    own = layers.restrict(params)
    wide, g = widened(own), widened(layers.restrict(grads))
    g = trees.axpy(rules.l2, wide, g) if rules.l2 else g
    damping = scheduled(rules.damping, n, "damping", low=0) if callable(rules.damping) else state.damping
    direction = trees.scale(-1.0, damped_solve(state.bases, g, damping + rules.l2, rules.kind))
    model = lambda g, directions: model_of(own_f, rules.likelihood, own, x, target, g, directions)
    due = rules.adapts and (n + 1) % rules.adapt_every == 0
    step, length, found, lengths = _step(rules, state, g, direction, damping, model, n, due)
    if due:
        found = cast(Model, found)
        foreseen = found.change(cast(Tensor, lengths), rules.l2)
        moved = trees.map(lambda p, s: (p + s).to(p.dtype), own, step)
        loss = _difference(own_f, rules, own, moved, x, target, batch, layers, params, found.y)
        if rules.l2:
            loss = loss + rules.l2 * (trees.dot(wide, step) + trees.dot(step, step) / 2)
        damping = adapted(
            cast(Tensor, damping), loss, foreseen,
            factor=rules.factor, lower=rules.lower, upper=rules.upper, minimum=rules.minimum,
        )  # fmt: skip
    decay = scheduled(rules.weight_decay, n, "weight_decay", low=0)
    out = trees.axpy(-length * decay, wide, step) if callable(rules.weight_decay) or decay else step
    updates = trees.map(lambda t, p: t.to(p.dtype), out, own)
    after = dataclasses.replace(
        state, step=state.step + 1, velocity=step, damping=torch.zeros_like(state.damping) + damping
    )
    return _lifted(layers, updates, params), after


def _refreshed(
    f: Callable[..., Tensor], rules: Settings, state: KFACState, params: Any, batch: Any, noise: Any, generator: Any, n: int
) -> KFACState:
    """With new factors, and new bases, where it is their turn."""
    layers = state.factors.layers
    if n % rules.factors_every == 0:
        F = fim(
            f, params, batch, PMatKFAC, rules.likelihood, rules.estimator, layers, generator if rules.estimator == "mc" else None,
            noise=noise, check_finite=False,
        )  # fmt: skip
        factors, weight = averaged(state.factors, F, state.weight, rules.decay)
        state = dataclasses.replace(state, factors=factors, weight=weight)
    return dataclasses.replace(state, bases=eigenbases(state.factors)) if n % rules.bases_every == 0 else state


def _step(
    rules: Settings,
    state: KFACState,
    g: Any,
    direction: Any,
    damping: Any,
    model: Callable[[Any, list[Any]], Model],
    n: int,
    due: bool,
) -> tuple[Any, Any, Model | None, Tensor | None]:
    """(the update, its length along the direction, the model and the lengths in it where one was made)."""
    if rules.rate is None:
        still = not callable(rules.momentum) and not isinstance(rules.momentum, Tensor) and rules.momentum == 0
        directions = [direction] if still else [direction, state.velocity]
        found = model(g, directions)
        lengths = found.lengths(damping + rules.l2)
        lengths = _clipped(rules, found, lengths)
        return _combined(directions, lengths), lengths[0], found, lengths
    rate = scheduled(rules.rate, n, "rate", low=0)
    momentum = scheduled(rules.momentum, n, "momentum", low=0, high=1, below=True)
    if rules.norm_constraint is not None:
        squared = rate * rate * -trees.dot(direction, g)
        direction = trees.scale(_shrink(rules.norm_constraint, squared), direction)
    step = trees.map(lambda d, v: rate * d + momentum * v, direction, state.velocity)
    if rules.clip is None and not due:
        return step, rate, None, None
    found = model(g, [step])
    lengths = _clipped(rules, found, torch.ones_like(found.slopes))
    return trees.scale(lengths[0], step), rate, found, lengths


def _clipped(rules: Settings, found: Model, lengths: Tensor) -> Tensor:
    return lengths if rules.clip is None else lengths * _shrink(rules.clip, lengths @ found.curved @ lengths)


def _shrink(most: float, squared: Tensor) -> Tensor:
    """The factor that brings a squared norm down to `most`, 1 where it is no larger."""
    over = squared > most
    return torch.where(over, (most / torch.where(over, squared, 1.0)).sqrt(), 1.0)


def _combined(directions: list[Any], lengths: Tensor) -> Any:
    return trees.map(lambda *ds: sum(c * d for c, d in zip(lengths.unbind(), ds)), *directions)


def _difference(
    f: Callable[..., Tensor],
    rules: Settings,
    own: Any,
    moved: Any,
    x: Any,
    target: Any,
    batch: Any,
    layers: LayerCollection,
    params: Any,
    y: Tensor,
) -> Tensor:
    """What a step does to the mean loss on the batch: example by example where they are known, for no digits are lost so."""
    if rules.loss is None:
        log_prob = rules.likelihood.log_prob  # type: ignore[attr-defined]
        return (log_prob(working(y), target) - log_prob(working(f(moved, x)), target)).mean()
    before, after = (rules.loss(_lifted(layers, p, params, params), batch) for p in (own, moved))
    return working(after - before).mean()


def _lifted(layers: LayerCollection, own: Any, params: Any, rest: Any = None) -> Any:
    """The tree like params with these leaves of the layers, and zeros (or `rest`) elsewhere."""
    if layers.complete:
        return own
    whole: Callable[..., Any] = layers.restricted(lambda p, _: p, trees.zeros_like(params) if rest is None else rest)
    return whole(own, None)


def _one_batch(batch: Any) -> tuple[Any, Any]:
    if not one_batch(batch):
        raise TypeError(
            f"batch: got {type(batch).__name__}, expected one batch, x or (x, target): a step is made on one batch"
        )
    return next(iter(batches(batch)))
