"""Losses of one example that are means by weights of their own: of one example alone a weight divides out.  B examples.

A mean by weights L = sum of w_b l_b / sum of w_b is told by itself: with a, c the means of two parts A and C, and r the ratio of
their weights, L(A + C) = (a + r c) / (1 + r) says r, and L(A + A + C) = (2 a + r c) / (2 + r) is then no chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.overrides import TorchFunctionMode

from fisher.checks import agreement
from fisher.checks.axes import batch_size
from linmaps import trees
from linmaps.checks import values

FEW = 16  # examples that are looked at
CURE = "return the loss of each example of a batch, [B] (reduction='none'), which keeps its weight"


class Means(TorchFunctionMode):
    """Notes whether torch's losses are asked for a mean by the weights of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("cross_entropy", "nll_loss") and kwargs.get("reduction", "mean") == "mean":
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            self.seen = name if weight is not None else self.seen
        return func(*args, **kwargs)


def check_weights(loss: Callable[..., Tensor], params: Any, part: tuple[Any, ...], name: str) -> None:
    """Raise a ValueError where loss(params, x, y), a number of one example, is of a batch a mean by weights.

    Of losses whose number for a batch is another (a norm, a sum) nothing is said, nor where it takes no batch.  About 16
    forwards and backwards of one example.

    >>> w = torch.tensor([1.0, 3.0])
    >>> loss = lambda p, x, y: torch.nn.functional.cross_entropy(x * p, y, weight=w)
    >>> check_weights(loss, torch.ones(2), (torch.eye(2), torch.tensor([0, 1])), "loss")
    Traceback (most recent call last):
    ValueError: loss: is a mean by the weights of cross_entropy(weight=), ...
    """
    with Means() as means:
        loss(params, *_at(part, 0))
    if means.seen:
        raise ValueError(
            f"{name}: is a mean by the weights of {means.seen}(weight=), which divide out of the loss of one example, expected a "
            f"loss that has them; {CURE}"
        )
    told = lambda rows: _told(loss, params, _at(part, rows))
    count = min(FEW, batch_size(part))
    rows = sorted({round(k * (batch_size(part) - 1) / max(1, count - 1)) for k in range(count)})
    try:
        ones = {b: told(b) for b in rows}
        pair = _pair(rows, ones, told) if len(rows) > 1 else None
        weighs = pair is not None and _weighs(*pair, ones, told)
    except Exception:  # it takes no batch
        return
    if weighs and pair is not None:
        raise ValueError(
            f"{name}: of the examples {pair[0]} and {pair[1]} together it is a mean by weights that differ, which divide out of "
            f"the loss of one example, expected a loss that has them; {CURE}"
        )


def check_counted(loss: Callable[..., Tensor], params: Any, part: tuple[Any, ...], each: Tensor, name: str) -> None:
    """Raise a ValueError where the loss `each` of an example by itself is NaN, though that of the batch is a number."""
    nan = values(each.isnan())
    if nan is None or not bool(nan.any()):
        return
    try:
        whole = values(loss(params, *part))
    except Exception:  # it takes no batch
        return
    if whole is not None and bool(whole.isfinite().all()):
        raise ValueError(
            f"{name}: of {int(nan.sum())} of {nan.numel()} examples it is NaN by itself, and of them together a number: a mean "
            "over the targets that count, of which there are none in those examples (ignore_index, a weight of 0), expected a "
            f"loss of one example; {CURE}, or reduction='sum'"
        )


def _pair(rows: Sequence[int], ones: Any, told: Callable[[Any], Tensor]) -> tuple[int, int] | None:
    """Two examples whose loss together is not the mean of their losses, found by halves."""
    mean = lambda part: sum(ones[b] for b in part) / len(part)
    plain = lambda part: len(part) == 1 or _close(told(list(part)), mean(part), [ones[b] for b in part])
    if plain(rows):  # of weights that balance its parts may be none
        rows = next((rows[k : k + 2] for k in range(len(rows) - 1) if not plain(rows[k : k + 2])), ())
    while len(rows) > 2:
        first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        rows = first if not plain(first) else second if not plain(second) else (first[0], second[0])
    return (rows[0], rows[1]) if len(rows) == 2 and not plain(rows) else None


def _weighs(i: int, j: int, ones: Any, told: Callable[[Any], Tensor]) -> bool:
    """Whether the loss of two examples is a mean by weights other than 1, by that of one of them twice."""
    a, c, L = ones[i], ones[j], told([i, j])
    r = (a - L) / (L - c)
    if not 1e-6 < r < 1e6:
        return False
    return all(_close(told([i] * n + [j]), (n * a + r * c) / (n + r), [a, c]) for n in (2, 3))


def _told(loss: Callable[..., Tensor], params: Any, part: tuple[Any, ...]) -> Tensor:
    """A number that is linear in the loss and sees its derivative: where all losses are equal, weights are seen in that alone."""
    slopes, value = grad_and_value(lambda p: loss(p, *part))(params)
    found = value + sum((agreement.generic(t) * t).sum() for t in trees.leaves(slopes))
    seen = values(found)
    if seen is None:
        raise ValueError("no number to look at")
    return seen.double().flatten()[0]  # of an ensemble the first member's


def _at(part: tuple[Any, ...], rows: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = trees.map(lambda t: t[rows], part)
    return found


def _close(one: Tensor, other: Tensor, terms: list[Tensor]) -> bool:
    scale = torch.stack([t.abs() for t in terms]).amax()
    return bool((one - other).abs() <= 1e-4 * scale)
