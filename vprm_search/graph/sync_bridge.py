"""Run a coroutine from synchronous code, also when the caller's thread runs an event loop.

All calls share one background loop, so that a client opened inside a policy or a scorer (a
connection pool, a semaphore) stays with the loop it was made for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _LoopThread:
    """An event loop in a daemon thread of its own."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._serve, name="vprm-search-loop", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []
        context = contextvars.copy_context()  # tracing and stream writers come along

        def start() -> None:
            task = self.loop.create_task(coroutine, context=context)
            tasks.append(task)
            task.add_done_callback(lambda ended: _pass_on(ended, done))

        self.loop.call_soon_threadsafe(start)
        try:
            return done.result()
        except BaseException:  # KeyboardInterrupt among them: leave no work behind
            self.loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
            raise


_shared: _LoopThread | None = None
_lock = threading.Lock()


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` to its end and return its result, from any thread."""
    bridge = _bridge()
    if threading.current_thread() is bridge.thread:  # a model that searches inside a search
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            context = contextvars.copy_context()
            return pool.submit(context.run, asyncio.run, coroutine).result()
    return bridge.run(coroutine)


def _bridge() -> _LoopThread:
    global _shared
    with _lock:
        if _shared is None or _shared.pid != os.getpid():  # threads do not survive a fork
            _shared = _LoopThread()
        return _shared


def _pass_on(task: asyncio.Task[T], done: concurrent.futures.Future[T]) -> None:
    if task.cancelled():
        done.cancel()
    elif error := task.exception():
        done.set_exception(error)
    else:
        done.set_result(task.result())
