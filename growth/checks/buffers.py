"""Running statistics of norms, and counters: leaves of params that go along, and have no derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from linmaps import trees
from linmaps.trees.keys import Path

BUFFERS = ("running_mean", "running_var")


def parameter(path: Path, leaf: Tensor) -> bool:
    """Whether a leaf is a parameter: neither running statistics nor a counter or another tensor of integers.

    >>> import torch
    >>> [parameter((name,), torch.ones(2)) for name in ("n.weight", "n.running_mean")]
    [True, False]
    """
    return (leaf.is_floating_point() or leaf.is_complex()) and str(path[-1]).rpartition(".")[2] not in BUFFERS


def parameter_count(params: Any) -> int:
    """How many parameters there are, running statistics and integers left out.

    >>> import torch
    >>> parameter_count(
    ...     {"weight": torch.ones(2), "running_mean": torch.ones(2), "num_batches_tracked": torch.tensor(3)}
    ... )
    2
    """
    return sum(leaf.numel() for path, leaf in zip(trees.paths(params), trees.leaves(params)) if parameter(path, leaf))


def buffers_fixed(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """f with leaves named running_mean or running_var as constants: torch's batch norm has no derivative by them.

    >>> import torch
    >>> f = lambda p, x: x * p["weight"] + p["running_mean"]
    >>> params = {"weight": torch.ones(2), "running_mean": torch.ones(2)}
    >>> torch.func.grad(lambda p: buffers_fixed(f)(p, torch.ones(2)).sum())(params)
    {'weight': tensor([1., 1.]), 'running_mean': tensor([0., 0.])}
    """

    def fixed(params: Any, x: Any) -> Tensor:
        for path in trees.paths(params):
            if str(path[-1]).rpartition(".")[2] in BUFFERS:
                params = trees.replace(params, path, trees.get(params, path).detach())
        return f(params, x)

    return fixed


def counters_fixed(f: Callable[..., Tensor], params: Any) -> tuple[Callable[..., Tensor], Any]:
    """(f, params) without the leaves that are no real numbers, such as num_batches_tracked, over which f is closed.

    >>> import torch
    >>> f, params = counters_fixed(lambda p, x: x * p["w"] + p["n"], {"w": torch.ones(1), "n": torch.tensor(3)})
    >>> params, f(params, 2 * torch.ones(1))
    ({'w': tensor([1.]), 'n': ()}, tensor([5.]))
    """
    flat, treedef = trees.flatten(params)
    real = [t.is_floating_point() or t.is_complex() for t in flat]
    if all(real):
        return f, params

    def closed(some: Any, x: Any) -> Tensor:
        own = iter(trees.leaves(some))
        return f(treedef.unflatten([next(own) if keep else t for t, keep in zip(flat, real)]), x)

    return closed, treedef.unflatten([t if keep else () for t, keep in zip(flat, real)])
