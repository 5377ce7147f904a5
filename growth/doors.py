"""Checks at the door of growth: whose a record is, and how many units may be asked for."""

from __future__ import annotations

from typing import Any

from growth.pairs import Pair, parts
from linmaps.checks import size
from linmaps.trees import path_str

MOST = 2**20  # units in one step: more is a mistake, to be met before memory is


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
