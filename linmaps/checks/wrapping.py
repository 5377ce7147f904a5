"""Wrappers that are at home where the function is that they wrap."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast

Fn = TypeVar("Fn", bound=Callable[..., Any])


def at_home(wrapper: Callable[..., Any], fn: Fn) -> Fn:
    """The wrapper (which may use no global name) as a function of fn's module, with its name, docstring and signature.

    By the globals of a function doctest and pickle know the module that it is of.

    >>> import math, fractions
    >>> made = at_home(lambda *args: math, fractions.Fraction.limit_denominator)
    >>> made.__name__, made.__globals__ is vars(fractions)
    ('limit_denominator', True)
    """
    own = FunctionType(wrapper.__code__, fn.__globals__, None, None, wrapper.__closure__)
    return cast(Fn, functools.wraps(fn)(own))
