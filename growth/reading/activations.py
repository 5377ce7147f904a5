"""Activations: elementwise maps, at values and at 0, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vjp

Activation = Callable[[Tensor], Tensor]


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


def applied(activation: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    """(activation(z), its derivative) of a z of any shape."""
    flat = z.flatten()
    value, back = vjp(lambda t: elementwise(activation, t), flat)  # type: ignore[misc]
    return value.reshape(z.shape), back(torch.ones_like(value))[0].reshape(z.shape)


def constants(activation: Activation, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigma(0) and the one-sided derivatives of an elementwise map at 0, as scalar tensors of the dtype of `like`.

    >>> import torch
    >>> [t.item() for t in constants(torch.relu, torch.zeros(1))]
    [0.0, 1.0, 0.0]
    """
    tiny = torch.finfo(like.dtype).tiny ** 0.5
    at = torch.tensor([0.0, tiny, -tiny], dtype=like.dtype, device=like.device)
    value, back = vjp(lambda z: elementwise(activation, z), at)  # type: ignore[misc]
    (slope,) = back(torch.ones_like(at))
    return value[0], slope[1], slope[2]
