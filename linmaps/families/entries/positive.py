"""Numbers >= 0 from free parameters, by several functions, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from linmaps.checks import Shape
from linmaps.numerics.ranges import relu

SMALLEST = 0.05  # of the init's largest entry: the smallest, since a vanishing one would hardly move
Positive = Literal["softplus", "relu", "square", "exp"]
# free parameter -> entry >= 0, and back; softplus is scaled by the entries' size, so that none starts in its flat tail
METHODS: dict[Positive, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "softplus": (lambda w, size: size * F.softplus(w), lambda W, size: W / size + torch.log(-torch.expm1(-W / size))),
    "relu": (lambda w, size: relu(w), lambda W, size: W),
    "square": (lambda w, size: w.square(), lambda W, size: W.sqrt()),
    "exp": (lambda w, size: w.exp(), lambda W, size: W.log()),
}


def draw(generator: torch.Generator, shape: Shape, bound: float, dtype: torch.dtype) -> Tensor:
    """Entries from U(bound / 20, bound)."""
    u = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    return bound * (SMALLEST + (1 - SMALLEST) * u)


def steady(n: int) -> float:
    """The bound of `draw` at which layers of n inputs keep the mean square of features that they make, on average.

    Mean squares v and mean products c become n q v + n (n - 1) mu^2 c and n mu^2 v + n (n - 1) mu^2 c.

    >>> round(steady(1000) * 0.525 * 1000, 5)  # the mean is kept nearly
    1.0
    """
    mu, q = (1 + SMALLEST) / 2, (1 - SMALLEST) ** 2 / 12 + ((1 + SMALLEST) / 2) ** 2
    a, b, c = n * q, n * (n - 1) * mu**2, n * mu**2
    largest = (a + b + math.sqrt((a - b) ** 2 + 4 * b * c)) / 2
    return 1 / math.sqrt(largest)


def raised(W: Tensor, method: Positive, size: float) -> Tensor:
    """The free parameter of W >= 0."""
    return METHODS[method][1](W, size)


def floor(method: Positive, size: float) -> float:
    """The least entry that `from_matrix` aims at: not 0 where the method reaches it at infinity, or never leaves it."""
    return 0.0 if method == "relu" else 1e-6 * size
