"""An event loop whose clock jumps to the next timer instead of waiting for it.

Whatever only waits with `asyncio` (sleeps, timeouts, `asyncio.wait`) takes no real time and exactly
the virtual time it should; computing takes real time and no virtual time. So the critical path of
any coroutine can be measured, whoever wrote it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Clock(selectors.DefaultSelector):
    """A selector that moves a clock forward where it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # only a thread or a socket can wake the loop: wait for it really
            return super().select(None)
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, in seconds from 0."""

    def __init__(self) -> None:
        self._virtual = _Clock()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual time."""
        return self._virtual.now


def run_virtual(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """Run a coroutine to its end; return its result and the virtual seconds it took."""
    loop = VirtualLoop()
    try:
        result = loop.run_until_complete(work)
        return result, loop.time()
    finally:
        loop.close()
