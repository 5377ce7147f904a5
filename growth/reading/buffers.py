"""Running statistics of norms: leaves of params that grow along, and have no derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from linmaps import trees

BUFFERS = ("running_mean", "running_var")


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
