"""Optimizers as pairs of pure functions, for recipes that train in between: gradient descent with momentum, Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from fisher.recipes.optimizers.protocol import Optimizer as Optimizer
from linmaps import trees
from linmaps.checks import number
from linmaps.checks.annotations import typed


@typed
def sgd(lr: float = 0.1, momentum: float = 0.9) -> Optimizer:
    """Gradient descent with momentum as in `torch.optim.SGD`: m <- μ m + g, step -lr m.

    >>> import torch
    >>> rule, w = sgd(1.0, 0.5), {"w": torch.zeros(())}
    >>> step, state = rule.update({"w": torch.ones(())}, rule.init(w), w)
    >>> rule.update({"w": torch.ones(())}, state, w)[0]
    {'w': tensor(-1.5000)}
    """

    number(lr, "lr", low=0)
    number(momentum, "momentum", low=0, high=1, below=True)

    def update(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        moment = trees.axpy(momentum, state["momentum"], gradient)
        return trees.scale(-lr, moment), {"momentum": moment}

    return Optimizer(lambda params: {"momentum": trees.zeros_like(params)}, update)


@typed
def adam(lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """Adam as in `torch.optim.Adam`; entries added by growth start with zero moments and the common step count.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization" (2015).

    >>> import torch
    >>> rule, w = adam(0.1), {"w": torch.zeros(())}
    >>> rule.update({"w": torch.tensor(7.0)}, rule.init(w), w)[0]
    {'w': tensor(-0.1000)}
    """
    number(lr, "lr", low=0)
    number(eps, "eps", low=0)
    first, second = betas
    for beta in betas:
        number(beta, "betas", low=0, high=1, below=True)

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


def gradients(loss: Callable[[Any], Tensor], params: Any) -> Any:
    """The gradient of a loss of params as a tree like these; zeros for leaves that are no real numbers, such as counters.

    >>> import torch
    >>> gradients(lambda p: (p["w"] ** 2).sum(), {"w": torch.ones(1), "n": torch.tensor(3)})
    {'w': tensor([2.]), 'n': tensor(0)}
    """
    flat, treedef = trees.flatten(params)
    real = [i for i, t in enumerate(flat) if t.is_floating_point()]

    def of(some: list[Tensor]) -> Tensor:
        own = dict(zip(real, some))
        return loss(treedef.unflatten([own.get(i, t) for i, t in enumerate(flat)]))

    own = dict(zip(real, grad(of)([flat[i] for i in real])))
    return treedef.unflatten([own[i] if i in own else torch.zeros_like(t) for i, t in enumerate(flat)])


def moved(params: Any, step: Any) -> Any:
    """params + step, where they are real numbers; counters stay.

    >>> import torch
    >>> moved({"w": torch.ones(1), "n": torch.tensor(3)}, {"w": torch.ones(1), "n": torch.tensor(0.0)})
    {'w': tensor([2.]), 'n': tensor(3)}
    """
    return trees.map(lambda t, s: t + s if t.is_floating_point() else t, params, step)
