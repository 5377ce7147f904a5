"""Jobs split over the ranks of a group by their cost; what they make is sent to all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from fisher.distributed.buffers import Plan
from fisher.distributed.groups import plain_numbers, the_group
from fisher.distributed.reductions import everywhere
from linmaps import trees


class Job(NamedTuple):
    """cost: in any unit; make: the work; like: a tree of tensors with the shapes, dtypes and devices of what it makes."""

    cost: float
    make: Callable[[], Any]
    like: Any


def balanced(costs: Sequence[float], ranks: int) -> list[int]:
    """The rank of each job: from the dearest on, each to the rank that has least to do.

    >>> balanced([1.0, 8.0, 1.0, 5.0, 1.0], 2)
    [1, 0, 1, 1, 1]
    """
    load, found = [0.0] * ranks, [0] * len(costs)
    for n in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        rank = min(range(ranks), key=lambda r: (load[r], r))
        found[n] = rank
        load[rank] += costs[n]
    return found


def shared(jobs: Mapping[str, Job], group: Any = None) -> dict[str, Any]:
    """What each job makes: all here where there is no group, else each at one rank, whose numbers all ranks get.

    >>> import torch
    >>> shared({"a": Job(1.0, lambda: torch.ones(1), torch.zeros(1))})
    {'a': tensor([1.])}
    """
    if group is None:
        return {name: job.make() for name, job in jobs.items()}
    group = the_group(group, "group")
    plain_numbers(
        [job.like for job in jobs.values()], "group", "leave group out under vmap, or decompose members one by one"
    )
    at = dict(zip(jobs, balanced([job.cost for job in jobs.values()], dist.get_world_size(group))))
    me = dist.get_rank(group)
    found: dict[str, Any] = {}
    own = {name: job.make() for name, job in jobs.items() if at[name] == me}
    for rank in sorted(set(at.values())):
        likes = {name: job.like for name, job in jobs.items() if at[name] == rank}
        plan = Plan.of(likes)
        mine = trees.map(_as, own, likes) if rank == me else None
        found |= everywhere(mine, plan, rank, group)
    return {name: found[name] for name in jobs}


def _as(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like)


def cubes(*factors: Tensor) -> float:
    """The cost of decomposing matrices `[..., n, n]`: n^3 each; diagonals cost nothing.

    >>> import torch
    >>> cubes(torch.ones(3, 3), torch.ones(5))
    27.0
    """
    return float(
        sum(math.prod(m.shape[:-2]) * m.shape[-1] ** 3 for m in factors if m.ndim > 1 and m.shape[-1] == m.shape[-2])
    )
