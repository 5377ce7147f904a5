"""The process group: who is in it, and small things that its ranks tell each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from linmaps import trees


def the_group(group: Any, name: str) -> Any:
    """The process group, the one of all processes for None; RuntimeError where there is none, or this process is not in it.

    >>> the_group(None, "all_reduce")
    Traceback (most recent call last):
    RuntimeError: all_reduce: no process group is initialised; call torch.distributed.init_process_group(backend) first, ...
    """
    if not dist.is_available():
        raise RuntimeError(
            f"{name}: this build of torch has no torch.distributed, expected one that has; leave reduce and group out"
        )
    if not dist.is_initialized():
        raise RuntimeError(
            f"{name}: no process group is initialised; call torch.distributed.init_process_group(backend) first, in a script "
            "that torchrun starts, or leave reduce and group out for one process"
        )
    found = dist.group.WORLD if group is None else group
    if not isinstance(found, dist.ProcessGroup):
        what = "a group that this process is not in" if found == dist.GroupMember.NON_GROUP_MEMBER else repr(found)
        raise TypeError(
            f"{name}: got {what}, expected a process group of which this process is a member (torch.distributed.new_group), "
            "such as torch.distributed.group.WORLD"
        )
    return found


def device_of(group: Any) -> torch.device:
    """Where tensors are that a group sends when nothing else says it."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def near(device_type: str) -> torch.device:
    """The device of this process of the type that another process has."""
    if device_type == "cpu":
        return torch.device("cpu")
    return torch.device(device_type, torch.get_device_module(device_type).current_device())


def told(numbers: list[float], group: Any) -> list[list[float]]:
    """The numbers of each rank, in float64."""
    own = torch.tensor(numbers, dtype=torch.float64, device=device_of(group))
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, own, group=group)
    return torch.stack(found).tolist()


def told_by(thing: Any, rank: int, group: Any) -> Any:
    """What one rank says, any object that can be pickled."""
    box = [thing if dist.get_rank(group) == rank else None]
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, rank), group=group, device=device_of(group))
    return box[0]


def plain_numbers(tree: Any, name: str, cure: str) -> None:
    """Raise a ValueError for tensors that a transform of torch.func wraps, and for those with a graph: neither can be sent."""
    for t in trees.leaves(tree):
        if not isinstance(t, Tensor):
            continue
        if torch.func.debug_unwrap(t) is not t:
            raise ValueError(
                f"{name}: got tensors inside of torch.func.vmap or a derivative, expected plain ones: a collective sends one "
                f"tensor of each rank; {cure}"
            )
        if t.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: got tensors that require a gradient, expected plain ones: no derivative goes through a collective; "
                "detach params, or differentiate what each rank makes and reduce the derivatives"
            )
