"""A function of tensors as a graph of tensor operations, or why it has none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from linmaps.trees.graphs import watching
from linmaps.trees.graphs.merging import merge

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
        with watching.watched(leaves):
            return list(run(*leaves))

    flat = [t.detach() for t in inputs]
    try:
        with torch.inference_mode(False), torch.enable_grad(), temporarily_clear_interpreter_stack():
            module = make_fx(watched, tracing_mode="fake", _allow_non_fake_inputs=True)(*flat)
    except Exception as error:
        raise _told(error, name) from error
    return _lifted(module, name)


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
            cure = "a module is made a function of its params by torch.func.functional_call, or by fisher.functional(module)"
            raise ValueError(
                f"{name}: closes over a tensor {tuple(value.shape)} that requires a gradient, which a graph would not give "
                "it, expected it as an argument; pass it, or close over tensor.detach()"
                + (f"; {cure}" if isinstance(value, torch.nn.Parameter) else "")
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
    merge(graph)
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
        if isinstance(cause, watching.Refusal):
            return ValueError(f"{name}: {cause}")
        if isinstance(cause, BY_VALUE):
            return ValueError(f"{name}: goes on by the value of a tensor{watching.line(cause)}, {watching.BY_VALUE}")
    return error
