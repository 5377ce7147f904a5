"""Finite numbers in data, params and results, or an error that names the path."""

from __future__ import annotations

from typing import Any

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
    for path, t in zip(trees.paths(tree), trees.leaves(tree)):
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()):
            found = values(t)
            if found is None or bool(found.sum().isfinite()):
                continue
            bad = ~found.isfinite()
            count = int(bad.sum())
            if count:
                where = f"{name}: {path_str(path)}" if path else name
                raise ValueError(
                    f"{where}: got {count} of {bad.numel()} entries NaN or infinite, expected finite numbers; {cure}"
                )
