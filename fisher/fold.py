"""Means over all examples seen, and over time, of trees and of matrices."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from linmaps import trees


@trees.record(static=("dtype", "dtypes"))
class Mean:
    """The mean of a tree over the examples seen so far, and how many they are: `Mean()` has seen none.

    A pytree of tensors, without state outside: saved in the middle of a pass and loaded, it goes on as if nothing had
    happened; parts of the data may be folded apart and merged.  dtype: of the running mean, at least
    (`Mean(dtype=torch.float64)` for float32 trees); `value()` is in the tree's own.

    >>> import torch
    >>> mean = Mean().add({"a": torch.tensor(1.0)}, 1).add({"a": torch.tensor(4.0)}, 2)
    >>> mean.value(), mean.count
    ({'a': tensor(3.)}, tensor(3., dtype=torch.float64))
    """

    mean: Any = None
    count: Tensor = dataclasses.field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    dtype: torch.dtype | None = None
    dtypes: tuple[torch.dtype, ...] = ()

    def add(self, tree: Any, n: float | Tensor) -> Mean:
        """With n more examples, over which the mean is `tree` (a tree of floating tensors, a PMat).

        Raises TypeError for other leaves, ValueError for n < 0 and for a tree of another structure, shape or dtype.
        """
        if not isinstance(n, Tensor) and not n >= 0:
            raise ValueError(f"n: got {n}, expected a number of examples >= 0")
        if not isinstance(n, Tensor) and n == 0:
            return self
        flat, treedef = trees.flatten(tree)
        for path, t in zip(trees.paths(tree), flat):
            if not isinstance(t, Tensor) or not (t.is_floating_point() or t.is_complex()):
                got = t.dtype if isinstance(t, Tensor) else type(t).__name__
                raise TypeError(
                    f"{trees.path_str(path)}: got {got}, expected a floating tensor; use .to(torch.float64)"
                )
        wide = [t if self.dtype is None else t.to(torch.promote_types(t.dtype, self.dtype)) for t in flat]
        device = flat[0].device if flat else None
        count = torch.as_tensor(n, dtype=torch.float64, device=device)
        return self.merge(Mean(treedef.unflatten(wide), count, self.dtype, tuple(t.dtype for t in flat)))

    def merge(self, other: Mean) -> Mean:
        """The mean over the examples of both: m + n' / (n + n') (m' - m).  Associative up to rounding."""
        if self.dtype != other.dtype:
            raise ValueError(f"merge: got Mean(dtype={other.dtype}), expected Mean(dtype={self.dtype}); use one dtype")
        if self.mean is None or other.mean is None:
            return other if self.mean is None else self
        _check_alike(other.mean, self.mean, "Mean: the new tree")
        if self.dtypes != other.dtypes:
            raise ValueError(
                f"Mean: the new tree has dtypes {_names(other.dtypes)}, expected {_names(self.dtypes)}; convert it first"
            )
        count = self.count + other.count
        share = other.count / torch.where(count > 0, count, 1.0)
        mean = trees.map(lambda m, new: m + share.to(m.dtype) * (new - m), self.mean, other.mean)
        return Mean(mean, count, self.dtype, self.dtypes)

    def value(self) -> Any:
        """The mean, in the tree's own dtypes.  Raises ValueError if no example was seen."""
        if self.mean is None:
            raise ValueError("Mean: has seen no example, expected at least one; add(tree, n) first")
        flat, treedef = trees.flatten(self.mean)
        return treedef.unflatten([t.to(dtype) for t, dtype in zip(flat, self.dtypes)])


def _check_alike(new: Any, old: Any, name: str) -> None:
    trees.check_like(new, old, name)
    if trees.flatten(new)[1] != trees.flatten(old)[1]:
        raise ValueError(
            f"{name}: is {type(new).__name__} with other settings, expected those of the first; make all matrices with one "
            "LayerCollection: fim(..., layers=layers)"
        )


def _names(dtypes: tuple[torch.dtype, ...]) -> list[str]:
    return sorted({str(d) for d in dtypes})


def ema(old: Any, new: Any, decay: float | Tensor) -> Any:
    """Exponential moving average of trees or PMats: decay old + (1 - decay) new.

    decay: in [0, 1], a number or a scalar tensor.  Raises ValueError for other numbers and for trees that do not match.

    >>> import torch
    >>> ema({"a": torch.tensor(1.0)}, {"a": torch.tensor(3.0)}, 0.75)
    {'a': tensor(1.5000)}
    """
    if not isinstance(decay, Tensor) and not 0 <= decay <= 1:
        raise ValueError(f"decay: got {decay}, expected a number in [0, 1]")
    _check_alike(new, old, "ema: the new tree")
    weight = lambda t: decay.to(t.dtype) if isinstance(decay, Tensor) else decay
    return trees.map(lambda s, t: t + weight(t) * (s - t), old, new)
