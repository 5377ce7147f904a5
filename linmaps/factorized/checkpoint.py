"""Recomputation in the backward pass, inside transforms too: memory for the inputs of a function in place of its inner steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _Recompute(torch.autograd.Function):
    """A function of tensors whose backward pass starts from its inputs again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(f: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return f(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.f, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        return (None, *torch.func.vjp(ctx.f, *ctx.saved_tensors)[1](slope))


def recompute(f: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`f(*tensors)`, keeping for the backward pass nothing but the tensors: f runs a second time there.

    f: a pure function whose result is a tensor and which closes over no tensor.  Works under grad, vmap, jacrev, jacfwd and
    their compositions, where `torch.utils.checkpoint` does not.  Forward mode keeps nothing anyway: there f is called as it is.

    >>> import torch
    >>> torch.func.grad(lambda x: recompute(torch.sin, x))(torch.zeros(()))
    tensor(1.)
    """
    # besides, torch drops terms of forward over forward mode of a custom function
    forward_mode = getattr(forward_ad, "_current_level", -1) >= 0
    return f(*tensors) if forward_mode else _Recompute.apply(f, *tensors)
