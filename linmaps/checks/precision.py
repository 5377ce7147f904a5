"""Numbers in the precision of their tensors, whatever `torch.autocast` is on around a call."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, TypeVar

import torch

from linmaps.checks.annotations import mistaken, typed
from linmaps.checks.explanations import explained
from linmaps.checks.wrapping import at_home

Fn = TypeVar("Fn", bound=Callable[..., Any])
State = tuple[str, torch.dtype, bool]

HALF = (torch.float16, torch.bfloat16)
DEVICES = tuple(torch._C._autocast_supported_devices())  # all that torch knows: no device is asked
UNSEEN = ("mps", "maia")  # by torch's own question whether autocast is on anywhere


def asked(accelerator: str | None) -> Callable[[], bool]:
    """The quickest question whether autocast is on, for a build of torch with this accelerator: most calls ask nothing
    else."""
    anywhere, on = torch._C._is_any_autocast_enabled, torch.is_autocast_enabled
    return (lambda: anywhere() or on(accelerator)) if accelerator in UNSEEN else anywhere


_accelerator = torch.accelerator.current_accelerator()  # of the build: no device is asked
is_on = asked(None if _accelerator is None else _accelerator.type)


def active() -> list[State]:
    """The devices on which autocast is on, each with its dtype and whether casts of weights are kept.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     active()
    [('cpu', torch.bfloat16, True)]
    """
    kept = torch.is_autocast_cache_enabled()
    return [(d, torch.get_autocast_dtype(d), kept) for d in DEVICES if torch.is_autocast_enabled(d)]


@contextlib.contextmanager
def autocasting(states: list[State], enabled: bool) -> Iterator[None]:
    """Autocast on (as it was), or off, on these devices."""
    with contextlib.ExitStack() as stack:
        for device, dtype, kept in states:
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=kept))
        yield


def outside_graphs(fn: Fn) -> Fn:
    """Decorator: torch.compile, whose tracer has no numbers to look at, leaves the function out of its graphs.

    >>> outside_graphs(abs)(-1)
    1
    """
    compiling, eagerly = torch.compiler.is_dynamo_compiling, torch.compiler.disable

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        return eagerly(fn)(*args, **kwargs) if compiling() else fn(*args, **kwargs)

    return run  # type: ignore[return-value]


def full_precision(*calls: str) -> Callable[[Fn], Fn]:
    """Decorator: the function runs with autocast off; the functions that it is given as the arguments `calls` run with
    autocast as it was around the call.

    torch.compile, whose tracer does not see what a TorchFunctionMode sees, leaves out of its graphs what is given functions.

    >>> @full_precision("f")
    ... def twice(f, x):
    ...     return f(x).dtype, (x @ x).dtype
    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     twice(lambda x: x @ x, torch.ones(2, 2))
    (torch.bfloat16, torch.float32)
    """

    def decorate(fn: Fn) -> Fn:
        signature = inspect.signature(fn) if calls else None
        on, states_now, off, as_it_was = is_on, active, autocasting, _as_it_was
        compiling, eagerly = torch.compiler.is_dynamo_compiling, torch.compiler.disable

        def run(*args: Any, **kwargs: Any) -> Any:
            if calls and compiling():
                return eagerly(fn)(*args, **kwargs)
            if not on():
                return fn(*args, **kwargs)
            states = states_now()
            if signature is not None:
                bound = signature.bind(*args, **kwargs)
                for name in calls:
                    if callable(bound.arguments.get(name)):
                        bound.arguments[name] = as_it_was(bound.arguments[name], states)
                args, kwargs = bound.args, bound.kwargs
            with off(states, False):
                return fn(*args, **kwargs)

        return at_home(run, fn)

    return decorate


def _as_it_was(f: Callable[..., Any], states: list[State]) -> Callable[..., Any]:
    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        with autocasting(states, True):
            return f(*args, **kwargs)

    return run


OPERATORS = ("__matmul__", "__add__", "__sub__", "__mul__", "__pow__", "__truediv__", "__neg__", "__call__")


def full_precision_methods(cls: type, *, annotated: bool = False) -> None:
    """Each public method that a class itself defines, and its operators, run with autocast off and explain torch's
    errors; for `__init_subclass__`.  annotated: arguments of methods are `typed`.

    torch.compile leaves them out of its graphs, which would hold what Python does around the arithmetic.
    """
    for name, member in list(vars(cls).items()):
        public = not name.startswith("_")
        if isinstance(member, FunctionType) and (public or name in OPERATORS):
            setattr(cls, name, _method(member, annotated and public))


def _method(fn: Callable[..., Any], annotated: bool) -> Callable[..., Any]:
    """One wrapper for a call in which nothing is wrong and autocast is off, as nearly always; `thorough` is for the others."""
    quick = explained(fn)
    thorough = full_precision()(typed(fn) if annotated else quick)
    wrong = mistaken(fn) if annotated else None
    on, compiling, eagerly = is_on, torch.compiler.is_dynamo_compiling, torch.compiler.disable

    def run(*args: Any, **kwargs: Any) -> Any:
        if compiling():
            return eagerly(thorough)(*args, **kwargs)
        if on() or (wrong is not None and wrong(args, kwargs) is not None):
            return thorough(*args, **kwargs)
        return quick(*args, **kwargs)

    return at_home(run, fn)
