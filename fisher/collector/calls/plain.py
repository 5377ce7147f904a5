"""Plain calls: they write into nothing that f closes over, keep nothing by hooks, and transforms have rules for them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fisher.collector.calls.chains import ELEMENTWISE

_NAMES = """
    add sub mul div matmul mm bmm reshape view flatten unflatten permute transpose movedim swapaxes t squeeze unsqueeze expand
    mean sum cat stack contiguous size dim numel is_floating_point float double __add__ __radd__ __sub__ __rsub__ __mul__
    __rmul__ __truediv__ __neg__ __matmul__ __rmatmul__ addmm
""".split()  # noqa: SIM905
_GETTERS = ("T", "mT", "shape", "ndim", "dtype", "device")
PLAIN: frozenset[Any] = frozenset(
    {
        *(func for name, func in ELEMENTWISE.items() if "rrelu" not in name),  # which is random
        *(f for space in (torch, Tensor) for n in _NAMES if (f := getattr(space, n, None)) is not None),
        *(getattr(Tensor, name).__get__ for name in _GETTERS),
        *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
        *(F.layer_norm, F.group_norm, F.softmax, F.log_softmax, torch.softmax, F.embedding),
    }
)


class Unknown(BaseException):
    """A call that is not known to be plain; no error, which f may catch."""
