"""What was made for a key, the latest of them, by one thread at a time."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from linmaps.trees.graphs.tracing import LOCK

K = TypeVar("K")
V = TypeVar("V")
KEPT = 64  # the latest ones


class Latest(Generic[K, V]):
    """`get(key, make)`: what was made for a key, once."""

    def __init__(self) -> None:
        self._kept: collections.OrderedDict[K, V] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with LOCK:
            with self._lock:
                found = self._kept.get(key)
            if found is None:
                found = make()
                with self._lock:
                    self._kept[key] = found
                    while len(self._kept) > KEPT:
                        self._kept.popitem(last=False)
        return found
