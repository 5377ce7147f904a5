"""Several passes over one stream of batches: the same examples in the same order, or an error.  B examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fisher.recipes.influences.examples import Named
from linmaps import trees
from linmaps.checks import values

Mark = list[
    tuple[tuple[int, ...], Tensor, Tensor]
]  # of each tensor: its shape, a sum that its order changes, and its size


class Passes:
    """Called, a pass over what `make` gives; from the second on a ValueError where a batch is not that of the first.

    begun: the first of them, where it was made already.

    >>> import torch
    >>> ways = iter([torch.arange(3.0), torch.arange(2.0, -1.0, -1.0)])
    >>> again = Passes(lambda: iter([("data: batch 0", next(ways))]))
    >>> [list(again()), list(again())]
    Traceback (most recent call last):
    ValueError: data: batch 0: of pass 2 holds other examples, or the same in another order, than of pass 1, ...
    """

    def __init__(self, make: Callable[[], Iterator[Named]], begun: Iterator[Named] | None = None) -> None:
        self.make, self.begun = make, begun
        self.first: list[Mark] | None = None
        self.number = 0

    def __call__(self) -> Iterator[Named]:
        self.number += 1
        before, found = self.first, list[Mark]()
        stream, self.begun = self.begun or self.make(), None
        for where, part in stream:
            found.append(mark(part))
            if before is not None and not same(found[-1], before[len(found) - 1 : len(found)]):
                raise self._other(where)
            yield where, part
        if before is not None and len(found) < len(before):
            raise self._other(f"data: batch {len(found)}")
        self.first = found if before is None else before

    def _other(self, where: str) -> ValueError:
        return ValueError(
            f"{where}: of pass {self.number} holds other examples, or the same in another order, than of pass 1, expected the "
            "same in each, as an example is a column of the result; give a loader with shuffle=False and without random "
            "augmentation, list(loader), or chunk_size=None, which takes one pass"
        )


def mark(part: Any) -> Mark:
    """What is kept of a batch; of tensors without values nothing."""
    found = [(t, values(t)) for t in trees.leaves(part) if isinstance(t, Tensor)]
    return [(tuple(t.shape), *_sums(seen)) for t, seen in found if seen is not None]


def same(one: Mark, others: list[Mark]) -> bool:
    """Whether there is another, with the same tensors to rounding."""
    if not others or len(one) != len(others[0]):
        return False
    pairs = zip(one, others[0])
    return all(s == t and bool((a - b).abs() <= 1e-12 * n) for (s, a, n), (t, b, _) in pairs)


def _sums(t: Tensor) -> tuple[Tensor, Tensor]:
    flat = (torch.view_as_real(t) if t.is_complex() else t).reshape(-1)
    wide = flat.to(torch.float32 if t.device.type == "mps" else torch.float64)
    ramp = torch.cos(1.7 * torch.arange(len(wide), device=wide.device, dtype=wide.dtype))
    return wide @ ramp, wide.abs().sum()
