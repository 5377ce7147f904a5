"""Data: one batch, or a re-iterable of batches, as `(x, target)` pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from fisher.check import finite

Batch = tuple[Any, Any]


def batches(data: Any, *, progress: bool = False, what: str = "batches") -> Iterator[Batch]:
    """Each batch of `data` as `(x, target)`; the target is None where data has none.

    data: a tensor (one batch of inputs), a tuple `(x, target)`, or any other iterable (list, DataLoader) of those.
    progress: a bar on standard error.

    >>> import torch
    >>> [(x.shape[0], y) for x, y in batches([torch.zeros(3, 2), torch.zeros(1, 2)])]
    [(3, None), (1, None)]
    """
    if isinstance(data, (Tensor, tuple)):
        yield _pair(data, "data")
        return
    if isinstance(data, dict) or not isinstance(data, Iterable):
        raise TypeError(
            f"data: got {type(data).__name__}, expected a tensor, a tuple (x, target) or an iterable of those"
        )
    seen: Iterable[Any] = data
    if progress:
        from tqdm import tqdm

        seen = tqdm(data, desc=what, leave=False)
    count = 0
    for count, item in enumerate(seen, 1):
        yield _pair(tuple(item) if isinstance(item, list) else item, f"data: batch {count - 1}")
    if count == 0:
        raise ValueError(
            "data: got no batch, expected at least one; an exhausted generator gives none (make a list of it)"
        )


def _pair(item: Any, name: str) -> Batch:
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, tuple) and len(item) in (1, 2):
        return item[0], item[1] if len(item) == 2 else None
    raise TypeError(
        f"{name}: got {type(item).__name__} of length {len(item) if hasattr(item, '__len__') else '?'}, expected a "
        "tensor x or a tuple (x, target)"
    )


def check_finite(tree: Any, name: str) -> None:
    """Raise a ValueError that names the path if the data hold a NaN or an infinity."""
    finite(tree, name, "clean or drop these examples (or pass check_finite=False)")
