"""SOAP: Adam in the eigenbases of the Kronecker factors of the Fisher matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.checks.placements import placed
from fisher.collector.collection import LayerCollection
from fisher.distributed.stages import Reduce
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.columns import Estimator
from fisher.likelihoods.names import LikelihoodName
from fisher.pmat import PMatEKFAC
from fisher.recipes.optimizers.curvature import turned, widened
from fisher.recipes.optimizers.memory import KFACState, step_number
from fisher.recipes.optimizers.protocol import Optimizer
from fisher.recipes.optimizers.schedules import Turn, check_schedule, scheduled_at
from fisher.recipes.optimizers.upkeep import Upkeep, lifted
from linmaps import trees
from linmaps.checks import number
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision, outside_graphs

ROUNDINGS = 10  # of the norm of a gradient, which a coordinate of it in another basis may be off by


@full_precision("f")
@typed
def soap(
    f: Callable[..., Tensor],
    likelihood: LikelihoodName | Likelihood = "categorical",
    *,
    layers: LayerCollection | None = None,
    estimator: Estimator = "mc",
    decay: float = 0.95,
    factors_every: int = 1,
    bases_every: int = 10,
    rate: Any = 3e-3,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: Any = 0.0,
    reduce: Reduce | None = None,
) -> Optimizer:
    """SOAP: Adam whose second moments are those of the gradient in the eigenbases U, W of the Kronecker factors.

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) (W'g U)^2,
        update = -rate W [(W'm U / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)] U'

    The factors are those of the Fisher matrix by its `estimator` (of its gradients by example; "empirical" at the targets of
    the data), not G G' and G'G of the gradient of the batch, as in the paper; f, likelihood, layers, estimator, decay,
    factors_every, bases_every, rate, weight_decay (-rate weight_decay params beside the update), and how `init` and `update` are
    called as in `kfac`.  Where bases are made anew, v goes along as the diagonal of a matrix does: its trace is kept.
    What has no factors has moments in the eigenbasis of its exact block, or entry by entry.  An entry stays as it is where v is
    below (10 roundings)^2 of the sum of v over the layer, as rounding would be all that it follows.  Of gradients that are no
    numbers, or have squares that overflow, steps are NaN.

    reduce: as in `kfac`: the factors are those of all ranks, `gradient` is the one over all examples.

    state: a `KFACState`; velocity is m, bases.eigenvalues are v, damping is 0.  No model is made: a step is one fim, two
    rotations, and every bases_every steps the eigenvectors.

    Vyas et al. (2024), SOAP: improving and stabilizing Shampoo using Adam.

    >>> import torch, fisher
    >>> f, w, batch = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, (torch.eye(2), torch.ones(2, 1))
    >>> optimizer = soap(f, "gaussian", estimator="exact", rate=0.1)
    >>> state = optimizer.init(w, batch)
    >>> updates, state = optimizer.update({"w": torch.full((2, 1), -0.5)}, state, w, batch=batch)
    >>> updates["w"].T, state
    (tensor([[0.1000, 0.1000]]), KFACState(step 1, 1 layers, 2 parameters, damping 0))
    """
    upkeep = Upkeep(
        doors.function(f),
        find_likelihood(likelihood),
        estimator,
        layers,
        decay,
        factors_every,
        bases_every,
        reduce=reduce,
        kind="soap",
    )
    check_schedule(rate, "rate", low=0)
    check_schedule(weight_decay, "weight_decay", low=0)
    number(eps, "eps", low=0, tensor=False)
    for beta in betas:
        number(beta, "betas", low=0, high=1, below=True, tensor=False)
    rules = _Rules(rate, betas, eps, weight_decay)

    @outside_graphs
    @typed
    def init(
        params: Any, batch: Any, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> KFACState:
        return _init(upkeep.f, upkeep, params, batch, noise, generator)

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
        turn = rules.turn(upkeep, state) if turn is None else turn
        made, after = _update(upkeep.f, upkeep, rules, grads, state, params, batch, noise, generator, turn)
        return placed(made, params), after

    def prepare(state: KFACState, params: Any, batch: Any, noise: Any = None, generator: Any = None) -> dict[str, Any]:
        turn = rules.turn(upkeep, state)
        drawn = upkeep.drawn(params, batch, noise, generator, turn)
        return {"noise": drawn, "turn": turn.in_tensors(trees.leaves(state.velocity)[0])}

    return Optimizer(init, update, prepare)


@dataclasses.dataclass(frozen=True)
class _Rules:
    rate: Any
    betas: tuple[float, float]
    eps: float
    weight_decay: Any

    def turn(self, upkeep: Upkeep, state: KFACState) -> Turn:
        upkeep.of_kind(state)
        moving = {"rate": (self.rate, {"low": 0}), "weight_decay": (self.weight_decay, {"low": 0})}
        numbered = upkeep.numbered or callable(self.rate) or callable(self.weight_decay)
        n = step_number(state.step, "soap") if numbered else 0
        return upkeep.turn(n, numbers=scheduled_at(n, moving, trees.leaves(state.velocity)[0]))


@full_precision("f")
def _init(f: Callable[..., Tensor], upkeep: Upkeep, params: Any, batch: Any, noise: Any, generator: Any) -> KFACState:
    state = dataclasses.replace(upkeep, f=f).started(params, batch, noise, generator, 0.0)
    return dataclasses.replace(state, bases=_emptied(state.bases))


@full_precision("f")
def _update(
    f: Callable[..., Tensor],
    upkeep: Upkeep,
    rules: _Rules,
    grads: Any,
    state: KFACState,
    params: Any,
    batch: Any,
    noise: Any,
    generator: Any,
    turn: Turn,
) -> tuple[Any, KFACState]:
    grads, params = upkeep.checked(grads, state, params)
    upkeep.check_layers(state)
    moments = state.bases
    state = dataclasses.replace(upkeep, f=f).refreshed(state, params, batch, noise, generator, turn)
    moments = turned(moments, state.bases) if turn.bases else moments
    layers = state.factors.layers
    own = layers.restrict(params)
    wide, g = widened(own), widened(layers.restrict(grads))
    first, second = rules.betas
    mean = trees.map(lambda m, g: first * m + (1 - first) * g, state.velocity, g)
    squares = {name: t**2 for name, t in moments.project_to_diag(g).items()}
    average = lambda old, new: second * old + (1 - second) * new
    moments = PMatEKFAC(
        {name: average(v, squares[name]) for name, v in moments.eigenvalues.items()},
        moments.bases,
        {name: average(v, squares[name].reshape(v.shape)) for name, v in moments.exact.items()},
        layers,
    )
    t = (state.step + 1).to(trees.leaves(mean)[0])
    a, b = 1 - first**t, 1 - second**t
    values = moments.eigenvalues | moments.exact
    turned_mean = moments.project_to_diag(mean)
    scaled = {name: _scaled(z / a, values[name].reshape(z.shape) / b, rules.eps) for name, z in turned_mean.items()}
    rate = turn.at("rate", rules.rate, t, low=0)
    step = trees.scale(-rate, moments.project_from_diag(scaled))
    decay = turn.at("weight_decay", rules.weight_decay, t, low=0)
    whole = trees.axpy(-rate * decay, wide, step)
    updates = trees.map(
        lambda t, p: t.to(p.dtype).clone(), whole, own
    )  # none of the state's own: chains change them in place
    after = dataclasses.replace(state, step=state.step + 1, velocity=mean, bases=moments)
    return lifted(layers, updates, params), after


def _scaled(mean: Tensor, second: Tensor, eps: float) -> Tensor:
    """Adam's step [entries of a layer]: 0 where rotations of all of the gradient leave nothing but rounding, NaN where moments of
    the layer are no numbers."""
    rounding = (ROUNDINGS * torch.finfo(second.dtype).eps) ** 2 * second.sum()
    return torch.where(second > rounding, mean / (second.sqrt() + eps), 0.0 * rounding)


def _emptied(bases: PMatEKFAC) -> PMatEKFAC:
    """Zeros in the same bases; of exact blocks a zero for each entry."""
    sizes = {layer.name: layer.numel for layer in bases.layers}
    zero = {n: m.new_zeros(sizes[n]) for n, m in bases.exact.items()}
    return PMatEKFAC({n: torch.zeros_like(D) for n, D in bases.eigenvalues.items()}, bases.bases, zero, bases.layers)
