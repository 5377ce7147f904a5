"""The door of growth: mappings and precision of what enters, whose a record is, how many units may be asked for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from growth.reading.pairs import Pair, parts
from linmaps import trees
from linmaps.checks import alike, size
from linmaps.checks.precision import full_precision
from linmaps.checks.typed import annotated
from linmaps.trees import path_str
from linmaps.trees.mappings import plain

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
        names = list(inspect.signature(fn).parameters)
        checked = annotated(fn)

        @functools.wraps(fn)
        def run(*args: Any, **options: Any) -> Any:
            args = tuple(ENTRIES[n](a, n) if n in ENTRIES else a for n, a in zip(names, args)) + args[len(names) :]
            options = {n: ENTRIES[n](a, n) if n in ENTRIES else a for n, a in options.items()}
            return checked(args, options)

        return full_precision(*calls)(run)  # type: ignore[return-value]

    return decorate


def _tree(tree: Any, name: str) -> Any:
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
            f"{name}: got {type(f).__name__}, expected a function f(params, x); of a module "
            "lambda p, x: torch.func.functional_call(module, p, (x,))"
        )
    return f


ENTRIES: dict[str, Callable[[Any, str], Any]] = {
    "params": _tree,
    "grown": _tree,
    "state": lambda state, _: plain(state),
    "f": _function,
}


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
    if kind.__name__ in SHAPES:
        _whole(record, name, SHAPES[kind.__name__])
    own, other = getattr(record, "pair", None), pair if isinstance(pair, Pair) else getattr(pair, "pair", None)
    if own is not None and other is not None and layer_names(own) != layer_names(other):
        raise ValueError(
            f"{name}: is of {own}, expected one of {other}; give what {made} made for this pair (of the same layers under other "
            f"names: dataclasses.replace({name}, pair=None))"
        )


SHAPES = {  # the axes of each tensor of a record: equal letters are equal sizes; what ends in ? may be absent
    "Statistics": {"S": "aa", "M": "aq", "S_prev": "bb", "M_prev": "bt", "P": "*ba", "E": "qq"}
    | dict.fromkeys(("count", "positions", "sigma0", "slope_plus", "slope_minus"), ""),
    "Delta": {"weight": "qp", "bias?": "q", "decrease": ""},
    "Neurons": {
        "fan_in": "kr",
        "fan_in_bias?": "k",
        "fan_out": "qk",
        "eigenvalues": "e",  # hand-picked units keep those of all
        "gains": "g",
        "gain": "",
        "sigma0": "",
    },
}


def _whole(record: Any, name: str, shapes: dict[str, str]) -> None:
    """Raise unless the tensors of a record are real, of one dtype and device, and of shapes that fit each other."""
    sizes: dict[str, int] = {}
    first: Tensor | None = None
    for key, axes in shapes.items():
        t = getattr(record, key.rstrip("?"))
        where = f"{name}: {key.rstrip('?')}"
        if t is None and key.endswith("?"):
            continue
        if not isinstance(t, Tensor) or not t.is_floating_point():
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"{where}: got {got}, expected a real floating tensor")
        first = t if first is None or type(record).__name__ != "Statistics" else first  # units are cast where they go
        alike([t], where, [first], f"{name}: S")
        shape = tuple(t.shape)[-2:] if axes.startswith("*") else tuple(t.shape)
        axes = axes.removeprefix("*")
        if len(shape) != len(axes) or any(sizes.setdefault(a, n) != n for a, n in zip(axes, shape)):
            want = ", ".join(str(sizes.get(a, a)) for a in axes)
            every = ", ".join(f"{k.rstrip('?')} [{', '.join(a.strip('*'))}]" for k, a in shapes.items() if a)
            raise ValueError(
                f"{where}: got shape {tuple(t.shape)}, expected [{want}], as of {every}; make records by their "
                "functions, map over an ensemble with torch.func.vmap"
            )


def count(k: Any, name: str = "k", low: int = 0, high: int = MOST, *, cure: str = "to remove units use prune") -> None:
    """Raise unless k is a number of units to add, which is static: TypeError for no int, ValueError out of range.

    >>> count(10**9)
    Traceback (most recent call last):
    ValueError: k: got 1000000000, expected an int from 0 to 1048576; to remove units use prune
    """
    size(k, name, low, high, cure=cure)
