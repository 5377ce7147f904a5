"""Data: one batch, or an iterable of batches, as `(x, target)` pairs, or with weights as `(x, target, weight)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fisher.checks.axes import batch_size
from fisher.checks.finiteness import finite
from fisher.checks.ranks import first_rank
from linmaps.checks import values
from linmaps.trees.mappings import is_mapping
from linmaps.trees.seals import sealed

Batch = tuple[Any, Any]
Weighted = tuple[Any, Any, Tensor | None]


def batches(data: Any, *, progress: bool = False, what: str = "batches", none: bool = False) -> Iterator[Batch]:
    """Each batch of `data` as `(x, target)`; the target is None where data has none.

    data: a tensor or a mapping (one batch of inputs), a tuple `(x, target)`, or any other iterable of those (list,
    DataLoader, generator), in any order and of any sizes; it is gone through once.  x may be a tree of tensors with a common
    batch axis in front: `((x1, (x2, x3)), target)`, or `({"image": x1, "text": x2}, target)`; what is no tensor in it (text,
    numbers, None) is for f alone, which gets all of it whatever examples it is asked for.
    progress: a bar on standard error, of several processes on that of the first.  Raises TypeError for other data, ValueError
    if there is no batch, unless there may be `none`, as in `weighted_batches`.

    >>> import torch
    >>> [(x.shape[0], y) for x, y in batches([torch.zeros(3, 2), torch.zeros(1, 2)])]
    [(3, None), (1, None)]
    """
    for x, target, _ in _items(data, progress, what, weights=False, none=none):
        yield x, target


def weighted_batches(
    data: Any, *, progress: bool = False, what: str = "batches", none: bool = False, name: str = "data"
) -> Iterator[Weighted]:
    """The same as `(x, target, weight)`, of items `(x, target, weight)` too; a weight is None where data has none.

    weight: floating or bool, >= 0, `[B]` or `[B, *positions]`; TypeError or ValueError for any other.
    none: an iterable that comes again may have no batch, as that of a rank without examples.
    name: what the data are called where they are refused.

    >>> import torch
    >>> [weight for _, _, weight in weighted_batches((torch.zeros(2, 3), None, torch.tensor([True, False])))]
    [tensor([1., 0.])]
    """
    return _items(data, progress, what, weights=True, none=none, name=name)


def _items(
    data: Any, progress: bool, what: str, weights: bool, none: bool = False, name: str = "data"
) -> Iterator[Weighted]:
    if one_batch(data):
        yield _parts(data, name, what, weights)
        return
    if isinstance(data, (str, bytes)) or hasattr(data, "__array__") or not isinstance(data, Iterable):
        sealed(data, name)  # arrays have words of their own
        raise TypeError(
            f"{name}: got {type(data).__name__}, expected a tensor, a mapping, a tuple (x, target) or an iterable of those; of "
            "a dataset give torch.utils.data.DataLoader(dataset, batch_size=...)"
        )
    seen: Iterable[Any] = data
    if progress and first_rank():
        from tqdm import tqdm

        seen = tqdm(data, desc=what, leave=False)
    count, first = 0, None
    for count, item in enumerate(seen, 1):
        where = f"{name}: batch {count - 1}"
        made = _parts(tuple(item) if isinstance(item, list) else item, where, what, weights)
        first = first if count > 1 else item
        _same_kind(first, item, where)
        yield made
    if count == 0 and not (none and iter(data) is not data):
        raise ValueError(
            f"{name}: got no batch, expected at least one; an exhausted generator gives none (make a list of it)"
        )


def one_batch(data: Any) -> bool:
    """Whether data are a single batch, not an iterable of them.

    >>> one_batch({"x": 1}), one_batch([1])
    (True, False)
    """
    return isinstance(data, (Tensor, tuple)) or is_mapping(data)


INSTEAD = "several inputs go into one x: ((x1, x2), target)"
NO_EXAMPLE = "data: got no example, expected at least one; the mean over no example is not defined"


def _parts(item: Any, name: str, what: str, weights: bool) -> Weighted:
    if isinstance(item, Tensor):
        return item, None, None
    if isinstance(item, tuple) and len(item) in (1, 2, 3):
        x, target, weight = (*item, None, None)[:3]
        if weight is not None and not weights:
            raise TypeError(
                f"{name}: got tuple of length 3, expected a tensor x, a mapping or a tuple (x, target): {what} takes no "
                f"weights; {INSTEAD}"
            )
        x, target = sealed(x, name), None if target is None else sealed(target, f"{name}: target")
        return x, target, None if weight is None else _weight(weight, x, f"{name}: weight")
    if is_mapping(item):
        return sealed(item, name), None, None
    sealed(item, name)
    raise TypeError(
        f"{name}: got {type(item).__name__} of length {len(item) if hasattr(item, '__len__') else '?'}, expected a tensor x, a "
        f"mapping or a tuple (x, target){' or (x, target, weight)' if weights else ''}; {INSTEAD}"
    )


def _weight(weight: Any, x: Any, name: str) -> Tensor:
    """A weight as a floating tensor with the examples in front, >= 0."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name}: got {type(weight).__name__}, expected a tensor [B] or [B, *positions]; {INSTEAD}")
    if weight.dtype != torch.bool and not weight.is_floating_point():
        raise TypeError(
            f"{name}: got dtype {weight.dtype}, expected a real floating dtype or bool, as numbers that count examples; of whole "
            f"numbers give weight.float(); {INSTEAD}"
        )
    size = batch_size(x)
    if not weight.ndim or len(weight) != size:
        raise ValueError(
            f"{name} has shape {tuple(weight.shape)}, expected [{size}] or [{size}, *positions], numbers for each of {size} "
            f"examples; {INSTEAD}"
        )
    found = weight.to(torch.get_default_dtype()) if weight.dtype == torch.bool else weight
    seen = values(found)
    if seen is not None and bool((seen < 0).any()):
        raise ValueError(
            f"{name}: got {seen[seen < 0][0].item()}, expected numbers >= 0; a weight 0 leaves an example out"
        )
    return found


def _same_kind(first: Any, item: Any, name: str) -> None:
    """Bare tensors of different kinds are no batches: most likely `[x, target]`; nor are some with and some without a target."""
    kinds = ["a mapping" if is_mapping(one) else "" for one in (first, item)]
    if kinds[0] != kinds[1]:
        got, before = (kind or type(one).__name__ for kind, one in zip(reversed(kinds), (item, first)))
        raise TypeError(f"{name}: got {got}, expected {before} as in batch 0")
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
