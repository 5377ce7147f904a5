"""What torch.compile and `trees.compiled` were given: what is in a graph cannot be watched, nor copied with its module."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from linmaps.trees import Compiled
from linmaps.trees.graphs.closures import content

Kind = TypeVar("Kind", bound=nn.Module)
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


def copied(module: Kind, memo: dict[int, Any], *, as_written: bool = False) -> Kind:
    """A deep copy of a module; what is in the memo, by id, stands for itself there.

    Functions that the module keeps (compiled methods, hooks, those that close over it) are of the copy: Python copies none, and
    they would run on the old one.  as_written: all in it runs as it was before torch.compile.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> model.forward = torch.compile(model.forward)
    >>> made = copied(model, {})
    >>> made.weight.data.fill_(3.0)
    tensor([[3.]])
    >>> made(torch.ones(1)).item()
    3.0
    """
    kept = {id(f): f for part in module.modules() for f in vars(part).values() if isinstance(f, Compiled)}  # has locks
    memo = {**kept, **memo}
    made = copy.deepcopy(module, memo)
    functions = _Functions(memo, as_written)
    for part in made.modules():
        functions.brought(vars(part))
    if as_written:
        run_as_written(made)
    return made


class _Functions:
    """Functions of a module as those of its copy: `brought(f)`, or f itself where it has nothing to do with the module.

    memo: what was copied, by the id of the old one, and the functions that were looked at.
    """

    def __init__(self, memo: dict[int, Any], as_written: bool) -> None:
        self.memo, self.as_written, self.seen = memo, as_written, set[int]()

    def brought(self, kept: Any) -> Any:
        """What the copy keeps in the place of this; containers are changed in place."""
        if isinstance(kept, nn.Module) or id(kept) in self.seen:
            return kept
        if isinstance(kept, (dict, list)):
            self.seen.add(id(kept))  # it may hold itself
            for key, value in list(kept.items() if isinstance(kept, dict) else enumerate(kept)):
                if (found := self.brought(value)) is not value:
                    kept[key] = found
            return kept
        if type(kept) is tuple:
            several = tuple(map(self.brought, kept))
            return several if any(a is not b for a, b in zip(several, kept)) else kept
        if not callable(kept):
            return kept
        written = original(kept)
        found = self._of_copy(written)
        return found if self.as_written or found is not written else kept

    def _of_copy(self, f: Any) -> Any:
        if isinstance(f, types.MethodType) and id(f.__self__) in self.memo:
            return types.MethodType(f.__func__, self.memo[id(f.__self__)])
        if isinstance(f, types.FunctionType) and f.__closure__:
            return self.memo.get(id(f)) or self._closed(f, f.__closure__)
        return f

    def _closed(self, f: types.FunctionType, cells: tuple[types.CellType, ...]) -> types.FunctionType:
        """f, or one with the same code that closes over the copies of the modules that f closes over."""
        self.memo[id(f)] = f  # while it is looked at: it may close over itself
        before = [content(cell) for cell in cells]
        after = [self._held(value) for value in before]
        if all(a is b for a, b in zip(after, before)):
            return f
        own = tuple(cell if a is b else types.CellType(a) for cell, a, b in zip(cells, after, before))
        made = types.FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, own)
        made.__kwdefaults__ = f.__kwdefaults__
        made.__dict__.update(vars(f))
        self.memo[id(f)] = made
        return made

    def _held(self, value: Any) -> Any:
        """What a cell holds, for the copy; of containers, which others may share, nothing."""
        if isinstance(value, nn.Module):
            return self.memo.get(id(value), value)
        return self.brought(value) if callable(value) else value
