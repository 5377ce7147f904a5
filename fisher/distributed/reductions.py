"""Sums over all ranks, and rows of all ranks, in few collectives; all ranks end with the same bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fisher.distributed.buffers import Plan
from fisher.distributed.groups import plain_numbers, the_group, told, told_by
from linmaps import trees
from linmaps.checks import number, size
from linmaps.checks.annotations import typed

APART = (
    "make the matrices of the ensemble outside of the collective: F = vmap(lambda p: fisher.fim(f, p, x))(stacked) without "
    "reduce, then sums, count = reduce(trees.scale(len(x), F), len(x)) and F = trees.scale(1 / count, sums), for matrices that "
    "are linear in their numbers (F.linear)"
)


@typed
def all_reduce(group: Any = None) -> AllReduce:
    """A function `(sums, count) -> (sums, count)` that adds over the ranks of a process group (None: all processes).

        sums <- sum over ranks of sums,     count <- sum over ranks of count

    For `reduce=` of `fisher.fim`, `hessian`, `ggn`, `update_diag`, `recipes.kfac`, `recipes.soap`, `growth.statistics`, ...
    One small message of each rank says its count in float64 and what its sums look like; then one collective for each buffer of
    up to 2^24 numbers of a dtype and device; of matrices that are symmetric by what they are the triangles alone are sent.
    A rank without examples gives `(None, 0)`, or zeros.  All ranks get the same bits.  Its `gather(rows)` gives the rows of all
    ranks, for matrices that are made of rows (PMatLowRank); decompositions on the way are split over its `group`.  A function
    around it has these two where it gives them attributes of the same names.

    Raises RuntimeError where no process group is initialised, TypeError for what is no group of this process, and at the call
    ValueError for sums of different structures or shapes and negative counts (at all ranks), under vmap and for tensors that
    require a gradient.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # "gloo" alone under torchrun
    >>> reduce = all_reduce()
    >>> reduce, reduce({"a": torch.ones(2)}, 3)
    (all_reduce(rank 0 of 1), ({'a': tensor([1., 1.])}, 3))
    >>> dist.destroy_process_group()
    >>> all_reduce()
    Traceback (most recent call last):
    RuntimeError: all_reduce: no process group is initialised; call torch.distributed.init_process_group(backend) first, ...
    """
    return AllReduce(the_group(group, "all_reduce"))


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """What `all_reduce` makes; group: the process group, over whose ranks decompositions are split."""

    group: Any

    def __repr__(self) -> str:
        return f"all_reduce(rank {dist.get_rank(self.group)} of {dist.get_world_size(self.group)})"

    def __call__(self, sums: Any, count: Any) -> tuple[Any, Any]:
        """(sums, count) over all ranks."""
        plain_numbers((sums, count), "reduce", APART)
        plan = None if sums is None else Plan.of(sums)
        number(count, "reduce: count")
        plan, numbers = _agreed(plan, float(count), self.group, "reduce")
        if negative := [rank for rank, n in enumerate(numbers) if n < 0]:  # at all ranks, so that none waits
            raise ValueError(
                f"reduce: count: got {[numbers[rank] for rank in negative]} of ranks {negative}, expected numbers of examples, "
                "at least 0; give the examples of each rank's shard, 0 with sums=None where it has none"
            )
        total = sum(numbers)
        total = int(total) if total == int(total) else total
        if plan is None:
            return None, total
        added = map(self._added, plan.flat(plan.zeros() if sums is None else sums))
        return plan.tree(added), total

    def _added(self, buffer: Tensor) -> Tensor:
        if buffer.numel():
            dist.all_reduce(buffer, group=self.group)
        return buffer

    def gather(self, rows: Any) -> Any:
        """The rows of all ranks, in the order of the ranks; None at a rank without."""
        return _side_by_side(rows, 0, self.group, "reduce")


@typed
def all_gather(tree: Any, dim: int = 0, group: Any = None) -> Any:
    """The tensors of all ranks side by side along an axis, in the order of the ranks: a tree of them, the same at all ranks.

    Their sizes along that axis may differ, and be 0; a rank that has nothing gives None.  What is made example by example needs
    nothing else:

        shard = (x[rank::world], t[rank::world])                            # the training examples of this rank
        own = fisher.recipes.influence(f, params, shard, F, tests)          # [Q, B of this rank], tests at all ranks
        scores = fisher.distributed.all_gather(own, dim=1)                  # [Q, B], shard by shard
        kernel = fisher.distributed.all_gather(fisher.gram(f, params, x[rank::world], x, kind="trace").kernel)   # [B, B]

    (of `influence(aggregate="data")`, a sum over the shard, take `all_reduce()(own, len(shard))[0]`).

    Raises RuntimeError where no process group is initialised, ValueError for other dtypes or shapes at other ranks, under vmap,
    and for tensors that require a gradient.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> all_gather({"scores": torch.ones(1, 2)}, dim=1)
    {'scores': tensor([[1., 1.]])}
    >>> dist.destroy_process_group()
    >>> all_gather(torch.ones(1))
    Traceback (most recent call last):
    RuntimeError: all_gather: no process group is initialised; call torch.distributed.init_process_group(backend) first, ...
    """
    size(dim, "dim")
    return _side_by_side(tree, dim, the_group(group, "all_gather"), "all_gather")


def _side_by_side(tree: Any, dim: int, group: Any, name: str) -> Any:
    plain_numbers(tree, name, "stack the members on an axis of their own and gather outside of vmap")
    own = [] if tree is None else trees.leaves(tree)
    for t in own:
        if not isinstance(t, Tensor) or not -t.ndim <= dim < t.ndim:
            got = f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"{name}: got {got}, expected tensors with an axis dim={dim}; give t[None], and dim=0")
    first = None if tree is None else trees.map(lambda t: t.movedim(dim, 0), tree)
    none = None if first is None else trees.map(lambda t: t[:0], first)
    long = len(trees.leaves(first)[0]) if own else 0
    if any(len(t) != long for t in trees.leaves(first)):
        raise ValueError(f"{name}: got leaves of different sizes along dim={dim}, expected one; gather them one by one")
    plan, lengths = _agreed(None if none is None else Plan.of(none), float(long), group, name)
    if plan is None:
        return None
    most = int(max(lengths))
    leaves = trees.leaves(plan.zeros() if first is None else first)
    parts = []
    padded = [torch.cat([t, t.new_zeros(most - len(t), *t.shape[1:])]) for t in leaves]
    full = Plan.of(plan.structure.unflatten(padded))
    buffers = list(full.flat(plan.structure.unflatten(padded)))
    found = [[torch.empty_like(b) for _ in lengths] for b in buffers]
    for buffer, everyones in zip(buffers, found):
        if buffer.numel():
            dist.all_gather(everyones, buffer, group=group)
    for rank, n in enumerate(lengths):
        parts.append(trees.map(lambda t: t[: int(n)], full.tree([everyones[rank] for everyones in found])))  # noqa: B023
    return trees.map(lambda *ts: torch.cat(ts).movedim(0, dim), *parts)


def _agreed(plan: Plan | None, number: float, group: Any, name: str) -> tuple[Plan | None, list[float]]:
    """(the plan of all ranks, None where none has one; the number of each rank)."""
    rows = told([number, float(plan is not None), float(0 if plan is None else plan.print)], group)
    having = [rank for rank, row in enumerate(rows) if row[1]]
    if not having:
        return None, [row[0] for row in rows]
    first = having[0]
    others = [rank for rank in having if rows[rank][2] != rows[first][2]]
    if others:
        mine = (
            ""
            if plan is None
            else f"; here: {', '.join(f'{n} {list(k.shape)}' for n, k in zip(plan.names, plan.kinds))}"
        )
        raise ValueError(
            f"{name}: ranks {others} have other tensors than rank {first} (names, shapes or dtypes), expected the same at all; "
            f"make layers once, of a batch that all ranks have, and give them to all{mine[:400]}"
        )
    if len(having) < len(rows):
        theirs = told_by(plan, first, group)
        plan = theirs if plan is None else plan
    return plan, [row[0] for row in rows]


def everywhere(tree: Any, plan: Plan, rank: int, group: Any) -> Any:
    """The tree that one rank has, at all ranks; elsewhere tree is None, and the plan says what comes."""
    src = dist.get_global_rank(group, rank)

    def sent(buffer: Tensor) -> Tensor:
        if buffer.numel():
            dist.broadcast(buffer, src=src, group=group)
        return buffer

    return plan.tree(map(sent, plan.empty() if tree is None else plan.flat(tree)))
