"""The vjp of a run at its taps by autograd itself, where no transform is around the call and f makes plain calls alone.

`torch.func.vjp` says what is wrong with calls that change what f closes over, keep activations by hooks or have no batching
rule, and keeps the graphs of all that f is given; each torch call pays for that.  Where there is nothing of the kind autograd
gives the same numbers; at the first call that is not known to be plain the run is given up, and vjp makes it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.func import vmap

from fisher.checks.reverse_mode import nodes
from fisher.collector.calls.plain import Unknown
from linmaps.trees.graphs.tracing import traced

LARGE = 2**18  # gradients at all taps, of which each column has a backward of its own: batching copies what it reads
OWN = torch.autograd.function.BackwardCFunction  # the nodes of autograd.Functions that are written in Python

RULED = frozenset(
    """
    Abs Add Addmm Addmv AdaptiveAvgPool2D Alias AvgPool2D Baddbmm Bmm Cat Celu Clamp ClampMin Clone Convolution Cos Div Elu
    Embedding Exp Expand Gelu Hardsigmoid Hardswish Hardtanh LeakyRelu Log LogSigmoid LogSoftmax MaxPool2DWithIndices Mean Mish Mm
    Mul Mv NativeBatchNorm NativeGroupNorm NativeLayerNorm Neg Permute Pow Relu Rsqrt Select Sigmoid Silu Sin Slice Softmax
    Softplus Split Sqrt Squeeze Stack Sub Sum T Tanh ToCopy Transpose Unbind UnsafeView Unsqueeze View Where
    """.split()  # noqa: SIM905
)  # torch's nodes of which vmap takes the right columns


def ruled(y: Tensor) -> bool:
    """Whether the graph of y holds such nodes alone, so that several columns at once are each taken back as alone.

    >>> w = torch.ones(2, 2, requires_grad=True)
    >>> ruled(torch.tanh(w @ w)), ruled(torch.special.erfcx(w))
    (True, False)
    """
    known = lambda node: not isinstance(node, OWN) and node.name().split("Backward")[0] in RULED
    return y.grad_fn is not None and all(hasattr(node, "variable") or known(node) for node in nodes([y]))


def alone(tensors: Iterable[Any]) -> bool:
    """Whether these are plain tensors without a graph, outside of transforms, of forward mode and of graphs that are made."""
    if peek_interpreter_stack() is not None or torch.is_inference_mode_enabled() or traced():
        return False
    if torch.autograd.forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(t) is Tensor and not t.requires_grad and not t.is_inference() for t in tensors)


def backward(y: Any, taps: Sequence[Tensor], known: bool = False) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The gradients at the taps of each of several columns at y; `Unknown` for a y with another graph than that of the taps,
    which is looked at unless it is known not to be one."""
    if not isinstance(y, Tensor) or y.grad_fn is None:
        raise Unknown
    if not known and not _of_these(y, {id(t) for t in taps}):
        raise Unknown

    large = sum(t.numel() for t in taps) > of_threads(LARGE) and y.device.type == "cpu"

    def one_by_one(columns: Tensor) -> tuple[Tensor, ...]:
        made = tuple(t.new_empty(len(columns), *t.shape) for t in taps)
        for k in range(len(columns)):
            hooks = [t.register_hook(_moved(into[k])) for t, into in zip(taps, made)]
            try:
                found: Any = torch.autograd.grad(y, taps, columns[k], retain_graph=True, allow_unused=True)
            finally:
                for hook in hooks:
                    hook.remove()
            for into, t in zip(made, found):
                if t is None:
                    into[k] = 0.0
        return made

    def back(columns: Tensor) -> tuple[Tensor, ...]:
        several, graph = len(columns) != 1, columns.requires_grad
        if large and several and not graph:
            return one_by_one(columns)
        found = torch.autograd.grad(
            y,
            taps,
            columns if several else columns[0],
            retain_graph=True,
            create_graph=graph,
            allow_unused=True,
            is_grads_batched=several,
        )
        lead = (len(columns),)
        return tuple(
            p.new_zeros(lead + p.shape) if t is None else t if several else t[None] for p, t in zip(taps, found)
        )

    return back


def of_threads(numbers: int) -> int:
    """How many numbers are worked on at a time: so many that a cache holds them; of several threads, which wait for each other at
    the end of each call, four times as many."""
    return numbers if torch.get_num_threads() == 1 else 4 * numbers


def _moved(into: Tensor) -> Callable[[Tensor], Tensor]:
    """A hook that writes a gradient where it belongs as soon as it is made; autograd keeps a zero in its place."""

    def hook(t: Tensor) -> Tensor:
        into.copy_(t)
        return t.new_zeros(()).expand(t.shape)

    return hook


def by_columns(back: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """`back` of each column; of a single one as it is, for which no call needs a batching rule."""
    return lambda columns: tuple(t[None] for t in back(columns[0])) if len(columns) == 1 else vmap(back)(columns)


def _of_these(y: Tensor, taps: set[int]) -> bool:
    """Whether a graph has no leaves but these, and no nodes but torch's own."""
    return not any(
        isinstance(node, OWN) or (hasattr(node, "variable") and id(node.variable) not in taps) for node in nodes([y])
    )
