"""What torch.compile and `trees.compiled` were given: what is in a graph cannot be watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from linmaps.trees import Compiled

ORIGINAL = "_torchdynamo_orig_callable"


def original(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function that torch.compile or `trees.compiled` was given, or f itself.

    >>> import torch
    >>> f = lambda x: x + 1
    >>> original(torch.compile(f)) is f, original(f) is f
    (True, True)
    """
    while hasattr(f, ORIGINAL) or isinstance(f, Compiled):
        f = f.__wrapped__ if isinstance(f, Compiled) else getattr(f, ORIGINAL)
    return f


def run_as_written(module: nn.Module) -> None:
    """Let a module, and all in it that torch.compile made, run as it was before; their names stay.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.compile(torch.nn.Tanh()))
    >>> run_as_written(model)
    >>> model(torch.zeros(1)), [name for name, _ in model.named_modules()]
    (tensor([0.]), ['', '0', '0._orig_mod'])
    """
    for part in module.modules():
        inner = part._modules.get("_orig_mod")
        if hasattr(part, "dynamo_ctx") and inner is not None:
            part.forward = inner.__call__
        elif hasattr(type(part).forward, ORIGINAL):
            part.forward = original(type(part).forward).__get__(part)
        part._compiled_call_impl = None
