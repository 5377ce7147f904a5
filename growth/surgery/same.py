"""Whether f computes the same at other params: the check that functions which keep it offer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fisher.checks.agreement import side_by_side
from growth.reading.calls import as_read, calls_between, calls_of, kept_width, ungrown
from growth.reading.gated_pairs import Gated
from growth.reading.locate import is_mapped
from growth.reading.pairs import Pair
from growth.reading.probe import RAISED, one_width
from growth.reading.transformers.heads import Heads
from growth.reading.transformers.streams import Stream
from linmaps import trees
from linmaps.checks import values
from linmaps.trees.keys import Path

Check = tuple[Callable[..., Tensor], Any]
Function = Callable[..., Tensor] | None


@dataclasses.dataclass(frozen=True)
class Deeper:
    """A layer more, behind another."""

    after: str
    name: str

    def __str__(self) -> str:
        return f"deepen({self.after!r}, {self.name!r})"


HELD = "; torch's MultiheadAttention keeps embed_dim = num_heads * head_dim: write the layer out"
RESHAPES = ("unflatten", "reshape", "view", "attention", "chunk", "split", "rearrange", "fold", "group")
CUT = (
    "what stands between the layers does not keep it (f must cut the output of the packed layer in two halves, by chunk(2, -1), "
    "not into every second entry or at a fixed width, and multiply these with nothing that mixes units): choose another pair"
)
MAPS = (
    "what stands between the layers does not keep it (f must make maps of the dense layer's output by unflatten(1, (-1, h, w)), "
    "the units first, their number from params, with nothing that mixes units): choose another pair"
)
CURES = {
    Pair: "what stands between the layers does not keep it (the hidden axis is split into heads or groups, or units are mixed): "
    "choose another pair, and for attention give growth.Heads(q, k, v, out, n_heads)",
    Heads: "f must read the heads from params (their width after add_heads stays, their number after widen), scale by the root "
    "of their width (by a constant: rescale=False), and neither turn (rotary embeddings) nor normalize q and k; q, k, v and out "
    "must be the layers of one attention layer, a packed one with q above k above v, not head by head",
    Stream: "all that reads or writes the stream must be named, its width be taken from params, its norms be of the kind that is "
    "named, and a stream with LayerNorm be read through these alone",
    Deeper: "what stands behind the new layer must change nothing where it has been applied before (ReLU does, of a smooth "
    "activation leave it out there), and a convolution needs stride 1 and padding (size - 1) / 2",
}


def asked(f: Function, x: Any, check: Any) -> Check | None:
    """What a function is to be held against: (f, x), as f= and x= or as check=(f, x); None for none of these.

    >>> asked(None, torch.ones(1), None)
    Traceback (most recent call last):
    ValueError: f, x: got x alone, expected both (the function and some inputs, on which it is to be the same), or none
    """
    if (f is None) != (x is None):
        raise ValueError(
            f"f, x: got {'x' if f is None else 'f'} alone, expected both (the function and some inputs, on which it is to be the "
            "same), or none"
        )
    if f is not None and check is not None:
        raise ValueError("check: got one beside f and x, expected f=, x= alone; it is the same")
    if check is None or (isinstance(check, tuple) and len(check) == 2 and callable(check[0])):
        return check if f is None else (f, x)
    raise TypeError(f"check: got {type(check).__name__}, expected a tuple (f, x) of the function and some inputs")


def same_function(
    check: Check, params: Any, new: Any, pair: Pair | Heads | Stream | Deeper, expected: str = "the same function"
) -> None:
    """Raise a ValueError unless check = (f, x) says that f is the same at both params, to rounding.

    >>> p, q = ({"a": torch.ones(1, 1), "b": t * torch.ones(1, 1)} for t in (1, 2))
    >>> same_function((lambda p, x: x @ p["a"].T @ p["b"].T, torch.ones(1, 1)), p, q, Pair("a", "b"))
    Traceback (most recent call last):
    ValueError: Pair('a', 'b'): f changes by up to 1, at a size of 1, expected the same function; ...
    """
    f, x = check
    old = f(params, x)
    try:
        now = f(new, x)
    except (torch.OutOfMemoryError, NotImplementedError):
        raise
    except RAISED as error:
        if isinstance(pair, Pair) and (words := ungrown(f, params, pair, x)) is not None:
            raise ValueError(words) from error
        raise ValueError(one_width(pair, error, "for the new params") + _why(f, params, pair, x)) from error
    a, b = (values(t) for t in side_by_side(old, now))
    if a is None or b is None or not a.numel():
        return
    size = float(a.abs().amax())
    apart = float((a - b).abs().amax()) if a.shape == b.shape else math.inf
    if not apart <= 10 * torch.finfo(a.dtype).eps ** 0.5 * max(size, torch.finfo(a.dtype).eps):
        raise ValueError(
            f"{pair}: f changes by up to {apart:.3g}, at a size of {size:.3g}, expected {expected}; "
            + _cure(f, params, pair, x)
        )


def applied(check: Check, deeper: Any, leaves: Sequence[Path], what: Deeper) -> None:
    """Raise a ValueError if f does not read these leaves: with no number there it gives numbers all the same."""
    f, x = check
    for path in leaves:
        deeper = trees.replace(deeper, path, torch.full_like(trees.get(deeper, path), math.nan))
    try:
        y = values(f(deeper, x))
    except (RuntimeError, ValueError, ArithmeticError):  # who looks at its numbers reads them
        return
    if y is not None and y.numel() and bool(y.isfinite().all()):
        raise ValueError(
            f"{what}: f gives the same whatever stands in {what.name}, expected a function that applies this layer behind "
            f"{what.after} where params have it"
        )


def as_seen(check: Check, params: Any, pair: Pair) -> Pair:
    """The pair with the slopes of PReLU that the function of check has between its layers growing along."""
    return as_read(check[0], params, pair, check[1])


def _why(f: Callable[..., Tensor], params: Any, pair: Any, x: Any) -> str:
    """What else stands in the way of other sizes, as far as the calls of f show it."""
    if isinstance(pair, Pair):
        return _reshaped(f, params, pair, x)
    attention = isinstance(pair, (Heads, Stream)) and any("multi_head_attention" in c for c in calls_of(f, params, x))
    return HELD if attention else f"; {next(cure for kind, cure in CURES.items() if isinstance(pair, kind))}"


def _cure(f: Callable[..., Tensor], params: Any, pair: Any, x: Any) -> str:
    """What stands in the way, as far as the calls between the layers show it."""
    return _reshaped(f, params, pair, x).removeprefix("; ") or next(
        cure for kind, cure in CURES.items() if isinstance(pair, kind)
    )


def _reshaped(f: Callable[..., Tensor], params: Any, pair: Any, x: Any) -> str:
    """That the hidden axis is cut between the layers of a pair, if it is."""
    if isinstance(pair, Gated) and pair.packed is not None:
        return f"; {CUT}"
    if isinstance(pair, Pair) and is_mapped(params, pair):
        return f"; {MAPS}"
    calls = calls_between(f, params, pair, x) if isinstance(pair, Pair) else []
    if calls and (words := kept_width(f, params, pair, x)) is not None:
        return f"; {words}"
    if not any(part in c for part in RESHAPES for c in calls):
        return ""
    return (
        f"; a reshape of the hidden axis stands in the way ({', '.join(calls)}), so that units that come or go shift those of "
        "other heads or groups: of attention give growth.Heads(q, k, v, out, n_heads) in place of the pair, else choose another"
    )
