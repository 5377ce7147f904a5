"""Arguments of functions held against their annotations, before anything runs."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from linmaps.checks.arguments import number
from linmaps.checks.explanations import explained, said
from linmaps.checks.wrapping import at_home

F = TypeVar("F", bound=Callable[..., Any])
Fits = Callable[[Any, str], bool]


def typed(fn: F) -> F:
    """The function, which raises a TypeError that names the argument where one is not what its annotation says.

    An int is no bool and no float, a float is a finite number, where `float | Tensor` stands a tensor is real and finite, text
    is no sequence; what is annotated Any is left to the function, and so is which texts of a Literal are meant.  A default
    may always be given.

    >>> @typed
    ... def scaled(factor: float, names: Sequence[str] = ()) -> float:
    ...     return 2 * factor
    >>> scaled("x")
    Traceback (most recent call last):
    TypeError: factor: got str, expected float
    """
    checked = annotated(fn)

    def opened(*args: Any, **kwargs: Any) -> Any:
        return checked(args, kwargs)

    return at_home(opened, fn)


def annotated(fn: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """`checked(args, kwargs)`, which calls fn as `typed(fn)` does."""
    explaining, wrong = explained(fn), mistaken(fn)

    def checked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        error = None if torch.compiler.is_compiling() else wrong(args, kwargs)
        if error is None:
            return explaining(*args, **kwargs)
        try:  # what the function itself says of it is more to the point
            fn(*args, **kwargs)
        except Exception as own:
            if said(own):
                raise
            raise error from own
        raise error

    return checked


def mistaken(fn: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], Exception | None]:
    """`wrong(args, kwargs)`: the error of the first argument that is not what its annotation says, None where all are."""
    names, defaults = _parameters(fn)

    @functools.cache
    def hints() -> dict[str, Fits]:
        """Of what can be told."""
        known = {name: _fitting(hint) for name in names if (hint := _hint(fn, name)) is not Any}
        return {name: fine for name, fine in known.items() if fine is not _anything}

    def wrong(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
        known = hints()
        if not known:
            return None
        for name, value in (*zip(names, args), *kwargs.items()):
            if name in known and value is not defaults.get(name, known):
                try:
                    fine = known[name](value, name)
                except (TypeError, ValueError) as error:
                    return error
                if not fine:
                    return TypeError(f"{name}: got {_shown(value)}, expected {_written(fn, name)}")
        return None

    return wrong


def fits(value: Any, hint: Any, name: str = "value") -> bool:
    """Whether a value is what an annotation says; ValueError that names it for a number that is not finite.

    >>> fits(2, float), fits(True, int), fits("ab", Sequence[str]), fits(None, int | None), fits([1, "a"], list[int])
    (True, False, False, True, False)
    >>> fits("b", Literal["a"]), fits(1, Literal["a"])
    (True, False)
    """
    return _fitting(hint)(value, name)


def _fitting(hint: Any) -> Fits:
    """`fits` of one annotation, which is taken apart once."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, TypeVar):
        return _anything if hint.__bound__ is None else _fitting(hint.__bound__)
    if hint in (Any, bool):
        return _anything
    if hint is None or hint is type(None):
        return lambda value, name: value is None
    if origin in (typing.Union, types.UnionType):
        options = [_fitting(option) for option in inner]
        if {float, Tensor} <= set(inner):
            return lambda value, name: (
                _finite(value, name) if _numeric(value) else any(option(value, name) for option in options)
            )
        if _anything in options:
            return _anything
        return lambda value, name: any(option(value, name) for option in options)
    if origin is Literal:
        options = [_fitting(type(option)) for option in inner]
        return lambda value, name: any(option(value, name) for option in options)
    if hint is int:
        return lambda value, name: isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return lambda value, name: _numeric(value) and _finite(value, name)
    if origin is Callable or hint is Callable:
        return lambda value, name: callable(value)
    if origin is type:  # or its name: who takes classes says which
        return lambda value, name: isinstance(value, (type, str))
    if origin is tuple:
        return _tuple(inner)
    if origin in (Mapping, dict):
        return lambda value, name: isinstance(value, Mapping)
    if origin in (list, Sequence, Iterable):
        return _sequence(inner)
    kind = origin if isinstance(origin, type) else hint
    return (lambda value, name: isinstance(value, kind)) if _concrete(kind) else _anything


def _anything(value: Any, name: str) -> bool:
    return True


def _tuple(inner: tuple[Any, ...]) -> Fits:
    every, options = bool(inner) and inner[-1] is Ellipsis, [_fitting(h) for h in inner if h is not Ellipsis]

    def fine(value: Any, name: str) -> bool:
        if not isinstance(value, (tuple, list)) or not inner:
            return isinstance(value, (tuple, list))
        wanted = options[:1] * len(value) if every else options
        return len(wanted) == len(value) and all(option(v, name) for v, option in zip(value, wanted))

    return fine


def _sequence(inner: tuple[Any, ...]) -> Fits:
    options = [_fitting(h) for h in inner]

    def fine(value: Any, name: str) -> bool:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            return False
        return not isinstance(value, (list, tuple)) or all(option(v, name) for option in options for v in value)

    return fine


def _numeric(value: Any) -> bool:
    return type(value) is float or (isinstance(value, (Real, Tensor)) and not isinstance(value, bool))


def _finite(value: Any, name: str) -> bool:
    if isinstance(value, Tensor) and value.ndim:
        return not value.is_complex()
    number(value, name)
    return True


def _concrete(hint: Any) -> bool:
    """Whether isinstance answers for it: a class, and no protocol."""
    return isinstance(hint, type) and not getattr(hint, "_is_protocol", False)


def _parameters(fn: Callable[..., Any]) -> tuple[list[str], dict[str, Any]]:
    """Names in order, those that come by position before the others, and defaults."""
    found = inspect.signature(fn).parameters
    named = [n for n, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return named, {n: found[n].default for n in named if found[n].default is not inspect.Parameter.empty}


def _hint(fn: Callable[..., Any], name: str) -> Any:
    """The annotation as an object; Any where it names what the module does not import when it runs."""
    written = fn.__annotations__.get(name, Any)
    try:
        return eval(written, fn.__globals__) if isinstance(written, str) else written
    except NameError:
        return Any


def _written(fn: Callable[..., Any], name: str) -> str:
    """The annotation as it reads: a Literal by the type of its options, a TypeVar by its bound, aliases spelled out."""

    def read(word: re.Match[str]) -> str:
        named = fn.__globals__.get(word[0])
        if typing.get_origin(named) is Literal:
            return " | ".join(dict.fromkeys(type(option).__name__ for option in typing.get_args(named)))
        if isinstance(named, TypeVar):
            options = typing.get_args(named.__bound__) or [named.__bound__]  # of a union, or one
            return " | ".join(getattr(typing.get_origin(t) or t, "__name__", "?") for t in options)
        return re.sub(r"\w+\.", "", str(named)) if typing.get_origin(named) else word[0]

    written = re.sub(r"[A-Za-z_]\w*", read, str(fn.__annotations__[name]).replace("typing.", ""))
    written = written.replace("[?]", "").replace("?", "Any")
    return written + ("; pass torch.Generator().manual_seed(seed)" if "torch.Generator" in written else "")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    inner = {type(v).__name__ for v in value} if isinstance(value, (list, tuple)) else set()
    return f"{type(value).__name__} of {', '.join(sorted(inner))}" if inner else type(value).__name__
