"""Synchronous callers of asynchronous searches: the event loop they share, and how they leave it.

Every call is made in runs, one within another: a stream that is read is one, a search another. What
a thread waits for ends with whoever reads a stream around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from queue import SimpleQueue
from types import FrameType
from typing import Any, ParamSpec, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from vprm_search.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

# --- runs ----------------------------------------------------------------------------------------

_runs: ContextVar[tuple[int, ...]] = ContextVar("vprm_search_runs", default=(0,))
"""The numbers of the runs around the present call, the innermost last."""

_run_numbers = itertools.count(1)


def current_run() -> int:
    """Return the number of the innermost run of the present call, 0 outside any."""
    return _runs.get()[-1]


def new_run() -> int:
    """Return the number of a new run, to be entered with `in_run` and ended with `end_run`."""
    return next(_run_numbers)


@contextlib.contextmanager
def in_run(run: int) -> Iterator[None]:
    """Make the calls of a block belong to `run`: those of the tasks and threads it starts, too."""
    token = _runs.set((*_runs.get(), run))
    try:
        yield
    finally:
        _runs.reset(token)


# --- what threads wait for -----------------------------------------------------------------------

_waits: dict[int, list[Future[Any]]] = {}
"""By the number of a run: what its threads wait for."""

_GONE = "whoever read the stream has gone: it was closed or interrupted"
_left: set[int] = set()
"""The runs whose reader has gone, until they have ended: their threads wait for nothing more."""

_portal_lock = threading.Lock()
_Shared = tuple[BlockingPortal, asyncio.AbstractEventLoop, threading.Thread]
_shared: _Shared | None = None
_shared_pid = 0


def run_blocking(coroutine: Awaitable[T]) -> T:
    """Run `coroutine` to its end and return its result, from any thread.

    Also when the caller's thread runs an event loop, which then waits. All callers share one
    background loop, so that a client opened inside a policy or a scorer (a connection pool, a
    semaphore) stays with the loop it was made for; context variables come along. A caller in that
    loop itself, a model that searches inside a search, gets a loop of its own for the call.
    """
    _, loop, thread = _shared_portal()
    if threading.current_thread() is thread:
        with start_blocking_portal() as own:
            return _wait_for(own.call(asyncio.get_running_loop), coroutine)
    return _wait_for(loop, coroutine)


def blocking(call: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Return `call` for synchronous code: the same arguments, docstring and errors."""

    @functools.wraps(call)
    def wait_for(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_blocking(call(*args, **kwargs))

    wait_for.__name__ = wait_for.__name__.removeprefix("a")
    wait_for.__qualname__ = wait_for.__name__
    return wait_for


def _wait_for(loop: asyncio.AbstractEventLoop, coroutine: Awaitable[T]) -> T:
    async def outcome() -> tuple[T | None, BaseException | None]:
        try:
            return await coroutine, None
        except (KeyboardInterrupt, SystemExit) as error:  # must not end the loop that all share
            return None, error

    if not _left.isdisjoint(_runs.get()):
        if isinstance(coroutine, Coroutine):
            coroutine.close()
        raise CancelledError(_GONE)
    # a portal's own call goes to the loop and back twice: to start the task, and to end it
    running = asyncio.run_coroutine_threadsafe(outcome(), loop)
    with _waited_for(running):
        value, exit_asked = running.result()
    if exit_asked is not None:
        raise exit_asked
    return cast("T", value)


@contextlib.contextmanager
def _waited_for(running: Future[Any]) -> Iterator[None]:
    """Cancel what a block waits for when the reader of a run around it goes, or an error comes."""
    runs = _runs.get()
    waits = [_waits.setdefault(run, []) for run in runs]
    try:
        for known in waits:
            known.append(running)
        if not _left.isdisjoint(runs):
            raise CancelledError(_GONE)
        yield
    except BaseException:  # KeyboardInterrupt among them: leave no work behind
        running.cancel()
        raise
    finally:
        for known in waits:
            known.remove(running)


def forget_waits(run: int) -> None:
    """Forget a run that has ended."""
    _waits.pop(run, None)
    _left.discard(run)


def leave_waits(run: int) -> None:
    """Cancel what the threads of a run wait for. Safe in a signal handler: it takes no lock."""
    _left.add(run)
    for running in tuple(_waits.get(run, ())):
        running.cancel()


@contextlib.contextmanager
def left_by_interrupt(run: int) -> Iterator[None]:
    """Have an interrupt (Ctrl-C) within a block cancel what the threads of a run wait for.

    LangGraph joins the threads of its nodes before it lets an interrupt through. Only in the main
    thread, and where nobody else takes interrupts: as `asyncio.run` does it.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        leave_waits(run)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def cancellable(chunks: Iterator[T]) -> Iterator[T]:
    """Yield what `chunks` yields: `graph.stream(...)` of any graph, read synchronously.

    LangGraph joins the threads of a graph's nodes before anything below it hears that a stream was
    closed or interrupted. Read through this, whatever searches, verifiers and guided models below
    it wait for is cancelled first, and they ask for nothing more; a node of your own is joined as
    ever. `astream` needs none of it.

    Args:
        chunks: the stream, of which nothing has been read.

    Raises:
        InputError: `chunks` cannot be read or closed: it is one of `astream`, or made of a stream.
    """
    if not isinstance(chunks, Iterator) or not hasattr(chunks, "close"):
        raise InputError(
            f"cancellable reads what graph.stream(...) returns, and was given a value of the type "
            f"{type(chunks).__name__}; change the parts that it yields, and read astream without it"
        )
    return stream_of_run(chunks, new_run())


def stream_of_run(chunks: Iterator[T], run: int) -> Iterator[T]:
    """Yield what `chunks` yields in `run`; what its threads wait for ends with the reader."""
    end = object()
    try:
        with contextlib.closing(cast("Any", chunks)):
            while True:
                with in_run(run), left_by_interrupt(run):  # for the nodes, not for the reader
                    chunk = next(chunks, end)
                if chunk is end:
                    return
                try:
                    yield cast("T", chunk)
                except BaseException:  # closed: LangGraph joins the threads of its nodes
                    leave_waits(run)
                    raise
    finally:
        forget_waits(run)


def iterate_blocking(items: AsyncGenerator[T]) -> Iterator[T]:
    """Yield what `items` yields as it comes, in the loop of `run_blocking`, from any thread.

    When the caller stops early, `items` is cancelled. In that loop itself, which cannot run
    meanwhile, everything comes at the end.
    """
    portal, _, thread = _shared_portal()
    if threading.current_thread() is thread:
        yield from run_blocking(_all_of(items))
        return
    come: SimpleQueue[tuple[T, ...] | None] = SimpleQueue()

    async def pump() -> BaseException | None:
        try:
            async with contextlib.aclosing(items):
                async for item in items:
                    come.put((item,))
        except (KeyboardInterrupt, SystemExit) as error:  # must not end the loop that all share
            return error
        return None

    pumping = portal.start_task_soon(pump)
    pumping.add_done_callback(lambda _: come.put(None))
    with _waited_for(pumping):
        while (one := come.get()) is not None:
            yield one[0]
        if (exit_asked := pumping.result()) is not None:
            raise exit_asked


async def _all_of(items: AsyncGenerator[T]) -> list[T]:
    async with contextlib.aclosing(items):
        return [item async for item in items]


def _shared_portal() -> _Shared:
    """Return the portal of this process, its loop and its thread, which ends with the process."""
    global _shared, _shared_pid
    with _portal_lock:
        if _shared is None or _shared_pid != os.getpid():  # threads do not survive a fork
            ready: Future[tuple[BlockingPortal, asyncio.AbstractEventLoop]] = Future()
            thread = threading.Thread(
                target=anyio.run, args=(_serve, ready), name="vprm-search-loop", daemon=True
            )
            thread.start()
            _shared, _shared_pid = (*ready.result(), thread), os.getpid()
        return _shared


async def _serve(ready: Future[tuple[BlockingPortal, asyncio.AbstractEventLoop]]) -> None:
    async with BlockingPortal() as portal:
        ready.set_result((portal, asyncio.get_running_loop()))
        await portal.sleep_until_stopped()
