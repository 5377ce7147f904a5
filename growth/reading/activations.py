"""Activations: elementwise maps, at values and at 0, with their derivatives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import debug_unwrap, vjp
from torch.nn import functional as F

from fisher.checks.agreement import side_by_side
from fisher.collector.calls.chains import Chain
from linmaps.checks import values
from linmaps.trees.graphs.tracing import outside, traced

Activation = Callable[[Tensor], Tensor]


def _gelu_tanh(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def _quick_gelu(z: Tensor) -> Tensor:
    return z * torch.sigmoid(1.702 * z)


USUAL: tuple[Activation, ...] = (
    torch.positive,
    F.silu,
    F.gelu,
    _gelu_tanh,
    _quick_gelu,
    torch.sigmoid,
    torch.relu,
    torch.tanh,
    F.softplus,
    F.mish,
)


def gap(got: Tensor, want: Tensor) -> float:
    """How far two tensors are apart, relative to their size; looked at to raise, and to tell activations apart."""
    if got.shape != want.shape:
        return math.inf
    a, b = (values(t) for t in side_by_side(got, want))
    if a is None or b is None or not a.numel():
        return 0.0
    size = max(float(a.abs().amax()), float(b.abs().amax()))
    apart = float((a - b).abs().amax())
    return apart / size if math.isfinite(size) and size > 0 else 0.0


def elementwise(activation: Activation, z: Tensor) -> Tensor:
    """activation(z) of a vector; ValueError where it takes none, or returns another shape."""
    try:
        value = activation(z)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"activation: raised {type(error).__name__} for a vector ({error}), expected an elementwise map, of tensors of any "
            "shape; pooling and norms are none (leave activation=None: pooling is read)"
        ) from error
    if not isinstance(value, Tensor) or value.shape != z.shape:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"activation: returned {got} for input {tuple(z.shape)}, expected {tuple(z.shape)}; only elementwise maps may "
            "stand between the layers of a Pair"
        )
    return value


def valued(activation: Activation, z: Tensor) -> Tensor:
    """activation(z) of a z of any shape."""
    return elementwise(activation, z.flatten()).reshape(z.shape)


def applied(activation: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    """(activation(z), its derivative) of a z of any shape."""
    flat = z.flatten()
    value, back = vjp(lambda t: elementwise(activation, t), flat)  # type: ignore[misc]
    return value.reshape(z.shape), back(torch.ones_like(value))[0].reshape(z.shape)


def constants(activation: Activation, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigma(0) and the one-sided derivatives of an elementwise map at 0, as scalar tensors of the dtype of `like`.

    They are taken at two tiny steps: where they fall towards 0 they are 0, where they grow they are infinite.

    >>> import torch
    >>> [t.item() for t in constants(torch.relu, torch.zeros(1))]
    [0.0, 1.0, 0.0]
    >>> [t.item() for t in constants(lambda z: z.clamp(min=0).sqrt() + z.clamp(max=0) ** 2, torch.zeros(1))]
    [0.0, inf, 0.0]
    """
    if _of_torch(activation):
        return tuple(like.new_full((), number) for number in _of_chain(activation, like.dtype))  # type: ignore[return-value]
    tiny = torch.finfo(like.dtype).tiny
    steps = [0.0, *(sign * tiny**power for sign in (1, -1) for power in (0.5, 0.375))]
    at = torch.tensor(steps, dtype=like.dtype, device=like.device)
    value, back = vjp(lambda z: elementwise(activation, z), at)  # type: ignore[misc]
    (slope,) = back(torch.ones_like(at))
    return value[0], _limit(slope[1], slope[2]), _limit(slope[3], slope[4])


def _of_torch(activation: Activation) -> TypeGuard[Chain]:
    """Whether it is calls of torch alone, whose numbers may be looked at now."""
    fake = not traced() and torch._C._len_torch_dispatch_stack() > 0
    return isinstance(activation, Chain) and not activation.holds_tensors and not fake


@functools.lru_cache(64)
def _of_chain(chain: Chain, dtype: torch.dtype) -> tuple[float, float, float]:
    """`constants` of calls of torch alone, which are numbers that no argument moves."""
    with outside():
        value, plus, minus = constants(chain.__call__, torch.empty(0, dtype=dtype, device="cpu"))
        return value.item(), plus.item(), minus.item()


def at_zero(activation: Activation, like: Tensor) -> float | None:
    """The number sigma(0), of an ensemble the largest in size; None where it depends on what is traced.

    >>> at_zero(torch.sigmoid, torch.zeros(2, 3))
    0.5
    """
    if _of_torch(activation):
        return _of_chain(activation, like.dtype)[0]
    with outside():  # numbers of no argument: no graph is asked for them
        found = elementwise(activation, torch.zeros(1, dtype=like.dtype, device=like.device))
        known = debug_unwrap(found, recurse=True)
        return None if isinstance(known, FakeTensor) else max(known.flatten().tolist(), key=abs)


def sloped(activation: Activation, like: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """`constants`; ValueError where a slope at 0 is infinite."""
    value, plus, minus = constants(activation, like)
    if any(t is not None and bool(t.isinf().any()) for t in (values(plus), values(minus))):
        raise ValueError(
            f"{name}: the activation has an infinite slope at 0, expected finite ones: units start at 0, where no first-order "
            "gain is known; `growth.initialize` makes units without statistics"
        )
    return value, plus, minus


def _limit(near: Tensor, far: Tensor) -> Tensor:
    """The limit at 0 of slopes at two tiny steps, the smaller one first: by a logarithm they differ by a third."""
    a, b = near.abs(), far.abs()
    return torch.where(a < 0.8 * b, torch.zeros_like(near), torch.where(a > 1.25 * b, near.detach() * torch.inf, near))
