"""Numbers of new units: drawn by a generator, given, or fixed and generic where `vmap` allows no drawing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from linmaps.numerics.draws import normal, uniform

Draw = Callable[..., Tensor]


def drawing(generator: torch.Generator | None, like: Tensor) -> Draw:
    """shape -> normal numbers of the generator, or, without one, a fixed generic array, another one at each call.

    The fixed numbers are sin(c n^2), n the place of the entry: no two rows or columns are alike, and `vmap` may map it.
    """
    calls = itertools.count(1)

    def draw(*shape: int) -> Tensor:
        if generator is not None:
            return normal(generator, shape, like.dtype).to(like.device)
        n = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64, device=like.device)
        phase = math.sqrt(next(calls) ** 2 + 1) * n * n
        array = torch.polar(torch.ones_like(phase), phase) if like.is_complex() else phase.sin()
        return array.to(like.dtype).reshape(shape)

    return draw


def standard(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None, draws: Tensor | None, *, flat: bool = False
) -> Tensor:
    """Numbers of mean 0 and variance 1, normal or (flat) uniform, from a generator; or `draws`, checked."""
    if draws is not None:
        check_draws(draws, shape)
        return draws.to(like)
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator: got {generator!r}, expected a torch.Generator (torch.Generator().manual_seed(seed)), or draws, "
            f"numbers {shape} of mean 0 and variance 1"
        )
    numbers = uniform(generator, shape, 3**0.5, like.dtype) if flat else normal(generator, shape, like.dtype)
    return numbers.to(like)


def check_draws(draws: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless draws is a tensor of that shape."""
    if not isinstance(draws, Tensor) or tuple(draws.shape) != shape:
        got = tuple(draws.shape) if isinstance(draws, Tensor) else type(draws).__name__
        raise ValueError(f"draws: got {got}, expected numbers {shape} of mean 0 and variance 1")


def in_rows(
    k: int, total: int, like: Tensor, generator: torch.Generator | None, draws: Tensor | None, owner: object, each: str
) -> Tensor:
    """Standard normal numbers `[k, total]` of the generator, or `draws` in that shape; each: what a row holds, in words."""
    if draws is None:
        if generator is None:
            raise ValueError(
                "generator: got None, expected a torch.Generator for random numbers; or give the numbers as draws= "
                f"[{k}, {total}], to map over an ensemble"
            )
        draws = torch.randn(k, total, generator=generator, dtype=like.dtype, device=generator.device)
    if tuple(draws.shape) != (k, total):
        raise ValueError(f"{owner}: draws have shape {tuple(draws.shape)}, expected {(k, total)}: {each}")
    return draws
