"""Data: one batch, or an iterable of batches, as `(x, target)` pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from fisher.checks.finiteness import finite
from linmaps.trees.mappings import is_mapping, plain

Batch = tuple[Any, Any]


def batches(data: Any, *, progress: bool = False, what: str = "batches") -> Iterator[Batch]:
    """Each batch of `data` as `(x, target)`; the target is None where data has none.

    data: a tensor (one batch of inputs), a tuple `(x, target)`, or any other iterable of those (list, DataLoader,
    generator), in any order and of any sizes; it is gone through once.  x may be a tree of tensors with a common batch axis
    in front: `((x1, x2), target)`, or `({"image": x1, "text": x2}, target)`.
    progress: a bar on standard error.  Raises TypeError for other data, ValueError if there is no batch.

    >>> import torch
    >>> [(x.shape[0], y) for x, y in batches([torch.zeros(3, 2), torch.zeros(1, 2)])]
    [(3, None), (1, None)]
    """
    if isinstance(data, (Tensor, tuple)):
        yield _pair(data, "data")
        return
    if isinstance(data, (str, bytes)) or is_mapping(data) or not isinstance(data, Iterable):
        raise TypeError(
            f"data: got {type(data).__name__}, expected a tensor, a tuple (x, target) or an iterable of those; of a dict "
            'give (data["x"], data["target"]), of a dataset torch.utils.data.DataLoader(dataset, batch_size=...)'
        )
    seen: Iterable[Any] = data
    if progress:
        from tqdm import tqdm

        seen = tqdm(data, desc=what, leave=False)
    count, first = 0, None
    for count, item in enumerate(seen, 1):
        name = f"data: batch {count - 1}"
        pair = _pair(tuple(item) if isinstance(item, list) else item, name)
        first = first if count > 1 else item
        _same_kind(first, item, name)
        yield pair
    if count == 0:
        raise ValueError(
            "data: got no batch, expected at least one; an exhausted generator gives none (make a list of it)"
        )


NO_EXAMPLE = "data: got no example, expected at least one; the mean over no example is not defined"


def _pair(item: Any, name: str) -> Batch:
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, tuple) and len(item) in (1, 2):
        return plain(item[0]), plain(item[1]) if len(item) == 2 else None
    if is_mapping(item):
        raise TypeError(
            f"{name}: got {type(item).__name__} with keys {sorted(map(str, item.keys()))[:8]}, expected a tensor x or a tuple "
            '(x, target); map ((batch["x"], batch["target"]) for batch in data), with a dict of inputs as x if f takes one'
        )
    raise TypeError(
        f"{name}: got {type(item).__name__} of length {len(item) if hasattr(item, '__len__') else '?'}, expected a "
        "tensor x or a tuple (x, target); several inputs go into one x: ((x1, x2), target)"
    )


def _same_kind(first: Any, item: Any, name: str) -> None:
    """Bare tensors of different kinds are no batches: most likely `[x, target]`."""
    if isinstance(first, Tensor) and isinstance(item, Tensor) and (first.ndim, first.dtype) != (item.ndim, item.dtype):
        raise ValueError(
            f"{name}: got a tensor of {item.ndim} axes, {item.dtype}, expected {first.ndim} axes, {first.dtype}, as in "
            "batch 0: a list holds batches; give one batch with targets as a tuple (x, target)"
        )


def check_finite(tree: Any, name: str) -> None:
    """Raise a ValueError that names the path if the data hold a NaN or an infinity.

    >>> import torch
    >>> check_finite(torch.zeros(2), "data: batch 0")
    """
    finite(tree, name, "clean or drop these examples (or pass check_finite=False)")
