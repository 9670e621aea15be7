"""A bounded memory of values by key."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The last `most` values that were put or asked for, by key; safe from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[K, V] = {}  # the one used longest ago first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        """Return the value of `key` and count it as used; None if there is none."""
        with self._lock:
            if key not in self._values:
                return None
            value = self._values[key] = self._values.pop(key)
            return value

    def put(self, key: K, entry: V) -> None:
        """Remember a value; the one used longest ago makes room for it."""
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = entry
            if len(self._values) > self._most:
                del self._values[next(iter(self._values))]

    def forget(self, key: K) -> None:
        """Keep the value of `key` no longer, if there is one."""
        with self._lock:
            self._values.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """Return all that is kept, the one used longest ago first."""
        with self._lock:
            return list(self._values.items())
