"""Products J v by autograd itself, of functions that no transform of torch.func runs.

None where a tensor that they close over would lose its graph; `Missing` where a backward has no derivative of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fisher.checks.reverse_mode import fresh, others


class Missing(ValueError):
    """torch has no derivative that a product needs."""


ONCE = (
    "f: calls an autograd.Function whose backward has no derivative of its own (torch.autograd.function.once_differentiable), "
    "expected one that is made of differentiable calls, as products by J v and F v need; write it by other calls, or "
    "take a matrix made of gradients alone (PMatDense, PMatDiag, PMatKFAC), or PFMapDense"
)


def pushed(run: Callable[..., Tensor], own: Sequence[Tensor], along: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """`(y, J v)` at y = run(*own): the derivative of J'u, linear in u, by u.

    >>> pushed(lambda t: t**2, [torch.tensor([1.0, 3.0])], [torch.ones(2)])
    (tensor([1., 9.]), tensor([2., 6.]))
    """
    if any(t.requires_grad for t in (*own, *along)):
        return None
    own = fresh(own)
    with torch.enable_grad():
        y = run(*own)
        if others([y], own):
            return None
        if not y.requires_grad:
            return y, torch.zeros_like(y)
        u = torch.zeros_like(y).requires_grad_()
        back = torch.autograd.grad(y, own, u, create_graph=True, allow_unused=True)
        if others([g for g in back if g is not None], (*own, u)):  # which torch puts where a backward has no derivative
            raise Missing(ONCE)
        parts = [(g, v) for g, v in zip(back, along) if g is not None and g.requires_grad]
        if not parts:
            return y.detach(), torch.zeros_like(y)
        (Jv,) = torch.autograd.grad(
            [g for g, _ in parts], [u], [v for _, v in parts], allow_unused=True, materialize_grads=True
        )
    return y.detach(), Jv
