"""Concurrent calls made into shared work: who calls while the engine is busy is served together.

One worker thread computes. A call that finds it idle starts at once; calls that arrive meanwhile
wait and are then computed together. When the last turn served several callers, the next one waits a
few milliseconds for as many to come back, since searches in step tend to.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Q = TypeVar("Q")
R = TypeVar("R")


class AbandonedError(Exception):
    """Nobody waits any more for what is being computed."""


@dataclass(slots=True)
class _Call(Generic[Q, R]):
    request: Q
    future: Future[R]
    abandoned: bool = False


class CallQueue(Generic[Q, R]):
    """Runs `compute` over the requests of many callers, from any thread or event loop.

    `compute` takes requests and yields `(index, result)` for each, in any order, as soon as it has
    it. If it fails, every request it has not answered is computed again alone, so that a failure
    reaches only its own caller. A call that is abandoned before its turn is left out; later it is
    computed for nothing, unless `compute` asks `is_abandoned` and gives up. With `window_s` 0
    every call is computed alone.
    """

    def __init__(
        self, compute: Callable[[Sequence[Q]], Iterator[tuple[int, R]]], window_s: float
    ) -> None:
        self._compute = compute
        self._window_s = window_s
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._waiting: deque[_Call[Q, R]] = deque()
        self._changed = threading.Condition()
        self._served = 1  # callers of the last turn
        self._serving: Sequence[_Call[Q, R]] = ()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vprm-scorer")

    def submit(self, request: Q) -> Future[R]:
        """Queue a request; its future is resolved by the worker."""
        if self._pid != os.getpid():  # threads do not survive a fork
            self._start()
        call: _Call[Q, R] = _Call(request, Future())
        with self._changed:
            self._waiting.append(call)
            self._changed.notify()
        self._worker.submit(self._turn)
        return call.future

    def abandon(self, future: Future[R]) -> None:
        """Note that nobody waits for this call any more."""
        if not future.cancel():  # its turn has come
            for call in self._serving:
                call.abandoned |= call.future is future

    def is_abandoned(self) -> bool:
        """Tell whether nobody waits for what is being computed now."""
        return bool(self._serving) and all(call.abandoned for call in self._serving)

    def _turn(self) -> None:
        """Serve what is waiting; nothing if an earlier turn did."""
        calls = self._take()
        if not calls:
            return
        self._served = len(calls)
        error = self._serve(calls)
        if error is None:
            return
        for call in calls:
            if call.future.done():
                continue
            failed = self._serve([call]) if len(calls) > 1 else error
            if failed is not None:
                call.future.set_exception(failed)

    def _take(self) -> list[_Call[Q, R]]:
        with self._changed:
            if self._window_s and self._waiting:
                self._gather()
            count = len(self._waiting) if self._window_s else min(1, len(self._waiting))
            calls = [self._waiting.popleft() for _ in range(count)]
        return [call for call in calls if call.future.set_running_or_notify_cancel()]

    def _gather(self) -> None:
        """Wait until as many callers are there as the last time, but not for long."""
        deadline = time.monotonic() + self._window_s
        while len(self._waiting) < self._served:
            left = deadline - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _serve(self, calls: Sequence[_Call[Q, R]]) -> BaseException | None:
        """Compute calls together; return what went wrong, if anything."""
        self._serving = calls
        try:
            for index, result in self._compute([call.request for call in calls]):
                calls[index].future.set_result(result)
        except BaseException as error:  # it belongs to a caller, not to the worker
            return error
        return None
