"""Reverse mode by torch.func, and by autograd itself where f calls what no transform takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, peek_interpreter_stack

from linmaps import trees

REFUSED = "must override the setup_context"  # what torch says of an autograd.Function whose forward takes ctx
CHECKPOINTED = (
    "keeps its activations by hooks, as gradient checkpointing does (torch.utils.checkpoint), which torch.func does not "
    "differentiate, expected plain calls; run it without checkpointing"
)


def reverse(run: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """`torch.func.vjp(run, *primals)`; where f calls an autograd.Function whose forward takes ctx (hooks of modules at their
    backward do), which no transform takes, the same by autograd: of plain tensors, outside of transforms.

    >>> class Sign(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         return x.sign()
    ...
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         return g
    >>> y, back = reverse(Sign.apply, torch.tensor([-2.0, 3.0]))
    >>> y, back(torch.tensor([5.0, 7.0]))
    (tensor([-1.,  1.]), (tensor([5., 7.]),))
    """
    try:
        return torch.func.vjp(run, *primals, has_aux=has_aux)
    except RuntimeError as error:
        if not beyond_transforms(error):
            raise
        made = _by_autograd(run, primals, has_aux)
        if made is None:
            raise
        return made


def beyond_transforms(error: Exception) -> bool:
    """Whether torch refused such a function under a transform that is over."""
    return REFUSED in str(error) and peek_interpreter_stack() is None


def fresh(flat: Iterable[Tensor]) -> list[Tensor]:
    """The tensors as leaves of a graph of their own, those of numbers."""
    return [t.detach().requires_grad_() if t.is_floating_point() else t for t in flat]


def others(ys: Iterable[Tensor], own: Iterable[Tensor]) -> bool:
    """Whether the graph of ys has leaves that are not own: what autograd makes at own leaves alone would lose them.

    >>> a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    >>> others([2 * a], [a]), others([b * a], [a])
    (False, True)
    """
    known = {id(t) for t in own}
    return any(hasattr(node, "variable") and id(node.variable) not in known for node in nodes(ys))


def nodes(ys: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the graph of ys, each once; a leaf's has the leaf as its `variable`.

    >>> [node.name() for node in nodes([2 * torch.ones(1, requires_grad=True)])]
    ['MulBackward0', 'torch::autograd::AccumulateGrad']
    """
    todo: list[Any] = list({y.grad_fn for y in ys if y.grad_fn is not None})
    seen = set(todo)
    while todo:
        node = todo.pop()
        yield node
        for inner, _ in node.next_functions:
            if inner is not None and inner not in seen:
                seen.add(inner)
                todo.append(inner)


def _beneath(t: Tensor) -> Tensor:
    """The tensor under all transforms, which has the graph that is built outside of them."""
    while is_functorch_wrapped_tensor(t):
        t = get_unwrapped(t)
    return t


def _by_autograd(run: Callable[..., Any], primals: tuple[Any, ...], has_aux: bool) -> Any:
    """None where tensors have a graph that would be lost.  What run gives beside its outputs has none to the primals."""
    flat, treedef = trees.flatten(primals)
    if any(t.requires_grad for t in flat):
        return None
    own = fresh(flat)
    free = [t for t in own if t.requires_grad]
    with torch.enable_grad():
        found = run(*treedef.unflatten(own))
    out, aux = found if has_aux else (found, None)
    ys, structure = trees.flatten(out)
    if others(ys, own):
        return None
    moved = [k for k, y in enumerate(ys) if y.requires_grad]

    def back(w: Any) -> Any:
        given = trees.leaves(w)
        try:
            made: Any = [None] * len(free)
            if moved:
                columns = [given[k] for k in moved]
                graph = any(_beneath(t).requires_grad for t in columns)
                made = torch.autograd.grad(
                    [ys[k] for k in moved], free, columns, retain_graph=True, create_graph=graph, allow_unused=True
                )
        except RuntimeError as error:
            if "torch.utils.checkpoint is incompatible" in str(error):
                raise ValueError(f"f(params, x): {CHECKPOINTED}") from error
            raise
        found = iter([torch.zeros_like(t) if g is None else g for t, g in zip(free, made)])
        return treedef.unflatten([next(found) if t.requires_grad else torch.zeros_like(t) for t in own])

    return (structure.unflatten([y.detach() for y in ys]), back, *([aux] if has_aux else []))
