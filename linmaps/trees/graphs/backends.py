"""Graphs compiled by a backend of torch.compile, and what one graph took."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from linmaps.trees.graphs.recording import Graph, causes

Backend = str | Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class CompiledGraph:
    """What one graph is of: the shapes of its inputs, its number of operations, the seconds that torch took to make it."""

    shapes: tuple[tuple[int, ...], ...]
    operations: int
    trace_seconds: float
    compile_seconds: float
    what: str = "value"

    def __repr__(self) -> str:
        return (
            f"CompiledGraph({self.what} of {len(self.shapes)} tensors, {self.operations} operations, traced in "
            f"{self.trace_seconds:.2g} s, compiled in {self.compile_seconds:.2g} s)"
        )


def built(graph: Graph, tensors: Sequence[Tensor], backend: Backend, name: str) -> Callable[..., Any]:
    """The graph compiled for tensors like these: a function of the inputs and the constants."""
    if not any(node.op.startswith("call") for node in graph.module.graph.nodes):
        return graph.module
    build = named(backend) if isinstance(backend, str) else backend
    try:
        with torch.no_grad(), temporarily_clear_interpreter_stack():
            return build(graph.module, [*tensors, *(t.detach() for t in graph.constants)])
    except Exception as error:
        if any("C++ compiler" in str(cause) for cause in causes(error)):
            raise RuntimeError(
                f'{name}: backend="inductor" found no C++ compiler that works, expected one; install g++ (or name it by the '
                'environment variable CXX), or give backend="aot_eager"'
            ) from error
        raise


# torch 2.13 writes results of 64 x 256 over operands of which it still reads: an updated velocity was wrong without a word
IN_ORDER = {"inplace_buffers": False}


def named(name: str) -> Callable[..., Any]:
    """The backend of torch.compile of this name."""
    from torch._dynamo.backends.registry import list_backends, lookup_backend  # takes a second: for those who compile

    known = list_backends(exclude_tags=())
    if name not in known:
        raise ValueError(
            f"backend: got {name!r}, expected one of {sorted(known)}, or a function (graph, examples) -> function"
        )
    found: Callable[..., Any] = lookup_backend(name)
    return functools.partial(found, config_patches=IN_ORDER) if name == "inductor" else found
