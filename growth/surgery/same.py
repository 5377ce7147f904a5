"""Whether f computes the same at other params: the check that functions which keep it offer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from growth.reading.pairs import Pair
from linmaps.checks import values

Check = tuple[Callable[..., Tensor], Any]


def same_function(check: Check, params: Any, new: Any, pair: Pair) -> None:
    """Raise a ValueError unless check = (f, x) says that f is the same at both params, to rounding.

    >>> same_function((lambda p, x: p * x, torch.ones(2)), torch.ones(1), torch.zeros(1), Pair("a", "b"))
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
            "from params"
        ) from error
    a, b = values(old), values(now)
    if a is None or b is None or not a.numel():
        return
    size = float(a.abs().amax())
    apart = float((a - b).abs().amax()) if a.shape == b.shape else math.inf
    if not apart <= 10 * torch.finfo(a.dtype).eps ** 0.5 * max(size, torch.finfo(a.dtype).eps):
        raise ValueError(
            f"{pair}: f changes by up to {apart:.3g}, at a size of {size:.3g}, expected the same function; what stands between "
            "the layers does not keep it (the hidden axis is split into heads or groups, or units are mixed): choose another pair"
        )
