"""What every public function of params does first: mappings become dicts, and torch.autocast is off inside.

Results then have the dtype of the arguments, and the same bits, wherever the function is called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from linmaps import trees
from linmaps.checks.explanations import explained, explanation_of
from linmaps.checks.precision import HALF, active, autocasting, is_on
from linmaps.checks.wrapping import at_home
from linmaps.trees.mappings import is_mapping

Fn = TypeVar("Fn", bound=Callable[..., Any])


LEAVES = (Tensor, Parameter)


def dicts(node: Any) -> Any:
    """The tree with a dict for each mapping, whatever its type, as deep as mappings go."""
    if bare((node,)):
        return node  # as nearly always
    return {k: dicts(node[k]) for k in node.keys()} if is_mapping(node) else node  # noqa: SIM118


def bare(args: tuple[Any, ...]) -> bool:
    """Whether all are tensors and dicts of tensors.

    >>> bare((torch.ones(1), {"a": torch.ones(1)})), bare(({"a": {}},))
    (True, False)
    """
    for node in args:
        if type(node) is dict:
            for leaf in node.values():
                if type(leaf) not in LEAVES:
                    return False
        elif type(node) not in LEAVES:
            return False
    return True


def widened(args: Any) -> Any:
    """What autocast left in half precision, in the dtype of the other arguments."""
    found = {t.dtype.to_real() for t in trees.leaves(args) if isinstance(t, Tensor) and _inexact(t)}
    wider = found - set(HALF)
    if not wider:
        return args
    dtype = functools.reduce(torch.promote_types, wider)
    return trees.map(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.dtype in HALF else t, args)


def _inexact(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def door(fn: Fn) -> Fn:
    """Decorator: fn takes any mapping for a dict, and computes under torch.autocast as it does without.

    Derivatives that are taken under autocast are torch's, in its dtype.

    >>> import torch
    >>> product = door(lambda a, b: a @ b)
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     product(torch.ones(1, 1), torch.ones(1, 1)).dtype
    torch.float32
    """
    on, states_now, off = is_on, active, autocasting
    plain, wide = dicts, widened

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        args = tuple([plain(a) for a in args])
        if kwargs:
            kwargs = {k: plain(a) for k, a in kwargs.items()}
        if not on():
            return fn(*args, **kwargs)
        args, kwargs = wide((args, kwargs))
        with off(states_now(), False):
            return fn(*args, **kwargs)

    return at_home(wrapped, fn)


def method_door(fn: Fn) -> Fn:
    """`door` of a method whose errors from torch are explained: one wrapper for a call with dicts of tensors and autocast off,
    as nearly always."""
    thorough, explanation = door(explained(fn)), explanation_of(fn)
    on, compiling, plain = is_on, torch.compiler.is_compiling, bare

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs or on() or compiling() or not plain(args):
            return thorough(self, *args, **kwargs)
        try:
            return fn(self, *args)
        except Exception as error:
            if found := explanation(error, (self, *args), kwargs):
                raise found from error
            raise

    return at_home(wrapped, fn)
