"""A step of training as one graph: the gradient of the loss, the update of an optimizer, and the params moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.recipes.optimizers.protocol import Optimizer, as_optimizer, asked_for
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.trees.graphs.backends import Backend, CompiledGraph

State = Any


class CompiledStep:
    """What `compiled_step` makes: `(params, state, loss) = step(params, state, batch, noise=None, generator=None)`.

    graphs: those made so far, with the seconds that each took.

    >>> import torch, fisher
    >>> f, w, batch = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, (torch.eye(2), torch.ones(2, 1))
    >>> optimizer = fisher.recipes.kfac(f, "gaussian", estimator="exact")
    >>> step = compiled_step(lambda p, batch: ((f(p, batch[0]) - batch[1]) ** 2).sum(1).mean() / 2, optimizer, "eager")
    >>> step(w, optimizer.init(w, batch), batch)[2], len(step.graphs)
    (tensor(0.5000), 1)
    """

    def __init__(
        self, loss: Callable[[Any, Any], Tensor], optimizer: Optimizer, backend: Backend, progress: bool
    ) -> None:
        self._optimizer = optimizer

        def step(params: Any, state: Any, batch: Any, asked: Any) -> tuple[Any, Any, Tensor]:
            gradient, value = torch.func.grad_and_value(_scalar(loss))(params, batch)
            updates, state = optimizer.update(gradient, state, params, **asked)
            return trees.add(params, updates), state, value

        self._step = trees.compiled(step, backend=backend, progress=progress)

    @property
    def graphs(self) -> tuple[CompiledGraph, ...]:
        """The graphs made so far."""
        return self._step.graphs

    @typed
    def __call__(
        self,
        params: Any,
        state: State,
        batch: Any,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Any, State, Tensor]:
        rule = self._optimizer
        offered = {"batch": batch, "noise": noise, "generator": generator}
        if rule.prepare is not None:
            asked = rule.prepare(state, params, **offered) | {"batch": batch}
        else:
            asked = asked_for(rule.update, **offered)
        state = trees.map(
            lambda t: torch.tensor(t) if type(t) is int else t, state
        )  # a count: no other setting each time
        return self._step(*(trees.map(_plain, tree) for tree in (params, state, batch, asked)))

    def __repr__(self) -> str:
        return repr(self._step).replace("Compiled(", "CompiledStep(", 1)


def _scalar(loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    def one(params: Any, batch: Any) -> Tensor:
        value: Any = loss(params, batch)
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        if got != "shape ()":
            raise ValueError(
                f"loss(params, batch): got a result of {got}, expected a scalar tensor, the mean over examples; of the loss of "
                "each example take .mean()"
            )
        return value

    return one


def _plain(t: Any) -> Any:
    """A tensor in the order of its axes: one graph, whoever made it."""
    return t.contiguous() if isinstance(t, Tensor) else t


@typed
def compiled_step(
    loss: Callable[[Any, Any], Tensor], optimizer: Any, backend: Any = "inductor", progress: bool = False
) -> CompiledStep:
    """A step of training as a few compiled graphs: one for each set of things that are due at a step, all else shared.

        params, state, value = step(params, state, batch, noise=None, generator=None)

    does what `gradient = grad(loss)(params, batch)`, `optimizer.update(gradient, state, params, batch=batch, ...)` and
    `trees.add(params, updates)` do, to rounding; value is loss(params, batch) before the step.  state: of `optimizer.init`.

    loss: (params, batch) -> a scalar, the mean over examples.  optimizer: `kfac`, `soap`, `partitioned`, `growth.adam`, those of
    TorchOpt, ...: what its update decides by the number of the step and draws by the generator is done outside
    (`optimizer.prepare`), and schedules are inputs of the graphs.  Of `kfac` there are at most four graphs: a plain step, one
    with new bases, one where the damping is adapted, one with both; with `factors_every` as many without new factors, and with
    `correct` one of the first step.  The forward that loss, Fisher matrix and model share is computed once.
    backend, progress: as in `trees.compiled`, whose errors these are; ValueError for a loss that is no scalar tensor.

    Give layers to the optimizer, `kfac(f, layers=LayerCollection.from_function(f, params, x))`, or have them found by `init`.

    >>> import torch, fisher
    >>> f = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"]
    >>> params = {"w": torch.ones(2, 3), "v": torch.eye(3)}
    >>> batch = (torch.eye(2), torch.tensor([0, 2]))
    >>> loss = lambda p, batch: torch.nn.functional.cross_entropy(f(p, batch[0]), batch[1])
    >>> optimizer, g = fisher.recipes.kfac(f), torch.Generator().manual_seed(0)
    >>> state = optimizer.init(params, batch, generator=g)
    >>> step = compiled_step(loss, optimizer, backend="eager")  # "inductor" needs a C++ compiler, and is quicker
    >>> for _ in range(10):
    ...     params, state, value = step(params, state, batch, generator=g)
    >>> bool(value < 0.1), len(step.graphs)
    (True, 3)
    """
    doors.function(loss, "loss")
    return CompiledStep(loss, as_optimizer(optimizer), backend, progress)
