"""Member: a function with its parameters, its data, and what each of its leaves is."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call


@dataclasses.dataclass(frozen=True)
class Member:
    """f(params, x); blocks: expected kind of block per layer name; class_axis of its logits.

    ensembles: whether torch maps f over params (not where what they are decides on the shape of something).
    """

    f: Callable[..., torch.Tensor]
    params: Any
    x: torch.Tensor
    blocks: dict[str, str]
    class_axis: int = 1
    ensembles: bool = True


def _randn(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def weights(r, shapes, size=0.6):
    """A tree of numbers of these shapes."""
    return {k: weights(r, v, size) if isinstance(v, dict) else size * r(*v) for k, v in shapes.items()}


def network(r, net, *shape, kinds, class_axis=1):
    net = net.double().eval()
    params = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()}
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.copy_(r(*buffer.shape).abs() + 0.5)
    f = lambda p, x: functional_call(net, p, (x,))
    return Member(f, params, r(*shape), kinds, class_axis)
