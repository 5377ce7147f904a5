"""The factors and bases in a state: made at the start, and anew where it is their turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size
from fisher.checks.data import one_batch, weighted_batches
from fisher.checks.placements import whole
from fisher.collector.collection import LayerCollection
from fisher.distributed.stages import Reduce, callable_or_none, group_of, mean_over_all
from fisher.likelihoods import Likelihood
from fisher.likelihoods.columns import ESTIMATORS, Estimator
from fisher.passes.fold import Mean
from fisher.passes.information import factors_and_moments, fim
from fisher.pmat import PMatEKFAC, PMatKFAC
from fisher.recipes.optimizers.batchnorm import Statistics, held, of_batch, standing_in, without
from fisher.recipes.optimizers.curvature import averaged, eigenbases, own_axes, turned, widened
from fisher.recipes.optimizers.memory import KFACState
from fisher.recipes.optimizers.schedules import Turn
from fisher.trials import modes
from linmaps import trees
from linmaps.checks import alike, number, size
from linmaps.trees.graphs.latest import Latest
from linmaps.trees.keys import names


@dataclasses.dataclass(frozen=True)
class Upkeep:
    """How the factors of f are kept: what `fim` takes, the decay of their average, every how many steps."""

    f: Callable[..., Tensor]
    likelihood: Likelihood
    estimator: Estimator
    layers: LayerCollection | None
    decay: float
    factors_every: int
    bases_every: int
    correct: bool = False
    statistics: Statistics | None = None
    reduce: Reduce | None = None
    kind: str = "kfac"
    outputs: Latest[Any, Any] = dataclasses.field(default_factory=Latest, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator: got {self.estimator!r}, expected one of {list(ESTIMATORS)}")
        doors.options(layers=self.layers)
        callable_or_none(self.reduce)
        if self.reduce is not None and self.statistics is not None:
            raise ValueError(
                "statistics: got it with reduce, expected one of the two: the statistics of a batch norm over the batches of "
                "all ranks are no sums of this pass; train with its running averages (eval mode), or without reduce"
            )
        number(self.decay, "decay", low=0, high=1, below=True, tensor=False)
        for name in ("factors_every", "bases_every"):
            size(getattr(self, name), name, 1, cure="a number of steps")

    @property
    def numbered(self) -> bool:
        """Whether what is done depends on the number of the step."""
        return self.correct or max(self.factors_every, self.bases_every) > 1

    def turn(self, n: int, adapts: bool = False, numbers: Mapping[str, Any] | None = None) -> Turn:
        """What is due at step n."""
        due = n % self.factors_every == 0, n % self.bases_every == 0
        return Turn(*due, self.correct and n == 0, adapts, dict(numbers or {}))

    def drawn(self, params: Any, batch: Any, noise: Any, generator: Any, turn: Turn) -> Any:
        """The noise of a step, as `factors` draws it by the generator."""
        if noise is not None or generator is None or self.estimator != "mc" or not turn.factors:
            return noise
        x = the_batch(batch)[0]
        flat, treedef = trees.flatten((params, x))
        key = treedef, tuple((t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in flat)
        shape, *like = self.outputs.get(key, lambda: self._output(params, x))
        return self.likelihood.noise(
            (1, *shape), generator, torch.zeros((), dtype=like[0], device=like[1]).expand(shape)
        )

    @torch.no_grad()
    def _output(self, params: Any, x: Any) -> tuple[torch.Size, torch.dtype, torch.device]:
        y = self.f(parameters(params), x)
        return y.shape, y.dtype, y.device

    def factors(self, params: Any, batch: Any, layers: Any, noise: Any, generator: Any, check_finite: bool) -> PMatKFAC:
        drawn = generator if self.estimator == "mc" else None
        return fim(
            self.f, params, batch, PMatKFAC, self.likelihood, self.estimator, layers, drawn, noise=noise,
            check_finite=check_finite, reduce=self.reduce,
        )  # fmt: skip

    def started(self, params: Any, batch: Any, noise: Any, generator: Any, damping: Any) -> KFACState:
        """The state before the first step; several batches weigh as much as so many steps."""
        params = parameters(params)
        data = list(batch) if isinstance(batch, Iterable) and not one_batch(batch) else batch
        F = self.first(params, data, noise, generator)
        first = (
            (data[0] if data else None) if isinstance(data, list) else data
        )  # a rank may have none of several batches
        x = None if first is None else next(iter(weighted_batches(first)))[0]
        own_statistics = {} if x is None else of_batch(self.statistics, params, x)
        if self.kind == "kfac" and x is not None and batch_size(x):
            self._has_forward_mode(F.layers, params, x, own_statistics)
        factors, own = widened(F), widened(F.layers.restrict(params))
        zero = torch.zeros_like(trees.leaves(own)[0].sum())
        n: Any = len(data) if isinstance(data, list) else 1
        n = n if self.reduce is None else mean_over_all(self.reduce, zero + n, 1)  # of the batches of each rank
        return KFACState(
            torch.zeros((), dtype=torch.int64),
            factors,
            zero + (1 - self.decay**n),
            own_axes(factors),
            trees.zeros_like(own),
            zero + damping,
            self.kind,
            tuple(own_statistics),
        )

    def _has_forward_mode(self, layers: LayerCollection, params: Any, x: Any, values: dict[str, Tensor]) -> None:
        """Raise where torch's forward mode of f, by which steps get their lengths, is another than its reverse mode."""
        f, own = held(self.f, values), standing_in(params, values)
        f, own = (f, own) if layers.complete else (layers.restricted(f, own), layers.restrict(own))
        modes.forward(f, own, x, "kfac")

    def first(self, params: Any, data: Any, noise: Any, generator: Any) -> PMatKFAC:
        """The factors of the first batches, each with its own statistics where there are some."""
        if self.statistics is None:
            return self.factors(params, data, self.layers, noise, generator, True)
        mean: Mean[Any] = Mean()
        layers = self.layers
        for x, target, weight in weighted_batches(data):
            values = of_batch(self.statistics, params, x)
            own = standing_in(params, values)
            if mean.mean is None:
                given = layers is not None
                found = LayerCollection.from_function(held(self.f, values), own, x) if layers is None else layers
                layers = without(found, values, given)
            batch = (x, target, weight) if weight is not None else x if target is None else (x, target)
            fixed = dataclasses.replace(self, f=held(self.f, values))
            mean = mean.add(fixed.factors(own, batch, layers, noise, generator, True), batch_size(x))
        made: PMatKFAC = mean.value()
        return made

    def refreshed(self, state: KFACState, params: Any, batch: Any, noise: Any, generator: Any, turn: Turn) -> KFACState:
        """The state with new factors, and new bases, where it is their turn."""
        if turn.factors:
            F, moments = self.seen(state, params, batch, noise, generator)
            factors, weight = averaged(state.factors, F, state.weight, self.decay)
            if moments is not None:
                values, _ = averaged(state.bases.eigenvalues, moments.eigenvalues, state.weight, self.decay)
                state = dataclasses.replace(state, bases=dataclasses.replace(state.bases, eigenvalues=values))
            state = dataclasses.replace(state, factors=factors, weight=weight)
        if not turn.bases:
            return state
        fresh = eigenbases(state.factors, group_of(self.reduce))
        if (
            self.correct and not turn.first
        ):  # the first were those of the axes, of which no more than the diagonal is known
            fresh = dataclasses.replace(turned(state.bases, fresh), exact=fresh.exact)
        return dataclasses.replace(state, bases=fresh)

    def seen(
        self, state: KFACState, params: Any, batch: Any, noise: Any, generator: Any
    ) -> tuple[PMatKFAC, PMatEKFAC | None]:
        """The factors of a batch, and where they correct the eigenvalues the second moments in the bases that there are."""
        if not self.correct:
            return self.factors(params, batch, state.factors.layers, noise, generator, False), None
        like = trees.leaves(params)[0].dtype
        bases = trees.map(lambda t: t.to(like), state.bases)
        return factors_and_moments(
            self.f, params, batch, bases, self.likelihood, self.estimator,
            generator=generator if self.estimator == "mc" else None, noise=noise, reduce=self.reduce,
        )  # fmt: skip

    def of_kind(self, state: Any) -> None:
        """TypeError or ValueError for what is no state of this optimizer."""
        doors.of_type(state, KFACState, "state", "a KFACState, as init and update give them")
        if state.kind != self.kind:
            raise ValueError(
                f"state: is one of {state.kind}, expected one of {self.kind}, which keeps other numbers in it; make it anew by "
                f"the init of {self.kind}"
            )

    def checked(self, grads: Any, state: KFACState, params: Any) -> tuple[Any, Any]:
        """(grads, params) in the order of the state's layers; TypeError or ValueError for what does not fit it."""
        self.of_kind(state)
        layout = state.factors.layers.layout
        params = layout.check(parameters(params), "params")
        grads = layout.check(whole(grads), "grads")
        alike(grads, "grads", params, "params", strict=True)
        return grads, params

    def check_layers(self, state: KFACState, constants: Iterable[str] = ()) -> None:
        """ValueError unless the state is of the layers that this optimizer moves: those given, or all but the constants."""
        have = leaves_of(state.factors.layers)
        if self.layers is None:
            every = names(state.factors.layers.layout.paths)
            left = set(every) - set(constants) - {path for own in have.values() for path in own}
            if not left:
                return
            expected = f"one of all leaves, {sorted(left)} too, as this optimizer was given no layers"
        elif have == leaves_of(self.layers):
            return
        else:
            expected = f"one of {list(leaves_of(self.layers))}, the layers of this optimizer"
        raise ValueError(
            f"state: is of the layers {list(have)}, expected {expected}; make it anew by init, or the optimizer with "
            "layers=state.factors.layers"
        )


def leaves_of(layers: LayerCollection) -> dict[str, list[str]]:
    """The dotted paths of the leaves of each layer: of grown layers the same."""
    every = names(layers.layout.paths)
    return {layer.name: [every[n] for n in layer.leaves] for layer in layers}


def the_batch(batch: Any) -> tuple[Any, Any, Tensor | None]:
    """(x, target, weight) of one batch; TypeError for several."""
    if not one_batch(batch):
        raise TypeError(
            f"batch: got {type(batch).__name__}, expected one batch, x, (x, target) or (x, target, weight): "
            "a step is made on one batch; of a list, as a DataLoader gives it, tuple(batch)"
        )
    return next(iter(weighted_batches(batch)))


def lifted(layers: LayerCollection, own: Any, params: Any, rest: Any = None) -> Any:
    """The tree like params with these leaves of the layers, and zeros (or those of `rest`) elsewhere."""
    if layers.complete:
        return own
    whole: Callable[..., Any] = layers.restricted(lambda p, _: p, trees.zeros_like(params) if rest is None else rest)
    return whole(own, None)
