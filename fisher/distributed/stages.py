"""What a pass over data does with a reduce: one call, of sums that are linear in the data, before the mean is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fisher.checks.data import NO_EXAMPLE
from fisher.distributed.marks import unmarked
from fisher.distributed.reductions import all_gather, all_reduce
from linmaps import trees
from linmaps.checks import number, values

Reduce = Callable[[Any, Any], tuple[Any, Any]]
LOCAL = (
    "reduce: PMatImplicit keeps the data of this rank and a product with it is a sum over them, expected another representation; "
    "or reduce products: with F of n examples here, sums, count = reduce(trees.scale(n, F.mv(v)), n) and F v of all "
    "ranks is trees.scale(1 / count, sums); fisher.iterative.cg solves with it"
)


def over_all(reduce: Reduce | None, sums: Any, count: Any) -> tuple[Any, Any]:
    """(sums, count) as `reduce` gives them, without marks; as they are where it is None.

    sums: None at a rank without examples.  TypeError or ValueError for what it gives that is not like what it got, ValueError
    where there is no example at all.

    >>> import torch
    >>> over_all(lambda sums, count: (trees.scale(2.0, sums), 2 * count), {"a": torch.ones(1)}, 3)
    ({'a': tensor([2.])}, 6)
    """
    total, n = (sums, count) if reduce is None else _called(reduce, sums, count)
    seen = values(n) if hasattr(n, "ndim") else n
    if total is None or (seen is not None and not bool((seen > 0).all() if hasattr(seen, "all") else seen > 0)):
        raise ValueError(NO_EXAMPLE)
    return unmarked(total), n


def _called(reduce: Reduce, sums: Any, count: Any) -> tuple[Any, Any]:
    made = reduce(sums, count)
    alone = sums is not None and _structure(made) == _structure(
        sums
    )  # a pair itself, perhaps: no tree is like a part of it
    if alone or not isinstance(made, tuple) or len(made) != 2:
        what = "the sums alone" if alone else f"one {type(made).__name__}"
        raise TypeError(
            f"reduce: returned {what}, expected two things, (sums, count), like the two that it got; return both, or give "
            "fisher.distributed.all_reduce()"
        )
    total, n = made
    if sums is not None:
        trees.check_like(total, sums, "reduce: the sums returned")
    number(n, "reduce: the count returned", low=0)
    return total, n


def _structure(tree: Any) -> Any:
    return trees.flatten(tree)[1]


def mean_over_all(reduce: Reduce | None, mean: Any, count: Any) -> Any:
    """The mean over the examples of all ranks, of one over those of each; None at a rank without.

    >>> import torch
    >>> mean_over_all(lambda sums, count: (sums + 3.0, count + 1), torch.tensor(1.0), 1)
    tensor(2.)
    """
    if reduce is None:
        return mean
    sums, n = over_all(reduce, None if mean is None else trees.map(lambda t: t * count, mean), count)
    return trees.map(lambda t: t / n, sums)


def callable_or_none(reduce: Any) -> None:
    """Raise a TypeError unless reduce is None or a function, and none that makes one.

    >>> callable_or_none(all_reduce)
    Traceback (most recent call last):
    TypeError: reduce: got fisher.distributed.all_reduce itself, expected what it gives; call it: fisher.distributed.all_reduce()
    """
    if reduce is all_reduce or reduce is all_gather:
        raise TypeError(
            f"reduce: got fisher.distributed.{reduce.__name__} itself, expected "
            + (
                "what it gives; call it: "
                if reduce is all_reduce
                else "a function (sums, count) -> (sums, count); give "
            )
            + "fisher.distributed.all_reduce()"
        )
    if reduce is not None and not callable(reduce):
        raise TypeError(
            f"reduce: got {type(reduce).__name__}, expected a function (sums, count) -> (sums, count), such as "
            "fisher.distributed.all_reduce(), or None"
        )


def group_of(reduce: Any) -> Any:
    """The process group over whose ranks decompositions are split: that of `all_reduce`, None of other functions."""
    return getattr(reduce, "group", None)


def gathered(reduce: Any, rows: Any, name: str, cure: str) -> Any:
    """The rows of all ranks by `reduce.gather`; ValueError where there is no such method."""
    if not hasattr(reduce, "gather"):
        raise ValueError(
            f"reduce: {name} keeps the rows of all examples, which have no sum, expected a reduce with a method gather(rows) -> "
            f"the rows of all ranks, as fisher.distributed.all_reduce() has; or {cure}"
        )
    return reduce.gather(rows)
