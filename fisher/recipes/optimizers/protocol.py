"""The protocol of optimizers: pure functions, and which of the batch, noise and a generator they ask for; other pairs in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple


class _Pair(NamedTuple):
    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]


class Optimizer(_Pair):
    """A pair of pure functions: init(params) -> state, update(gradient, state, params) -> (step to be added, state).

    One that looks at more than gradients names it: `init(params, batch, noise=None, generator=None)` and
    `update(gradient, state, params, batch=batch, noise=None, generator=None)`, as `fisher.recipes.kfac` does.
    prepare: beside the pair, of one whose updates have parts that no graph holds, as random numbers and what is decided by the
    number of the step: `prepare(state, params, batch, noise=None, generator=None)` does them and gives the arguments of `update`
    that stand for them, `update(gradient, state, params, batch=batch, **prepared)`; `compiled_step` calls it.

    >>> import torch
    >>> from linmaps import trees
    >>> rule = Optimizer(lambda params: (), lambda gradient, state, params: (trees.scale(-0.5, gradient), state))
    >>> init, update = rule
    >>> update({"w": torch.ones(1)}, init({"w": torch.zeros(1)}), {"w": torch.zeros(1)})[0]
    {'w': tensor([-0.5000])}
    """

    prepare: Callable[..., dict[str, Any]] | None = None

    def __new__(
        cls,
        init: Callable[..., Any],
        update: Callable[..., tuple[Any, Any]],
        prepare: Callable[..., dict[str, Any]] | None = None,
    ) -> Optimizer:
        made = super().__new__(cls, init, update)
        made.prepare = prepare
        return made


def as_optimizer(rule: Any, name: str = "optimizer") -> Optimizer:
    """The Optimizer, or one of any pair of pure functions init and update; one that takes params by keyword and works in place,
    as those of TorchOpt, is asked for its step alone.

    >>> import torch
    >>> class Halved:
    ...     init = staticmethod(lambda params: ())
    ...     update = staticmethod(
    ...         lambda g, state, *, params=None, inplace=True: (g.mul_(-0.5) if inplace else -g / 2, state)
    ...     )
    >>> g = torch.ones(1)
    >>> as_optimizer(Halved).update(g, (), torch.zeros(1))[0], g
    (tensor([-0.5000]), tensor([1.]))
    """
    if isinstance(rule, Optimizer):
        return rule
    for part in ("init", "update"):
        if not callable(getattr(rule, part, None)):
            raise TypeError(
                f"{name}: got {type(rule).__name__} without a function {part}, expected growth.sgd(), growth.adam(), "
                "or two pure functions growth.Optimizer(init, update); a torch.optim trains modules, not params"
            )
    try:
        signature = inspect.signature(rule.update)
    except ValueError:  # of a builtin
        return Optimizer(rule.init, rule.update)
    by_name = getattr(signature.parameters.get("params"), "kind", None) is inspect.Parameter.KEYWORD_ONLY
    fixed = {"inplace": False} if "inplace" in signature.parameters else {}
    if not by_name and not fixed:
        return Optimizer(rule.init, rule.update)

    def update(gradient: Any, state: Any, params: Any, **asked: Any) -> tuple[Any, Any]:
        if by_name:
            made: tuple[Any, Any] = rule.update(gradient, state, params=params, **fixed, **asked)
        else:
            made = rule.update(gradient, state, params, **fixed, **asked)
        return made

    update.__signature__ = signature  # type: ignore[attr-defined]
    return Optimizer(rule.init, update)


def asked_for(fn: Callable[..., Any], **offered: Any) -> dict[str, Any]:
    """Those of the offered keyword arguments that fn names; all of them for one that takes any.

    >>> asked_for(lambda params, batch: 0, batch=1, generator=2)
    {'batch': 1}
    """
    known = inspect.signature(fn).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return offered
    return {name: value for name, value in offered.items() if name in known}
