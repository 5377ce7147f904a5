"""Forward mode that agrees with reverse mode where torch's two modes differ, and in any thread.

torch's two modes differ in the padding row of an embedding, and where entries of a leaf, or several leaves, share memory.  Some
calls (grid_sample, grouped_mm, sparse.mm) have reverse mode alone: the tangents are then J v = d/du (J'u)'v, of J'u, linear in u.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks.purity import no_random_call
from fisher.checks.reverse_mode import beyond_transforms, reverse
from fisher.derivatives import untransformed
from fisher.derivatives.plain import plainly
from fisher.derivatives.untransformed import Missing
from linmaps import trees
from linmaps.trees.graphs.tracing import LOCK


def jvp(fn: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """`torch.func.jvp`, in which the row `padding_idx` of an embedding is a constant, as it is in reverse mode.

    Leaves get memory of their own, in which entries that were expanded or unfolded can move apart.  Where torch has no forward
    mode of a call, reverse mode serves twice; `Missing`, a ValueError, where it has none of that either.

    >>> import torch
    >>> table, ones = torch.zeros(2, 1), torch.ones(2, 1)
    >>> look = lambda w: torch.nn.functional.embedding(torch.tensor([0, 1]), w, padding_idx=1)
    >>> jvp(look, (table,), (ones,))[1].T, torch.func.jvp(look, (table,), (ones,))[1].T
    (tensor([[1., 0.]]), tensor([[1., 1.]]))
    """
    run, own, along = _flat(fn, primals, tangents)
    try:
        return _pushed(run, own, along)
    except NotImplementedError as error:
        return _reversed_twice(run, own, along, error)
    except RuntimeError as error:
        if not beyond_transforms(error):
            raise
        with no_random_call():
            found: Any = untransformed.pushed(run, own, along)
            if found is None:
                raise
            return found


def _flat(
    fn: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Callable[..., Any], tuple[Tensor, ...], tuple[Any, ...]]:
    """fn plainly, of tensors alone, which are copies."""
    flat, treedef = trees.flatten(primals)  # a list: torch's dicts are ordered
    along = trees.leaves(trees.check_like(tangents, primals, "tangents", shapes=False))
    return (lambda *own: plainly(fn)(*treedef.unflatten(own))), tuple(t.clone() for t in flat), tuple(along)


def _pushed(run: Callable[..., Any], own: tuple[Tensor, ...], along: tuple[Any, ...]) -> tuple[Any, Any]:
    with LOCK:
        return torch.func.jvp(run, own, along)[:2]


def _reversed_twice(run: Callable[..., Any], own: tuple[Tensor, ...], along: tuple[Any, ...], first: Exception) -> Any:
    """jvp of a function that torch has no forward mode of."""
    y, back = torch.func.vjp(run, *own)  # type: ignore[misc]
    try:
        return y, torch.func.vjp(back, trees.map(torch.zeros_like, y))[1](along)[0]
    except RuntimeError as second:  # NotImplementedError is one
        if "not implemented" not in str(second):
            raise
        said = str(first).split(" that does not", 1)[0].removeprefix("Trying to use forward AD with ")
        raise Missing(
            f"f: calls {said}, of which torch has no forward mode, and no second derivative in its place, expected one of them, "
            "as products by J v and F v need; write it by other calls, or take a matrix made of gradients alone (PMatDense, "
            "PMatDiag, PMatKFAC), or PFMapDense"
        ) from second


def both_ways(f: Callable[[Any], Tensor], params: Any, v: Any) -> tuple[Tensor, Tensor, Callable[[Tensor], Any]]:
    """`(f(params), J v, u -> J'u)` of one forward.

    >>> import torch
    >>> y, Jv, back = both_ways(lambda p: p**2, torch.tensor([1.0, 2.0]), torch.ones(2))
    >>> y, Jv, back(torch.ones(2))
    (tensor([1., 4.]), tensor([2., 4.]), tensor([2., 4.]))
    """
    try:
        y, back, u = torch.func.vjp(lambda p: jvp(f, (p,), (v,)), params, has_aux=True)  # type: ignore[misc]
    except RuntimeError as error:
        if not beyond_transforms(error):
            raise
        (y, u), back = jvp(f, (params,), (v,)), reverse(plainly(f), params)[1]
    return y, u, lambda w: back(w)[0]


SECOND = (
    "hessian: the loss calls an autograd.Function whose forward takes ctx, expected one with setup_context: torch differentiates "
    "its backward as if all that forward saved were constants, which may be wrong; write it so or by other calls, or take ggn or "
    "fim, which need no second derivative of it"
)


def slope_along(fn: Callable[[Any], Tensor], params: Any, v: Any) -> Any:
    """The change of the gradient of fn along v, its Hessian times v: forward over reverse mode.

    ValueError where fn calls an autograd.Function that no transform runs.

    >>> import torch
    >>> slope_along(lambda p: (p**3).sum() / 6, torch.tensor([1.0, 2.0]), torch.ones(2))
    tensor([1., 2.])
    """
    try:
        return _pushed(*_flat(torch.func.grad(fn), (params,), (v,)))[1]
    except NotImplementedError:
        return jvp(torch.func.grad(fn), (params,), (v,))[1]
    except RuntimeError as error:
        if not beyond_transforms(error):
            raise
        raise ValueError(SECOND) from error


def vjp(fn: Callable[[Any], Any], params: Any) -> tuple[Any, Callable[[Any], Any]]:
    """`(fn(params), back)` with back(w) the gradient of <w, fn> at params, a tree like params, for any mapping w.

    >>> import torch
    >>> y, back = vjp(lambda p: {"u": 2 * p["w"], "v": p["w"]}, {"w": torch.ones(1)})
    >>> back({"v": torch.ones(1), "u": torch.ones(1)})
    {'w': tensor([3.])}
    """
    flat, treedef = trees.flatten(params)
    made: list[Any] = []

    def run(flat: list[Tensor]) -> list[Tensor]:
        y = fn(treedef.unflatten(flat))
        made.append(trees.map(lambda t: 0, y))
        return trees.leaves(y)

    y, back = torch.func.vjp(run, flat)  # type: ignore[misc]
    like = made[-1]
    pull = lambda w: treedef.unflatten(back(trees.leaves(trees.check_like(w, like, "w", shapes=False)))[0])
    return trees.flatten(like)[1].unflatten(y), pull
