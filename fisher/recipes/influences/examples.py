"""Gradients of single examples: one by one as rows, or their sum.  B examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from fisher.checks import finiteness, purity
from fisher.checks.axes import batch_size
from fisher.checks.data import weighted_batches
from fisher.checks.mixed import explained
from fisher.collector.exact_rows import mapped
from linmaps import trees

Named = tuple[str, Any]  # what to call a batch, and the batch
Single = Callable[[Any, Any], Tensor]  # (params, one example) -> the number whose gradient is asked for


def parts(data: Any, name: str, *, targets: bool = True) -> Iterator[Named]:
    """What to call a batch, and the batch `(x, target)` or `(x, target, weight)`, finite and of one length; a target may lack
    where not asked for.

    >>> import torch
    >>> [(where, x.shape) for where, (x, _) in parts((torch.ones(2, 3), torch.ones(2)), "data")]
    [('data: batch 0', torch.Size([2, 3]))]
    """
    for number, (x, target, weight) in enumerate(weighted_batches(data, what="influence", name=name)):
        where = f"{name}: batch {number}"
        if targets and not isinstance(target, Tensor):
            got = "no target" if target is None else f"a target of type {type(target).__name__}"
            raise ValueError(f"{where} has {got}, expected (x, target) with a tensor")
        part = (x,) if target is None else (x, target) if weight is None else (x, target, _of_examples(weight, where))
        if target is None and weight is not None:
            raise ValueError(
                f"{where} has a weight without a target, expected (x, target, weight); multiply it into the measurement, whose "
                "x may be a tuple (x, weight)"
            )
        for t in trees.leaves(part):
            if isinstance(t, Tensor) and t.layout != torch.strided:
                raise TypeError(f"{where}: got layout {t.layout}, expected a dense tensor; convert it with .to_dense()")
        finiteness.finite(part, where, "clean or drop these examples")
        if target is not None and batch_size(target) != batch_size(x):
            raise ValueError(
                f"{where}: got {batch_size(target)} targets, expected {batch_size(x)}, one for each example of x"
            )
        yield where, part


def _of_examples(weight: Tensor, where: str) -> Tensor:
    if weight.ndim != 1:
        raise ValueError(
            f"{where}: weight has shape {tuple(weight.shape)}, expected [{len(weight)}]: one number for each example's loss; "
            "positions are left out by targets at the ignore_index, or weighed in a loss (y, target) -> [B] of your own"
        )
    return weight


def weighed(value: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """A value times the weight, if there is one.

    >>> import torch
    >>> weighed(torch.tensor(2.0), (torch.tensor(3.0),)), weighed(torch.tensor(2.0), ())
    (tensor(6.), tensor(2.))
    """
    for weight in weights:
        value = value * weight.to(value.dtype)
    return value


def pieces(found: Iterator[Named], size: int | None) -> Iterator[Named]:
    """The same, each of at most so many examples.

    >>> import torch
    >>> [len(x) for _, (x,) in pieces(iter([("", (torch.ones(5),))]), 2)]
    [2, 2, 1]
    """
    for where, part in found:
        count = batch_size(part)
        if size is None or count <= size:
            yield where, part
            continue
        for start in range(0, count, size):
            yield where, trees.map(lambda t, start=start: t[start : start + size], part)


def peeked(stream: Iterator[Named]) -> tuple[Iterator[Named], Any]:
    """The stream from its first batch on, and the first one that has examples, or else the last.

    >>> import torch
    >>> stream, first = peeked(iter([("a", torch.ones(0)), ("b", torch.ones(1)), ("c", torch.ones(2))]))
    >>> first, [name for name, _ in stream]
    (tensor([1.]), ['a', 'b', 'c'])
    """
    seen = [next(stream)]
    while not batch_size(seen[-1][1]) and (more := next(stream, None)) is not None:
        seen.append(more)
    return itertools.chain(seen, stream), seen[-1][1]


def blocks(stream: Iterator[Named], size: int | None) -> Iterator[Iterator[Named]]:
    """Consecutive pieces in groups of at most so many examples (None: one group).

    >>> import torch
    >>> [len(list(block)) for block in blocks(iter([("", torch.ones(n)) for n in (2, 1, 2, 3)]), 3)]
    [2, 1, 1]
    """
    count, number = 0, 0

    def place(part: Named) -> int:
        nonlocal count, number
        more = batch_size(part[1])
        if size is not None and count + more > size:
            count, number = 0, number + 1
        count += more
        return number

    for _, block in itertools.groupby(stream, place):
        yield block


def each(one: Callable[[Any], Any], part: Any) -> Any:
    """What `one` gives for each example: mapped, or one by one where f does not take vmap."""

    def in_turn() -> Any:
        found = [one(trees.map(lambda t, b=b: t[b], part)) for b in range(batch_size(part))]
        return trees.map(lambda *ts: torch.stack(ts), *found)

    return mapped(lambda: vmap(one)(part), in_turn)


def rows(single: Single, params: Any, part: Any, where: str) -> Any:
    """The gradient at each example, a tree with leaves `[B, *leaf]`."""
    if batch_size(part) == 0:
        return trees.map(lambda t: t.new_zeros(0, *t.shape), params)
    with purity.no_random_call(), explained(params, x=part):
        found = each(lambda one: grad(single)(params, one), part)
    return finite_gradients(found, where)


def summed(single: Single, params: Any, part: Any, where: str) -> Any:
    """The sum of the gradients over the examples, a tree like params."""
    if batch_size(part) == 0:
        return trees.map(torch.zeros_like, params)
    with purity.no_random_call(), explained(params, x=part):
        found = grad(lambda p: each(lambda one: single(p, one), part).sum())(params)
    return finite_gradients(found, where)


def finite_gradients(found: Any, where: str) -> Any:
    """The gradients; a ValueError that names the leaf where they are not finite."""
    finiteness.finite(
        found,
        f"{where}: gradients of the loss",
        "f or the loss overflows at these params and data, or a mean is over no target that counts: reduction='none'",
    )
    return found


def finite_result(t: Tensor, name: str) -> Tensor:
    """A result; a ValueError where it is not finite."""
    finiteness.finite(t, name, "F + regul I is singular or nearly so: use a larger regul")
    return t
