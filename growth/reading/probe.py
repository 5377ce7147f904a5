"""One hidden unit more: does f take its sizes from params, and is a unit that nothing reads nothing to it?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fisher.checks import agreement
from growth.reading.calls import ungrown
from growth.reading.layers import layers_of
from growth.reading.leaves import places, vectors
from growth.reading.pairs import Pair
from linmaps import trees
from linmaps.checks import values

RAISED = (RuntimeError, TypeError, IndexError, ValueError, AssertionError)
SIZES = (
    "where it has the width as a number, as in x.view(-1, 4) or in an attribute of a module, it is to be read off the tensors "
    "there (flatten(1), x.shape, weight.shape)"
)


def one_width(what: Any, error: Exception, when: str) -> str:
    """The words for a function that raised this error when its params became wider.

    >>> one_width("Pair('a', 'b')", RuntimeError("no"), "with one more hidden unit")
    "Pair('a', 'b'): f raised RuntimeError with one more hidden unit (no), expected a function that takes its sizes from ..."
    """
    why = f"f raised {type(error).__name__} {when} ({error})"
    return f"{what}: {why}, expected a function that takes its sizes from params; {SIZES}"


@contextmanager
def wider(f: Callable[..., Tensor], params: Any, units: Sequence[tuple[Pair, int]], x: Any) -> Iterator[None]:
    """Around a call of f on x at params in which pairs have more units: a ValueError says so if that is why f raises.

    It is if f runs at params, and raises with as many units more of other numbers, outside of any transform.

    >>> f = lambda p, x: (x @ p["a"].T).view(-1, 2) @ p["b"].T
    >>> p, q = ({"a": torch.ones(n, 1), "b": torch.ones(1, n)} for n in (2, 3))
    >>> with wider(f, p, [(Pair("a", "b"), 1)], torch.ones(4, 1)):
    ...     f(q, torch.ones(4, 1))
    Traceback (most recent call last):
    ValueError: Pair('a', 'b'): f raised RuntimeError with one more hidden unit (mat1 and mat2 shapes cannot be multiplied ...
    """
    try:
        yield
    except RAISED:
        refused = _refused(f, params, units, x)
        if refused is None:
            raise
        words = next((w for pair, _ in units if (w := ungrown(f, params, pair, x)) is not None), None)
        if words is None:
            numbers = [k for _, k in units]
            more = "one more hidden unit" if numbers == [1] else f"{'+'.join(map(str, numbers))} more hidden units"
            words = one_width(", ".join(str(pair) for pair, _ in units), refused, f"with {more}")
        raise ValueError(words) from refused


def _refused(f: Callable[..., Tensor], params: Any, units: Sequence[tuple[Pair, int]], x: Any) -> Exception | None:
    """What f raises with more units, if it runs without."""
    larger = params
    for pair, k in units:
        larger = with_unit(larger, pair, k=k)
    try:
        f(params, x)
    except Exception:  # of whatever cause, it is not growth
        return None
    try:
        f(larger, x)
    except (torch.OutOfMemoryError, NotImplementedError):
        return None
    except RAISED as error:
        return error
    return None


def with_unit(params: Any, pair: Pair, silent: Any = (), k: int = 1) -> Any:
    """One more hidden unit (k more) of generic weights, which a norm leaves as it is; zeros at the paths in silent."""
    fills = {path: entry for path, _, entry, _ in vectors(params, pair)}
    for place in places(params, pair):
        path, leaf = place.path, trees.get(params, place.path)
        shape = place.shape(leaf, k)
        generic = torch.cos(1.7 * torch.arange(1, math.prod(shape) + 1, device=leaf.device)).reshape(shape)
        size = max(1, math.prod(leaf.shape[1:])) ** -0.5
        more = fills[path].expand(shape) if path in fills else (size * generic).to(leaf.dtype)
        more = torch.zeros_like(more) if path in silent else more
        params = trees.replace(params, path, place.behind(leaf, more))
    return params


def check_silent(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any, old: Tensor) -> None:
    """Raise a ValueError if one more hidden unit whose outgoing weights are zero changes f: it reads the width from params."""
    silent = with_unit(params, pair, {layer.weight_path for layer in layers_of(params, pair)[1].all})
    try:
        now = f(silent, x)
    except Exception as error:  # a function of one width: growth itself says so
        if (words := ungrown(f, params, pair, x)) is not None:
            raise ValueError(words) from error
        return
    a, b = (values(t) for t in agreement.side_by_side(old, now))
    if a is None or b is None or not a.numel() or not bool((a.isfinite() & b.isfinite()).all()):
        return
    size = float(a.abs().amax())
    gap = float((a - b).abs().amax()) if a.shape == b.shape else math.inf
    if gap > agreement.tolerance([a.dtype]) * size and gap > agreement.tolerance_of(f, params, x) * size:
        raise ValueError(
            f"{pair}: f changes by up to {gap:.3g}, at a size of {size:.3g}, with one more hidden unit whose outgoing weights "
            "are zero, expected no change; it reads the width from params (a factor 1/sqrt(width), a mean over units): keep "
            "such a factor constant, as a number that f closes over"
        )
