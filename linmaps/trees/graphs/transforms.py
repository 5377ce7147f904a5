"""A function of tensors as graphs, one for each set of shapes; its derivatives and batches are graphs too."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from linmaps.trees.graphs.backends import Backend, CompiledGraph, built
from linmaps.trees.graphs.closures import check_closed
from linmaps.trees.graphs.latest import Latest
from linmaps.trees.graphs.recording import traced_graph


@dataclasses.dataclass(frozen=True)
class Source:
    """The function that graphs are made of, how, and those made so far."""

    fn: Callable[..., Any]
    name: str
    backend: Backend
    progress: bool
    made: list[CompiledGraph] = dataclasses.field(default_factory=list)


class Form:
    """A place for how the tensors of an answer make it: structure and leaves that are no tensors."""

    value: Any = None


class Flat:
    """A function of tensors `run(*tensors) -> (tensors, how they make the answer)`, as graphs; its derivatives are others."""

    def __init__(self, run: Callable[..., tuple[list[Tensor], Any]], source: Source, what: str = "value") -> None:
        self.run, self.source, self.what = run, source, what
        self.graphs: Latest[Any, tuple[Callable[..., Any], tuple[Tensor, ...], Any]] = Latest()
        self.derived: Latest[Any, Flat] = Latest()

    def call(self, form: Form, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tensors of the answer; how they make it is put into `form`."""
        if _apart(tensors):
            return _Differentiable.apply(self, form, *tensors)
        with torch.no_grad(), temporarily_clear_interpreter_stack():
            tensors = [t.detach().resolve_conj().resolve_neg() for t in tensors]
            made, constants, form.value = self.graphs.get(_key(tensors), lambda: self._compile(tensors))
            return tuple(made(*tensors, *constants))

    def _compile(self, tensors: Sequence[Tensor]) -> tuple[Callable[..., Any], tuple[Tensor, ...], Any]:
        source, form = self.source, []

        def run(*leaves: Tensor) -> list[Tensor]:
            out, shape = self.run(*leaves)
            form.append(shape)
            return out

        check_closed(source.fn, source.name)
        start = time.perf_counter()
        graph = traced_graph(run, tensors, source.name)
        middle = time.perf_counter()
        call = built(graph, tensors, source.backend, source.name)
        end = time.perf_counter()
        count = sum(node.op.startswith("call") for node in graph.module.graph.nodes)
        made = CompiledGraph(tuple(tuple(t.shape) for t in tensors), count, middle - start, end - middle, self.what)
        source.made.append(made)
        if source.progress:
            sys.stderr.write(f"{source.name}: {made}\n")
        return call, graph.constants, form[-1]

    def pulled(self, count: int) -> Flat:
        """`(*inputs, *cotangents of floating outputs) -> gradients of floating inputs`."""

        def run(*both: Tensor) -> tuple[list[Tensor], Any]:
            inputs, cotangents = both[:count], both[count:]
            floating, fill = _floating(inputs)
            outputs = lambda *own: tuple(t for t in self.run(*fill(own))[0] if _smooth(t))
            _, back = torch.func.vjp(outputs, *floating)  # type: ignore[misc]
            return list(back(tuple(cotangents))), None

        return self.derived.get("vjp", lambda: Flat(run, self.source, f"gradient of {self.what}"))

    def pushed(self, count: int) -> Flat:
        """`(*inputs, *tangents of floating inputs) -> tangents of floating outputs`."""

        def run(*both: Tensor) -> tuple[list[Tensor], Any]:
            inputs, tangents = both[:count], both[count:]
            floating, fill = _floating(inputs)
            outputs = lambda *own: tuple(t for t in self.run(*fill(own))[0] if _smooth(t))
            return list(torch.func.jvp(outputs, floating, tuple(tangents))[1]), None

        return self.derived.get("jvp", lambda: Flat(run, self.source, f"tangent of {self.what}"))

    def mapped(self, axes: tuple[int | None, ...]) -> Flat:
        """run under vmap over these axes, members first in all outputs."""

        def run(*stacked: Tensor) -> tuple[list[Tensor], Any]:
            form: list[Any] = []

            def one(*leaves: Tensor) -> tuple[Tensor, ...]:
                out, shape = self.run(*leaves)
                form.append(shape)
                return tuple(out)

            return list(torch.func.vmap(one, in_dims=axes)(*stacked)), form[-1]

        return self.derived.get(("vmap", axes), lambda: Flat(run, self.source, f"vmap of {self.what}"))


class _Differentiable(torch.autograd.Function):
    """A graph whose derivatives and batches are the graphs of the function's own."""

    @staticmethod
    def forward(flat: Flat, form: Form, *tensors: Tensor) -> Any:
        return tuple(flat.call(form, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        flat, _, *tensors = inputs
        ctx.flat, ctx.out = flat, [i for i, t in enumerate(output) if _smooth(t)]
        ctx.floating = [_smooth(t) for t in tensors]
        ctx.mark_non_differentiable(*(t for t in output if not _smooth(t)))
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        tensors = ctx.saved_tensors
        back = ctx.flat.pulled(len(tensors))
        own = iter(back.call(Form(), [*tensors, *(cotangents[i] for i in ctx.out)]))
        return None, None, *(next(own) if floating else None for floating in ctx.floating)

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Any) -> Any:
        tensors = ctx.saved_tensors
        along = [torch.zeros_like(t) if v is None else v for t, v, real in zip(tensors, tangents, ctx.floating) if real]
        own = ctx.flat.pushed(len(tensors)).call(Form(), [*tensors, *along])
        made: list[Any] = [None] * (max(ctx.out, default=-1) + 1)
        for i, t in zip(ctx.out, own):
            made[i] = t
        return tuple(made)

    @staticmethod
    def vmap(info: Any, in_dims: Any, flat: Flat, form: Form, *tensors: Tensor) -> Any:
        out = flat.mapped(tuple(in_dims[2:])).call(form, tensors)
        return tuple(out), (0,) * len(out)


def _floating(inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Callable[[Sequence[Tensor]], list[Tensor]]]:
    """The floating ones, and how others in their place make all inputs."""
    real = [_smooth(t) for t in inputs]

    def fill(own: Sequence[Tensor]) -> list[Tensor]:
        new = iter(own)
        return [next(new) if r else t for r, t in zip(real, inputs)]

    return tuple(t for r, t in zip(real, inputs) if r), fill


def _smooth(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _apart(tensors: Sequence[Tensor]) -> bool:
    """Whether a derivative may be asked of one of these, or a transform holds it."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None and any(
        torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors
    ):
        return True
    return getattr(forward_ad, "_current_level", -1) >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


def _key(tensors: Sequence[Tensor]) -> Any:
    """What a graph depends on beside the numbers."""
    kinds = {t.device.type for t in tensors} | {"cpu"}
    cast = tuple((k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in sorted(kinds) if k != "meta")
    own = tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)
    return own, cast, torch.get_default_dtype(), torch.get_float32_matmul_precision()
