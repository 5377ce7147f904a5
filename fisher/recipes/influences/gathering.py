"""Results of batches side by side, joined while they come."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad


def gathered(found: Iterable[dict[str, Tensor]], axis: int) -> dict[str, Tensor]:
    """The results of each layer side by side along an axis; what is shorter in a last axis behind it gets zeros there.

    They are joined by twos: small ones kept apart would each hold on to the memory around it, of gradients long gone.

    >>> import torch
    >>> gathered(iter([{"a": torch.ones(1, 2)}, {"a": torch.ones(1, 3)}]), 0)["a"]
    tensor([[1., 1., 0.],
            [1., 1., 1.]])
    """
    runs: list[tuple[int, dict[str, Tensor]]] = []  # how many of them, and these
    for run in found:
        count = 1
        while runs and runs[-1][0] == count:
            run, count = _joined([runs.pop()[1], run], axis), 2 * count
        runs.append((count, run))
    return _joined([run for _, run in runs], axis)


def _joined(runs: list[dict[str, Tensor]], axis: int) -> dict[str, Tensor]:
    return {name: _side_by_side([run[name] for run in runs], axis) for name in runs[0]}


def _side_by_side(ts: list[Tensor], axis: int) -> Tensor:
    if ts[0].ndim > axis + 1:
        longest = max(t.shape[-1] for t in ts)
        ts = [pad(t, (0, longest - t.shape[-1])) for t in ts]
    return torch.cat(ts, axis) if len(ts) > 1 else ts[0]
