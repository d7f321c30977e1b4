"""What was made is kept for the next one who asks, as long as all of it together stays small."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
# no value takes more of the room than this, so that one odd set of labels does not drive out all others
_LARGEST_SHARE = 4


class BoundedCache(Generic[K, V]):
    """The values used last, as many as fit; threads may share it.

    Counting entries would not do: rows may each bring a thousand candidates of their own.

    Args:
        most_bytes: about what keys and values may take together. One that takes more than a quarter of it is not kept.
        size: about how many bytes a key and its value take.

    Attributes:
        used_bytes: what those that are kept take.
    """

    def __init__(self, most_bytes: int, size: Callable[[K, V], int]) -> None:
        self.most_bytes, self._size = most_bytes, size
        self.used_bytes = 0
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not there. Two threads may both make it; nobody waits for the other."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        value = make()
        size = self._size(key, value)
        if size > self.most_bytes // _LARGEST_SHARE:
            return value
        with self._lock:
            if key in self._kept:
                return self._kept[key][0]
            self._kept[key] = (value, size)
            self.used_bytes += size
            while self.used_bytes > self.most_bytes:
                _, (_, freed) = self._kept.popitem(last=False)
                self.used_bytes -= freed
        return value

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._kept.clear()
            self.used_bytes = 0
