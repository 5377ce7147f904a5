"""Where the examples are: the batch axis of x and of each layer's output, and the format `[B, S, F]`.

B batch, S shared (positions), F features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.trees.keys import path_str
from linmaps.trees.seals import unsealed


def batch_size(x: Any) -> int:
    """Number of examples: the common leading size of x's tensors.

    >>> import torch
    >>> batch_size(torch.zeros(5, 3))
    5
    """
    sizes = {tuple(t.shape[:1]) for t in trees.leaves(x) if isinstance(t, Tensor)}
    if not sizes:
        raise TypeError(
            f"x: got {type(unsealed(x)).__name__} without a tensor, expected tensors with the examples in front"
        )
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"x: leading sizes {sorted(sizes)}, expected one common batch axis in front; stack the examples"
        )
    return sizes.pop()[0]


OUTPUT = "f(params, x)"


def one_shape(shapes: Iterable[tuple[int, ...]], name: str) -> None:
    """ValueError where batches have several shapes behind the examples."""
    found = sorted({tuple(shape[1:]) for shape in shapes})
    if len(found) > 1:
        got = " and ".join(f"[{', '.join(map(str, ('B', *sizes)))}]" for sizes in found)
        raise ValueError(
            f"{name}: got batches of shapes {got}, expected one shape behind the examples, as the batches are taken together; "
            "pad all examples to one length, or give one batch at a time"
        )


def alike(parts: Sequence[Any]) -> bool:
    """Whether the tensors of several batches have one shape each behind the examples."""
    return all(len({t.shape[1:] for t in tensors}) == 1 for tensors in zip(*map(trees.leaves, parts)))


def together(parts: Sequence[Any], name: str = "x") -> Any:
    """The tensors of several batches as those of one.

    >>> import torch
    >>> together([torch.zeros(2, 3), torch.ones(1, 3)]).shape
    torch.Size([3, 3])
    >>> together([{"ids": torch.zeros(2, 3)}, {"ids": torch.ones(1, 4)}])
    Traceback (most recent call last):
    ValueError: x: ids: got batches of shapes [B, 3] and [B, 4], expected one shape behind the examples, ...
    """
    if len(parts) == 1:
        return parts[0]
    for path, *tensors in zip(trees.paths(parts[0]), *map(trees.leaves, parts)):
        one_shape([tuple(t.shape) for t in tensors], f"{name}: {path_str(path)}" if path else name)
    return trees.map(lambda *ts: torch.cat(ts), *parts)


INNER = -1  # the leading axis is [S B]: positions outside, examples inside


def batch_axes(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Where the examples may be in a tensor `[..., F]`: an axis, or `INNER`; the most usual first."""
    if batch == 0:
        return (0,)
    outer = (0,) if shape[0] % batch == 0 and shape[0] else ()
    axes = tuple(k for k in range(1, len(shape) - 1) if shape[k] == batch)
    return outer + axes + ((INNER,) if outer and shape[0] > batch else ())


def rows(t: Tensor, batch: int, axis: int = 0) -> Tensor:
    """`[B, ..., F]`, `[B S, F]`, `[T, B, F]` (axis 1) or `[T B, F]` (INNER) as `[B, S, F]`."""
    if batch == 0 or t.shape[-1] == 0:  # S cannot be inferred from nothing
        shared = math.prod(t.shape[1:-1]) if batch == 0 else math.prod(t.shape[:-1]) // batch
        return t.reshape(batch, max(1, shared), t.shape[-1])
    if axis == INNER:
        t = t.reshape(-1, batch, *t.shape[1:]).transpose(0, 1)
    elif axis:
        t = t.transpose(0, axis)
    return t.reshape(batch, -1, t.shape[-1])
