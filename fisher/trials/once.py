"""Trials that a function is put to once: later batches of the same kind get one run more, not all of them again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fisher.checks import agreement, purity
from fisher.checks.axes import batch_size
from fisher.trials.halves import ends, others, replaced
from linmaps import trees
from linmaps.checks import values

_tried: WeakKeyDictionary[Any, set[Hashable]] = WeakKeyDictionary()  # what functions that live were found to be


def kind_of(params: Any, x: Any, *settings: Any) -> Hashable | None:
    """What a trial at these params and inputs holds for: their structure, shapes but for the batch, dtypes and devices.

    None where it holds for nothing else: under a transform, and where there are no numbers to look at.
    """
    kinds = []
    for tree, start in ((params, 0), (x, 1)):
        flat, treedef = trees.flatten(tree)
        if any(torch.func.debug_unwrap(t) is not t or values(t) is None for t in flat):
            return None
        kinds.append((treedef, tuple((tuple(t.shape[start:]), t.dtype, t.device) for t in flat)))
    return (*kinds, torch.is_autocast_enabled(flat[0].device.type) if flat else False, *settings)


def is_tried(f: Callable[..., Any], kind: Hashable | None) -> bool:
    """Whether f was found to be sound for inputs of this kind.

    >>> f = lambda p, x: x
    >>> kind = kind_of({}, torch.ones(2, 3))
    >>> before = is_tried(f, kind)
    >>> found_sound(f, kind)
    >>> before, is_tried(f, kind), is_tried(f, kind_of({}, torch.ones(2, 4)))
    (False, True, False)
    """
    try:
        return kind is not None and kind in _tried.get(f, ())
    except TypeError:  # a function or a setting without a hash
        return False


def found_sound(f: Callable[..., Any], kind: Hashable | None) -> None:
    """Keep that f was tried, for as long as it lives."""
    try:
        if kind is not None:
            _tried.setdefault(f, set()).add(kind)
    except TypeError:
        return


def still_sound(f: Callable[..., Tensor], params: Any, x: Any, y: Tensor) -> None:
    """Raise where outputs y change with other examples in place of the first and the last: f is random or mixes them by now.

    >>> f = lambda p, x: p * (x - x.mean())
    >>> x = torch.tensor([0.0, 1.0, 4.0, 9.0])
    >>> still_sound(f, torch.ones(()), x, f(torch.ones(()), x))
    Traceback (most recent call last):
    ValueError: f(params, x): the output of one example depends on other examples, ...
    """
    batch = batch_size(x)
    gone = ends(batch) if batch > 1 else [False]
    again = f(params, replaced(x, gone) if batch > 1 else x)
    kept = torch.tensor(others(gone), device=y.device).nonzero().squeeze(1)
    if not agreement.repeats(again[kept], y[kept]):
        purity.repeatable(f, params, x)
        purity.apart(False, x=x)
