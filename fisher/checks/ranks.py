"""Which of several processes this is."""

from __future__ import annotations

import torch.distributed as dist


def first_rank() -> bool:
    """Whether this is the one process, or the first of several: that which shows bars.

    >>> first_rank()
    True
    """
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
