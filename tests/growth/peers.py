"""The peer of growth: gromo 0.1.0; tests and benches compare with it.  It is optional and never a requirement.

A network is a list of layers `[(weight [o, i], bias [o] or None), ...]` with an activation between; its losses are sums over
samples, as the peer asks for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

ABSENT = "needs the peer: pip install --no-deps --target DIR gromo==0.1.0, and TORCHGROVE_PEERS=DIR"
NEEDS = ("networkx",)


@functools.cache
def load(name: str = "gromo.modules.linear_growing_module") -> Any:
    """The module of this name, or None where the package or what it needs is not installed."""
    top = name.split(".")[0]
    for directory in filter(None, os.environ.get("TORCHGROVE_PEERS", "").split(os.pathsep)):
        if (pathlib.Path(directory) / top).is_dir() and directory not in sys.path:
            sys.path.append(directory)
    if any(importlib.util.find_spec(need) is None for need in (top, *NEEDS)):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def installed() -> bool:
    return load() is not None


def network(layers: Sequence[tuple[Tensor, Tensor | None]], activation: Callable[[], torch.nn.Module]) -> list[Any]:
    """The peer's modules with these weights, each the growing successor of the one before."""
    made: list[Any] = []
    for n, (weight, bias) in enumerate(layers):
        last = n == len(layers) - 1
        module = load().LinearGrowingModule(
            weight.shape[1],
            weight.shape[0],
            use_bias=bias is not None,
            post_layer_function=torch.nn.Identity() if last else activation(),
            previous_module=made[-1] if made else None,
        )
        with torch.no_grad():
            module.weight.copy_(weight)
            if bias is not None:
                module.bias.copy_(bias)
        made.append(module)
    return made


def passed(modules: list[Any], chosen: Sequence[int], loss: Callable[[Tensor], Tensor], x: Tensor) -> list[Any]:
    """One pass of statistics of the chosen layers (each grows with the one before it); loss: a sum over samples."""
    grown = [modules[n] for n in chosen]
    for module in grown:
        module.init_computation()
    for module in modules:
        module.zero_grad()
    y = x
    for module in modules:
        y = module(y)
    loss(y).backward()
    for module in grown:
        module.update_computation()
    return grown


def step(
    modules: list[Any], chosen: Sequence[int], loss: Callable[[Tensor], Tensor], x: Tensor, k: int, **options: Any
) -> list[dict[str, Any]]:
    """One pass and the optimal updates of the chosen layers: what the peer leaves at each, cleaned up behind it."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of every near-singular matrix
        for module in passed(modules, chosen, loss, x):
            module.compute_optimal_updates(maximum_added_neurons=k, **options)
            before = module.previous_module
            found.append(
                {
                    "S": module.tensor_s(),
                    "M": module.tensor_m(),
                    "S_prev": module.tensor_s_growth(),
                    "M_prev": module.tensor_m_prev(),
                    "P": module.cross_covariance(),
                    "E": module.covariance_loss_gradient(),
                    "delta": module.delta_raw,
                    "decrease": module.parameter_update_decrease,
                    "eigenvalues": module.eigenvalues_extension,
                    "fan_in": before.extended_output_layer.weight.detach(),
                    "fan_in_bias": before.extended_output_layer.bias,
                    "fan_out": module.extended_input_layer.weight.detach(),
                }
            )
        for n in chosen:
            modules[n].reset_computation()
            modules[n].previous_module.store_input = False
            modules[n].delete_update()
    return found
