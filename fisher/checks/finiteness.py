"""Finite numbers in data, params and results, or an error that names the path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.checks import values
from linmaps.trees import path_str

OF_LOSSES = (
    "it overflows at these params and data, or divides 0 by 0, as a mean over no target that counts does: give reduction='none' "
    "(or pass check_finite=False)"
)


def finite(tree: Any, name: str, cure: str) -> None:
    """Raise a ValueError that names the path if a floating tensor of the tree has a NaN or an infinity.

    >>> import torch
    >>> finite({"x": torch.tensor([0.0, float("nan")])}, "data", "drop the row")
    Traceback (most recent call last):
    ValueError: data: x: got 1 of 2 entries NaN or infinite, expected finite numbers; drop the row
    """
    given = [t for t in trees.leaves(tree) if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())]
    if _sums_are_finite([found for t in given if (found := values(t)) is not None]):
        return  # as nearly always
    for path, t in zip(trees.paths(tree), trees.leaves(tree)):
        found = values(t) if any(t is s for s in given) else None
        bad = ~found.isfinite() if found is not None else torch.zeros(0, dtype=torch.bool)
        if count := int(bad.sum()):
            where = f"{name}: {path_str(path)}" if path else name
            raise ValueError(
                f"{where}: got {count} of {bad.numel()} entries NaN or infinite, expected finite numbers; {cure}"
            )


def _sums_are_finite(found: list[Tensor]) -> bool:
    """Whether no entry is NaN or infinite, by a sum that may overflow without one; the device is waited for once."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for t in found:
        kinds.setdefault((t.dtype, t.device), []).append(t.sum())
    return all(bool(torch.stack(sums).sum().isfinite()) for sums in kinds.values())
