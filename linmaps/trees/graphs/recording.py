"""A function of tensors as a graph of tensor operations, or why it has none."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._python_dispatch import TorchDispatchMode

Run = Callable[..., Sequence[Tensor]]  # tensors to tensors
BY_VALUE = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)


@dataclasses.dataclass(frozen=True)
class Graph:
    """`module(*inputs, *constants)` gives the tensors that the function gives; constants are those that it closes over."""

    module: GraphModule
    constants: tuple[Tensor, ...]


def traced_graph(run: Run, inputs: Sequence[Tensor], name: str) -> Graph:
    """The graph of run at inputs of these shapes; nothing is computed.  ValueError where it has none, by cause.

    >>> graph = traced_graph(lambda x: [x * 2 + 1], [torch.zeros(3)], "f")
    >>> graph.module(torch.ones(3), *graph.constants)
    [tensor([3., 3., 3.])]
    """

    def watched(*leaves: Tensor) -> list[Tensor]:
        with _Watch(leaves, name):
            return list(run(*leaves))

    flat = [t.detach() for t in inputs]
    try:
        with torch.inference_mode(False), torch.enable_grad(), temporarily_clear_interpreter_stack():
            module = make_fx(watched, tracing_mode="fake", _allow_non_fake_inputs=True)(*flat)
    except Exception as error:
        raise _told(error, name) from error
    return _lifted(module, name)


class _Watch(TorchDispatchMode):
    """Refuses what a graph would do once, or to others: random numbers, and changes of what the function was given."""

    def __init__(self, inputs: Sequence[Tensor], name: str) -> None:
        super().__init__()
        self.given = {_memory(t) for t in inputs}
        self.name = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _Refusal(
                f"draws random numbers ({func}){_line()}, expected none: a graph draws the same at each call; {NOISE}"
            )
        for t, described in zip(args, func._schema.arguments):
            written = described.alias_info is not None and described.alias_info.is_write
            if written and isinstance(t, Tensor) and (not isinstance(t, FakeTensor) or _memory(t) in self.given):
                what = "an argument" if isinstance(t, FakeTensor) else "a tensor that it closes over"
                raise _Refusal(
                    f"changes {what} in place ({func}){_line()}, expected a pure function; give the new tensor back"
                )
        return func(*args, **(kwargs or {}))


NOISE = "draw outside, and pass the numbers as an argument (noise=)"


class _Refusal(Exception):
    pass


def _memory(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _lifted(module: GraphModule, name: str) -> Graph:
    """Closed-over tensors as further inputs: once each, and with the numbers that they have when the graph is called."""
    graph = module.graph
    found: list[tuple[Any, Tensor]] = []
    last = [n for n in graph.nodes if n.op == "placeholder"][-1:]  # of no input: the constants come first
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        value = getattr(module, node.target)
        if not isinstance(value, Tensor):
            continue
        if value.requires_grad:
            raise ValueError(
                f"{name}: closes over a tensor {tuple(value.shape)} that requires a gradient, which a graph would not give "
                "it, expected it as an argument; pass it, or close over tensor.detach()"
            )
        same = next((placed for placed, t in found if t is value), None)
        if same is None:
            with graph.inserting_after(last[0]) if last else graph.inserting_before(next(iter(graph.nodes))):
                same = graph.placeholder(f"constant_{len(found)}")
            last = [same]
            same.meta.update(node.meta)
            found.append((same, value))
        node.replace_all_uses_with(same)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return Graph(module, tuple(t for _, t in found))


def causes(error: BaseException | None) -> list[BaseException]:
    """An error, and those that it was raised from."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _told(error: Exception, name: str) -> Exception:
    """torch's words about tracing as a ValueError that names the line; what the function raised by itself as it is."""
    for cause in causes(error):
        if isinstance(cause, _Refusal):
            return ValueError(f"{name}: {cause}")
        if isinstance(cause, BY_VALUE):
            return ValueError(
                f"{name}: goes on by the value of a tensor{_line(cause)}, expected one way for all values, as a graph has one; "
                "use torch.where, do that part outside, or call the function as it is"
            )
    return error


PLACES = tuple(os.sep + os.path.join(*part) + os.sep for part in (("torch",), ("optree",)))


def _line(error: BaseException | None = None) -> str:
    """Where, outside of torch: the innermost line of a traceback, or of what runs now."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else traceback.extract_stack()
    own = [f for f in frames if not any(p in f.filename for p in PLACES) and f.filename != __file__]
    return f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""
