"""The door of growth: mappings and precision of what enters, whose a record is, how many units may be asked for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from growth.pairs import Pair, parts
from linmaps import trees
from linmaps.checks import size
from linmaps.mappings import plain
from linmaps.precision import full_precision
from linmaps.trees import path_str
from linmaps.typed import annotated

Fn = TypeVar("Fn", bound=Callable[..., Any])
TREES = ("params", "grown", "state")

MOST = 2**20  # units in one step: more is a mistake, to be met before memory is


def door(*calls: str) -> Callable[[Fn], Fn]:
    """Decorator: holds arguments against their annotations, computes in their dtype under autocast, and takes any mapping as
    params, grown or state.

    calls: its arguments that are functions of the user, which run under the autocast there is.

    >>> import collections
    >>> door()(lambda params: params)(collections.UserDict(a=1))
    {'a': 1}
    """

    def decorate(fn: Fn) -> Fn:
        names = list(inspect.signature(fn).parameters)
        at = {i: n for i, n in enumerate(names) if n in TREES}
        checked = annotated(fn)

        @functools.wraps(fn)
        def run(*args: Any, **options: Any) -> Any:
            args = tuple(plain(a, trees.one_level) if i in at else a for i, a in enumerate(args))
            options = {n: plain(a, trees.one_level) if n in TREES else a for n, a in options.items()}
            return checked(args, options)

        return full_precision(*calls)(run)  # type: ignore[return-value]

    return decorate


def detached(params: Any) -> Any:
    """params with each nn.Parameter detached, so that no result keeps the graph of a batch; other tensors keep theirs.

    >>> import torch
    >>> detached({"w": nn.Parameter(torch.ones(1))})["w"].requires_grad
    False
    """
    return trees.map(lambda t: t.detach() if isinstance(t, nn.Parameter) else t, params)


def bare(pair: Pair | None) -> Pair | None:
    """The pair as its records keep it: the layers alone, since a callable would make two passes over one pair differ.

    >>> bare(Pair("a", ("b",), activation=abs))
    Pair(before='a', after=('b',), activation=None, norm=None)
    """
    return None if pair is None else Pair(pair.before, pair.after)


def layer_names(pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The dotted paths of both sides, the same however they are written.

    >>> layer_names(Pair("a", ("net", 0)))
    (('a',), ('net.0',))
    """
    return tuple(map(path_str, parts(pair.before))), tuple(map(path_str, parts(pair.after)))


def owned(record: Any, name: str, pair: Any, kind: type, made: str) -> None:
    """Raise a TypeError unless a record is of its kind, a ValueError unless it is of that pair (where both are known).

    pair: a Pair, or a record that knows its own; made: what makes such records.

    >>> import torch, growth
    >>> new = growth.Delta(torch.ones(1, 1), None, torch.ones(()), pair=Pair("a", "b"))
    >>> owned(new, "delta", Pair("b", "c"), growth.Delta, "optimal_delta")
    Traceback (most recent call last):
    ValueError: delta: is of Pair('a', 'b'), expected one of Pair('b', 'c'); give what optimal_delta made for this pair ...
    """
    if not isinstance(record, kind):
        raise TypeError(f"{name}: got {type(record).__name__}, expected a growth.{kind.__name__}, of {made}")
    own, other = getattr(record, "pair", None), pair if isinstance(pair, Pair) else getattr(pair, "pair", None)
    if own is not None and other is not None and layer_names(own) != layer_names(other):
        raise ValueError(
            f"{name}: is of {own}, expected one of {other}; give what {made} made for this pair (of the same layers under other "
            f"names: dataclasses.replace({name}, pair=None))"
        )


def count(k: Any, name: str = "k", low: int = 0, high: int = MOST, *, cure: str = "to remove units use prune") -> None:
    """Raise unless k is a number of units to add, which is static: TypeError for no int, ValueError out of range.

    >>> count(10**9)
    Traceback (most recent call last):
    ValueError: k: got 1000000000, expected an int from 0 to 1048576; to remove units use prune
    """
    size(k, name, low, high, cure=cure)
