"""Natural gradient descent with Levenberg-Marquardt damping: a pure step, its state a record of one number."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic

import torch
from torch import Tensor

from fisher.pmat.contract.pmat import PMat
from fisher.recipes.optimizers.adaptation import adapted
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.trees.printed import cell, on_a_line
from linmaps.trees.tree import Tree


@trees.record()
class Damping:
    """The state between steps: `value`, a scalar tensor, is the regul of the next solve.

    >>> import torch
    >>> Damping(torch.tensor(0.1))
    Damping(0.1)
    """

    value: Tensor

    def __repr__(self) -> str:
        return f"Damping({cell(self.value)})"


@trees.record()
class NaturalStep(Generic[Tree]):
    """A step taken: the params and damping to go on with, the loss there, and the ratio that decided both.

    >>> import torch
    >>> one = torch.tensor(1.0)
    >>> NaturalStep({"w": one}, Damping(one), one, one)
    NaturalStep(loss = 1, ratio = 1, damping = 1)
    """

    params: Tree
    damping: Damping
    loss: Tensor
    ratio: Tensor

    def __repr__(self) -> str:
        said = {"loss": self.loss, "ratio": self.ratio, "damping": self.damping.value}
        return on_a_line(self, [f"{name} = {cell(t)}" for name, t in said.items()])


@typed
@full_precision()
def natural_gradient_step(
    loss: Callable[[Any], Tensor],
    params: Tree,
    F: PMat,
    gradient: Any,
    damping: Damping,
    *,
    factor: float = 1.5,
    lower: float = 0.25,
    upper: float = 0.75,
    minimum: float = 1e-10,
    solve: Callable[..., Any] | None = None,
    **options: Any,
) -> NaturalStep[Tree]:
    """params - (F + damping I)^-1 gradient, and the damping for the next step.

    The quadratic model q(s) = gradient's + s'F s / 2 predicts what the loss does; with
    ratio = (loss(params) - loss(params + s)) / -q(s),

        damping <- damping factor  if ratio < lower,   damping / factor  if ratio > upper,   not below minimum,

    and the step is taken where the loss falls; else params stay and only the damping grows.  loss: params -> scalar, the
    mean loss of which F is the Fisher (or Gauss-Newton) matrix and `gradient` the gradient.  options: of F.solve.
    solve: what is ready to be used in place of F.solve, (gradient, damping) -> tree like params, or (gradient) -> tree: of an
    eigendecomposition that is kept, of factors where F is the whole matrix.
    Two evaluations of the loss; no branch on values, so that an ensemble is one vmap.  ValueError for factor <= 1.

    Levenberg (1944); Marquardt (1963); Martens and Grosse (2015), section 6.5.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> p, x = {"w": torch.zeros(2, 1)}, torch.eye(2)
    >>> loss = lambda p: ((f(p, x) - 1) ** 2).sum() / 4
    >>> F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    >>> step = natural_gradient_step(loss, p, F, torch.func.grad(loss)(p), Damping(torch.tensor(1e-3)))
    >>> step.params["w"].T, step.damping
    (tensor([[0.9980, 0.9980]]), Damping(0.0006667))
    """
    checks.number(damping.value, "damping", low=0)
    for name, number in (("factor", factor), ("lower", lower), ("upper", upper), ("minimum", minimum)):
        checks.number(number, name, low=0, tensor=False)
    if not factor > 1 or not 0 < lower < upper:
        raise ValueError(
            f"got factor={factor}, lower={lower}, upper={upper}, expected factor > 1 and 0 < lower < upper"
        )
    params = F.check_vector(params, "params")
    if solve is not None and options:
        raise ValueError(f"solve: got it with options {sorted(options)} of F.solve, expected one of the two")
    found = F.solve(gradient, damping.value, **options) if solve is None else _ready(solve, gradient, damping.value)
    step = trees.scale(-1.0, F.check_vector(found, "solve(gradient)"))
    moved = trees.add(params, step)
    before, after = (_scalar(loss(p)) for p in (params, moved))
    predicted = -(trees.dot(gradient, step) + F.vTMv(step) / 2)
    ratio = torch.where(predicted != 0, (before - after) / torch.where(predicted != 0, predicted, 1.0), 1.0)
    value = adapted(damping.value, before - after, predicted, factor=factor, lower=lower, upper=upper, minimum=minimum)
    falls = after < before
    return NaturalStep(
        trees.map(lambda new, old: torch.where(falls, new, old), moved, params),
        Damping(value),
        torch.where(falls, after, before),
        ratio,
    )


def _scalar(found: Any) -> Tensor:
    """The loss; ValueError unless it is a scalar."""
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != ():
        raise ValueError(f"loss(params): got a result of shape {shape}, expected a scalar; take the mean, .mean()")
    made: Tensor = found
    return made


def _ready(solve: Callable[..., Any], gradient: Any, damping: Tensor) -> Any:
    """solve(gradient, damping), or solve(gradient) of one that takes no more."""
    try:
        inspect.signature(solve).bind(gradient, damping)
    except TypeError:
        return solve(gradient)
    return solve(gradient, damping)
