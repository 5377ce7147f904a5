"""While torch traces a function, tensors have shapes and no numbers: is that so now, and what is done outside of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes

LOCK = threading.RLock()  # tracing, and forward mode, whose levels torch counts for the whole process and not by thread


def traced() -> bool:
    """Whether `compiled` or torch.compile makes a graph of what runs now.

    >>> traced()
    False
    """
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


@contextmanager
def outside() -> Iterator[None]:
    """What runs inside is computed now and is no part of a graph; it must not meet tensors of the graph.

    >>> with outside():
    ...     torch.ones(1).item()
    1.0
    """
    if not traced():
        yield
        return
    with _disable_current_modes():
        yield
