"""What a function closes over: tensors of a transform would lose their derivatives and members in a graph."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor

from linmaps.trees.nodes import one_level

MOST = 1000  # parts that are looked at


def called(fn: Any) -> str:
    """What a function is called in messages.

    >>> called(functools.partial(len)), called(torch.nn.Linear(1, 1))
    ('len', 'Linear')
    """
    if isinstance(fn, functools.partial):
        return called(fn.func)
    return str(getattr(fn, "__name__", type(fn).__name__))


def check_closed(fn: Any, name: str) -> None:
    """Raise a ValueError for a tensor inside a transform that fn closes over, in trees and functions of its own too."""
    seen: set[int] = set()
    left = [fn]
    while left:
        part = left.pop()
        if id(part) in seen or len(seen) > MOST:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            if torch._C._functorch.is_functorch_wrapped_tensor(part):
                raise ValueError(
                    f"{name}: closes over a tensor {tuple(part.shape)} inside a transform (grad, vmap, jvp), whose derivatives "
                    "and members a graph would lose, expected it as an argument; pass it, or compile outside of the transform"
                )
        elif isinstance(part, functools.partial):
            left += [part.func, part.args, part.keywords]
        elif isinstance(part, types.FunctionType):
            left += [*map(content, part.__closure__ or ()), *(part.__defaults__ or ())]
        elif isinstance(part, types.MethodType):
            left += [part.__func__, part.__self__]
        elif (inside := one_level(part)) is not None:
            left += inside[1]


def content(cell: Any) -> Any:
    """What a cell of a closure holds; None where it is not filled yet.

    >>> content((lambda x: lambda: x)(3).__closure__[0])
    3
    """
    try:
        return cell.cell_contents
    except ValueError:
        return None
