"""Whether f computes the same at other params: the check that functions which keep it offer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks.agreement import side_by_side
from growth.reading.calls import calls_between
from growth.reading.pairs import Pair
from growth.reading.transformers.heads import Heads
from growth.reading.transformers.streams import Stream
from linmaps.checks import values

Check = tuple[Callable[..., Tensor], Any]


HELD = "; torch's MultiheadAttention keeps embed_dim = num_heads * head_dim: write the layer out"
RESHAPES = ("unflatten", "reshape", "view", "attention", "chunk", "split", "rearrange", "fold", "group")
CURES = {
    Pair: "what stands between the layers does not keep it (the hidden axis is split into heads or groups, or units are mixed): "
    "choose another pair, and for attention give growth.Heads(q, k, v, out, n_heads)",
    Heads: "f must read the heads from params (their width after add_heads stays, their number after widen), scale by the root "
    "of their width (by a constant: rescale=False), and neither turn (rotary embeddings) nor normalize q and k; q, k, v and out "
    "must be the layers of one attention layer",
    Stream: "all that reads or writes the stream must be named, its width be taken from params, its norms be of the kind that is "
    "named, and a stream with LayerNorm be read through these alone",
}


def same_function(check: Check, params: Any, new: Any, pair: Pair | Heads | Stream) -> None:
    """Raise a ValueError unless check = (f, x) says that f is the same at both params, to rounding.

    >>> p, q = ({"a": torch.ones(1, 1), "b": t * torch.ones(1, 1)} for t in (1, 2))
    >>> same_function((lambda p, x: x @ p["a"].T @ p["b"].T, torch.ones(1, 1)), p, q, Pair("a", "b"))
    Traceback (most recent call last):
    ValueError: Pair('a', 'b'): f changes by up to 1, at a size of 1, expected the same function; ...
    """
    if not isinstance(check, tuple) or len(check) != 2 or not callable(check[0]):
        raise TypeError(f"check: got {type(check).__name__}, expected a tuple (f, x) of the function and some inputs")
    f, x = check
    try:
        old, now = f(params, x), f(new, x)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"{pair}: f raised {type(error).__name__} for the new params ({error}), expected a function that takes its sizes "
            "from params" + ("" if isinstance(pair, Pair) else HELD)
        ) from error
    a, b = (values(t) for t in side_by_side(old, now))
    if a is None or b is None or not a.numel():
        return
    size = float(a.abs().amax())
    apart = float((a - b).abs().amax()) if a.shape == b.shape else math.inf
    if not apart <= 10 * torch.finfo(a.dtype).eps ** 0.5 * max(size, torch.finfo(a.dtype).eps):
        raise ValueError(
            f"{pair}: f changes by up to {apart:.3g}, at a size of {size:.3g}, expected the same function; "
            + _cure(f, params, pair, x)
        )


def _cure(f: Callable[..., Tensor], params: Any, pair: Pair | Heads | Stream, x: Any) -> str:
    """What stands in the way, as far as the calls between the layers show it."""
    calls = calls_between(f, params, pair, x) if isinstance(pair, Pair) else []
    cut = [c for c in calls if any(part in c for part in RESHAPES)]
    if not cut:
        return CURES[type(pair)]
    return (
        f"a reshape of the hidden axis stands in the way ({', '.join(calls)}), so that new units at the end shift those of other "
        "heads or groups: of attention give growth.Heads(q, k, v, out, n_heads) in place of the pair, else choose another pair"
    )
