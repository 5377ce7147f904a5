"""Forward mode that agrees with reverse mode where torch's two modes differ: the padding row of an embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.plain import plainly


def jvp(fn: Callable[..., Tensor], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """`torch.func.jvp`, in which the row `padding_idx` of an embedding is a constant, as it is in reverse mode.

    >>> import torch
    >>> table, ones = torch.zeros(2, 1), torch.ones(2, 1)
    >>> look = lambda w: torch.nn.functional.embedding(torch.tensor([0, 1]), w, padding_idx=1)
    >>> jvp(look, (table,), (ones,))[1].T, torch.func.jvp(look, (table,), (ones,))[1].T
    (tensor([[1., 0.]]), tensor([[1., 1.]]))
    """

    y, tangent = torch.func.jvp(plainly(fn), primals, tangents)[:2]
    return y, tangent
