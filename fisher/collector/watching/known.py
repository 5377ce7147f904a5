"""What is known of the tensors that calls are given: which hold data, which live in a transform inside f."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import cache, cached_property
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, peek_interpreter_stack

from linmaps import trees
from linmaps.trees.graphs.tracing import traced


class Known:
    """A set of tensors, by identity, that keeps none of them alive."""

    def __init__(self, found: Iterable[Tensor] = ()) -> None:
        self.refs: dict[int, Any] = {}
        self.update(found)

    def update(self, found: Iterable[Tensor]) -> None:
        for t in found:
            self.refs[id(t)] = weakref.ref(t)  # one that is dead is no tensor's

    def __contains__(self, t: Any) -> bool:
        ref = self.refs.get(id(t))
        return ref is not None and ref() is t


class Inside:
    """Which tensors live in transforms that f makes itself: wrapped more often than what it is given, or wrapped x or leaves.

    What such transforms return is not told apart from constants: once one was seen, nothing that is unknown counts as one.
    """

    def __init__(self, leaves: dict[Any, Tensor], x: Any) -> None:
        self.given = [t for t in trees.leaves(x) if isinstance(t, Tensor)], leaves
        self.depth = 0
        if peek_interpreter_stack() is not None:
            together = torch.zeros(())  # of all that f is given: wrapped as often as a tensor is outside of f's own
            for t in (*leaves.values(), *self.given[0]):
                together = together + t.flatten()[:0].sum() if depth(t) else together
            self.depth = depth(together + 0)
        self.seen = False
        self.known = Known()

    @cached_property
    def data(self) -> set[Any]:
        return {_place(t) for t in self.given[0]}

    @cached_property
    def leaves(self) -> dict[Any, list[Any]]:
        found: dict[Any, list[Any]] = {}
        for path, t in self.given[1].items():
            found.setdefault(_place(t), []).append(path)
        return found

    def __contains__(self, t: Tensor) -> bool:
        return t in self.known or depth(t) > self.depth

    def meet(self, t: Tensor) -> list[Any] | None:
        """Of a tensor that is neither data nor made of leaves: the leaves that it is inside a transform; None for a constant."""
        n = depth(t)
        place = _place(t) if n else None
        if n > self.depth or (n and (place in self.data or place in self.leaves)):
            self.seen = True
            self.known.update([t])
            return self.leaves.get(place, [])
        return [] if self.seen else None


def _place(t: Tensor) -> Any:
    """Where the numbers of a tensor are in memory."""
    bare = torch.func.debug_unwrap(t)
    if not bare.numel():
        return None
    if traced():  # shapes alone: memory that is never filled, but known apart
        return bare.device, bare.untyped_storage()._cdata, bare.storage_offset()
    return bare.device, bare.data_ptr()


def depth(t: Tensor) -> int:
    """How many transforms wrap a tensor."""
    n = 0
    while is_functorch_wrapped_tensor(t):
        t, n = get_unwrapped(t), n + 1
    return n


def version(t: Tensor) -> int:
    """How often a tensor was written to."""
    return torch.func.debug_unwrap(t)._version


def whole(t: Tensor) -> bool:
    """Whether a tensor has memory of its own."""
    return not torch.func.debug_unwrap(t)._is_view()


def tensors(args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among the arguments of a call."""
    found = []
    for a in (*args, *kwargs.values()):
        if isinstance(a, Tensor):
            found.append(a)
        elif isinstance(a, (tuple, list, dict)):
            found.extend(tensors_of(a))
    return found


def tensors_of(out: Any) -> list[Tensor]:
    """The tensors that a call gives."""
    return [out] if isinstance(out, Tensor) else [t for t in trees.leaves(out) if isinstance(t, Tensor)]


@cache
def opened(func: FunctionType) -> FunctionType:
    """A composite of torch.nn.functional that runs its body under the mode: the same code, with private globals in
    which the question for an override is answered "no".  Without it an attention layer is one opaque call."""
    no = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _never)
    copy = FunctionType(func.__code__, {**func.__globals__, **no}, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _never(*_: Any, **__: Any) -> bool:
    return False


def distinct(params: Any) -> Any:
    """params with an object of its own for each leaf: the same tensor at two places is two leaves."""
    flat, treedef = trees.flatten(params)
    seen: set[int] = set()
    apart = [t.view_as(t) if id(t) in seen or seen.add(id(t)) else t for t in flat]  # type: ignore[func-returns-value]
    return treedef.unflatten(apart) if len(seen) < len(flat) else params
