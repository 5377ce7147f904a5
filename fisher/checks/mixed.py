"""Mixed dtypes and devices, said by name where torch refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from linmaps import trees
from linmaps.checks import alike
from linmaps.trees import path_str

MIXED = ("dtype", "scalar type", "device", "data type", "Input type", "same type")  # what torch says of mixed tensors


@contextmanager
def explained(like: Any, like_name: str = "params", **others: Any) -> Iterator[None]:
    """torch's refusal of mixed dtypes or devices, as a TypeError that names both.

    f may convert its inputs itself, so that they are compared only where torch refuses.

    >>> import torch
    >>> with explained(torch.ones(2, 2), x=torch.ones(2, 2).double()):
    ...     torch.ones(2, 2) @ torch.ones(2, 2).double()
    Traceback (most recent call last):
    TypeError: x: got torch.float64, expected torch.float32 as params; convert one with .to(...)
    """
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in MIXED):
            raise
        try:
            for name, tree in others.items():
                alike(tree, name, like, like_name)
            uniform(like, like_name)
        except TypeError as mixed:
            raise mixed from error
        raise


def uniform(params: Any, name: str = "params") -> None:
    """Raise a TypeError that names two leaves unless all floating leaves have one dtype and device."""
    flat = [(p, t) for p, t in zip(trees.paths(params), trees.leaves(params)) if isinstance(t, Tensor)]
    if flat:
        first, other = flat[0][1], f"{path_str(flat[0][0])} of {name}"
        alike(params, name, first, other)
