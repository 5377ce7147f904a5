"""The door of growth: mappings and precision of what enters, and how many units may be asked for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from linmaps import trees
from linmaps.checks import size
from linmaps.checks.annotations import annotated
from linmaps.checks.precision import full_precision
from linmaps.checks.uncompiled import original
from linmaps.trees import path_str
from linmaps.trees.mappings import plain
from linmaps.trees.seals import unsealing

Fn = TypeVar("Fn", bound=Callable[..., Any])

MOST = 2**20  # units in one step: more is a mistake, to be met before memory is


def door(*calls: str) -> Callable[[Fn], Fn]:
    """Decorator: holds arguments against their annotations, computes in their dtype under autocast, takes any mapping as
    params, grown or state, and refuses leaves that are no tensors and a module in place of a function.

    calls: its arguments that are functions of the user, which run under the autocast there is.

    >>> import collections, torch
    >>> door()(lambda params: params)(collections.UserDict(a=torch.ones(1)))
    {'a': tensor([1.])}
    """

    def decorate(fn: Fn) -> Fn:
        parameters = inspect.signature(fn).parameters
        names, may_be_none = list(parameters), {n for n, p in parameters.items() if p.default is None}
        checked = annotated(fn)

        def entered(name: str, value: Any) -> Any:
            skipped = name not in ENTRIES or (value is None and name in may_be_none)
            return value if skipped else ENTRIES[name](value, name)

        @functools.wraps(fn)
        def run(*args: Any, **options: Any) -> Any:
            args = tuple(entered(n, a) for n, a in zip(names, args)) + args[len(names) :]
            options = {n: entered(n, a) for n, a in options.items()}
            return checked(args, options)

        return full_precision(*calls)(run)  # type: ignore[return-value]

    return decorate


def _tree(tree: Any, name: str) -> Any:
    if isinstance(tree, nn.Module):
        raise TypeError(
            f"{name}: got {type(tree).__name__}, a module, expected a tree of tensors; of a module: "
            "f, params = fisher.functional(module)"
        )
    tree = plain(tree)
    flat = trees.leaves(tree)
    if not all(isinstance(t, Tensor) and t.layout is torch.strided for t in flat):
        where, t = next(
            (p, t)
            for p, t in zip(trees.paths(tree), flat)
            if not isinstance(t, Tensor) or t.layout is not torch.strided
        )
        got = f"a tensor of {t.layout}" if isinstance(t, Tensor) else type(t).__name__
        at = f"{name}: {path_str(where)}" if where else name
        raise TypeError(f"{at}: got {got}, expected a dense tensor; keep settings out of params")
    return tree


def _function(f: Any, name: str) -> Any:
    if isinstance(f, nn.Module) or not callable(f):
        raise TypeError(
            f"{name}: got {type(f).__name__}, expected a function f(params, x); of a module f, params = fisher.functional(module)"
        )
    return unsealing(original(f))


ENTRIES: dict[str, Callable[[Any, str], Any]] = {
    "params": _tree,
    "grown": _tree,
    "state": lambda state, _: plain(state),
    "f": _function,
}


def count(k: Any, name: str = "k", low: int = 0, high: int = MOST, *, cure: str = "to remove units use prune") -> None:
    """Raise unless k is a number of units to add, which is static: TypeError for no int, ValueError out of range.

    >>> count(10**9)
    Traceback (most recent call last):
    ValueError: k: got 1000000000, expected an int from 0 to 1048576; to remove units use prune
    """
    size(k, name, low, high, cure=cure)
