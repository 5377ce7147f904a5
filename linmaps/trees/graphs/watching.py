"""What no graph can hold, refused where it is done: numbers read, sizes by numbers, random numbers, changes in place."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as torch_pytree
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import debug_unwrap
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NOISE = "draw outside, and pass the numbers as an argument (noise=)"
CURE = "use torch.where, do that part outside, or call the function as it is"
BY_VALUE = f"expected one way for all values, as a graph has one; {CURE}"
PLACES = tuple(os.sep + os.path.join(*part) + os.sep for part in (("torch",), ("optree",)))
READ = {  # methods that make no operation: what they give is no tensor
    getattr(Tensor, name)
    for name in ("numpy", "tolist", "data_ptr", "__array__", "__format__", "__repr__", "__deepcopy__", "__reduce_ex__")
}
MADE_OF = (torch.tensor, torch.as_tensor, torch.asarray)  # of numbers, or of tensors, whose numbers are read


class Refusal(Exception):
    """Why a function has no graph, at which line, and the cure."""


@contextmanager
def watched(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Raises a `Refusal` for what a graph of functions of these inputs would do once, or not at all."""
    with _Methods(), _Operations(inputs):
        yield


class _Operations(TorchDispatchMode):
    """Refuses random numbers, changes of what the function was given, and answers that are known with the numbers alone."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.given = {_memory(t) for t in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Refusal(
                f"draws random numbers ({func}){line()}, expected none: a graph draws the same at each call; {NOISE}"
            )
        for t in written(func, args, kwargs or {}):
            if isinstance(t, Tensor) and (not isinstance(t, FakeTensor) or _memory(t) in self.given):
                what = "an argument" if isinstance(t, FakeTensor) else "a tensor that it closes over"
                raise Refusal(
                    f"changes {what} in place ({func}){line()}, expected a pure function; give the new tensor back"
                )
        made = func(*args, **(kwargs or {}))
        if any(_symbolic(t) for t in torch_pytree.tree_leaves(made)):
            if isinstance(made, SYMBOLS):
                raise Refusal(f"goes on by the value of a tensor{line()}, {BY_VALUE}")
            raise Refusal(f"has sizes by the value of a tensor ({func}){line()}, {BY_VALUE}")
        return made


class _Methods(TorchFunctionMode):
    """Refuses methods that read the numbers of a tensor beside its operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READ and _traced(args[0]):
            raise Refusal(f"reads the numbers of a tensor ({func.__name__}){line()}, {BY_VALUE}")
        if (
            func in MADE_OF
            and args
            and not isinstance(args[0], Tensor)
            and any(map(_traced, torch_pytree.tree_leaves(args[0])))
        ):
            raise Refusal(
                f"reads the numbers of tensors (torch.{func.__name__} of a {type(args[0]).__name__}){line()}, expected "
                "operations on tensors; use torch.stack"
            )
        return func(*args, **(kwargs or {}))


SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What an operation of torch writes to: of its arguments, those by name (out=) and those in lists too.

    >>> (
    ...     written(torch.ops.aten.add.out, (1, 2), {"out": 3}),
    ...     written(torch.ops.aten._foreach_mul_.Scalar, ([1, 2], 3.0), {}),
    ... )
    ([3], [1, 2])
    """
    found = []
    for place, described in enumerate(func._schema.arguments):
        if described.alias_info is not None and described.alias_info.is_write:
            found.append(kwargs.get(described.name, args[place] if place < len(args) else None))
    return torch_pytree.tree_leaves(found)


def _symbolic(t: Any) -> bool:
    return isinstance(t, SYMBOLS) or (isinstance(t, FakeTensor) and any(isinstance(n, torch.SymInt) for n in t.shape))


def _traced(t: Any) -> bool:
    """Whether a tensor has no numbers, inside of transforms too."""
    return isinstance(t, Tensor) and isinstance(debug_unwrap(t, recurse=True), FakeTensor)


def _memory(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def line(error: BaseException | None = None) -> str:
    """Where, outside of torch: the innermost line of a traceback, or of what runs now."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else traceback.extract_stack()
    own = [f for f in frames if not any(p in f.filename for p in PLACES) and f.filename not in HERE]
    return f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""


HERE = {__file__, os.path.join(os.path.dirname(__file__), "recording.py")}
