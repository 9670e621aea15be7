"""What lives in one process between the rounds of its searches, and may be lost with it.

Live trees, calls to the policy that outlive a round, which rounds a scorer has seen, and the event
loop that synchronous callers share. Nothing here is part of a search's state: another process that
takes a search over builds all of it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType
from typing import Any, ParamSpec, TypeVar, cast
from weakref import WeakValueDictionary

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from vprm_search.search.plan import Expand
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, Policy, Proposal, ProposeRequest

P = ParamSpec("P")
T = TypeVar("T")
RecordTable = dict[str, Any]

_KEPT_NODES = 50_000
_KNOWN_SEARCHES = 4096
_GATHER_S = 0.002
"""Replies that come within this time of the first one are taken together, in seconds."""

_GRACE_S = 0.5
"""Seconds for which a policy that keeps time itself may hand over what it has."""

OUT_OF_TIME = "cut by budget: the search's seconds were over before the policy had answered"


# --- live trees ----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Kept:
    """A tree, the table it was taken for, the records that changed, what of them is written.

    `merged` is the table that they make, None until the reducer has made it.
    """

    tree: SearchTree
    table: RecordTable
    records: RecordTable
    update: RecordTable
    merged: RecordTable | None

    def fits(self, table: RecordTable) -> bool:
        """Tell whether this is the tree of `table`: at once if the reducer was seen to make it."""
        return table is self.merged or table == {**self.table, **self.records}


_updates: WeakValueDictionary[int, _Kept] = WeakValueDictionary()
"""By the identity of an update: the kept tree whose update it is."""


def merged_by_tree(known: RecordTable, update: RecordTable) -> RecordTable | None:
    """Return what the state's reducer makes of `known` and `update`, None if that is to be found.

    A live tree that was taken for `known` has joined the records of `update` already.
    """
    kept = _updates.get(id(update))
    if kept is None or kept.update is not update or kept.table is not known:
        return None
    kept.merged = {**known, **kept.records}
    return kept.merged


ENDS = ("status", "reason", "cause", "merged_into")
"""The fields of a record that say how a path ended. They are one word, and joined as one."""


def _news(known: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record that a join with what is known needs; its id is its key."""
    new = dict(record)
    for name, value in known.items():
        if name in new and new[name] == value:
            del new[name]
    new.pop("id", None)
    if known and not new.keys().isdisjoint(ENDS):
        new |= {name: record[name] for name in ENDS if name in record}
    return new


class LiveTrees:
    """The last used trees, up to 50,000 nodes in all, so that none is built twice.

    A tree is only ever used for a state whose records equal those it was made of, so nothing
    depends on this memory: after a restart, a fork or an edit of the state the tree is built anew.
    Safe to use from several threads.
    """

    def __init__(self, read: Callable[[Mapping[str, Any]], SearchTree]) -> None:
        """Make an empty memory; `read` builds the tree of a state that is not in it."""
        self._read = read
        self._trees: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, state: Mapping[str, Any], thread: str) -> SearchTree:
        """Return the tree of `state` for the caller alone, who may change it.

        `thread` tells equal searches of several conversations apart.
        """
        with self._lock:
            kept = self._trees.pop(_key(state, thread), None)
        if (
            kept is not None
            and kept.tree.problem.to_json() == state.get("search_problem")
            and kept.tree.run_seed == state.get("search_run_seed")
            and kept.fits(state.get("search_nodes") or {})
        ):
            return kept.tree
        return self._read(state)

    def give(
        self, state: Mapping[str, Any], thread: str, records: RecordTable, tree: SearchTree
    ) -> RecordTable:
        """Keep `tree` for the state that the returned update will make of `state`.

        It is what `records` hold and the state does not: a step's text is stored once, not again
        with its score and with its end.
        """
        table = state.get("search_nodes") or {}
        update = {
            node: new
            for node, record in records.items()
            if (new := _news(table.get(node, {}), record))
        }
        kept = _Kept(tree, table, records, update, None if update else table)
        key = _key(state, thread)
        with self._lock:
            self._trees.pop(key, None)
            _updates[id(update)] = self._trees[key] = kept
            spare = sum(len(one.tree) for one in self._trees.values()) - _KEPT_NODES
            while spare > 0 and len(self._trees) > 1:
                spare -= len(self._trees.popitem(last=False)[1].tree)
        return update


def _key(state: Mapping[str, Any], thread: str) -> str:
    return f"{thread} {state['search_run_seed']} {state['search_problem']}"


# --- calls in flight -----------------------------------------------------------------------------

_run: ContextVar[int] = ContextVar("vprm_search_run", default=0)
_run_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class CallKey:
    """One expansion of one run of a search."""

    run: int
    expand: Expand


async def propose_in_time(
    policy: Policy, requests: Sequence[ProposeRequest]
) -> list[list[Proposal]]:
    """Ask a policy; what it has not answered when the requests' time is up has failed.

    A policy that keeps time itself (`timeout_s`) returns what came until then; this is for those
    that do not. Raises what the policy raises.
    """
    limits = [request.timeout_s for request in requests if request.timeout_s is not None]
    clock = asyncio.timeout(min(limits) + _GRACE_S if limits else None)
    try:
        async with clock:
            return await policy.propose(requests)
    except TimeoutError:
        if not clock.expired():
            raise
        late = Proposal("", "error", error=OUT_OF_TIME, out_of_time=True)
        return [[late] * len(request.seeds) for request in requests]


class CallsInFlight:
    """Calls to the policy that outlive a round: a slow reply holds up its own part of the tree.

    A strategy with independent parts plans each part as soon as that part's replies are there.
    What is still being asked stays under way in this process while the graph goes through its
    nodes, and is written into the plan of the state; a process that takes over a search asks it
    again, for the same children with the same seeds.

    Every call belongs to the run it was made in (`new_run`, `in_run`) and ends with it, however
    the run ends. Each is a task of the event loop that asked.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._tasks: dict[CallKey, asyncio.Task[list[list[Proposal]]]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many calls are under way."""
        return len(self._tasks)

    async def replies(
        self, requests: Mapping[Expand, ProposeRequest], *, wait_for_all: bool = False
    ) -> dict[Expand, list[Proposal]]:
        """Ask what is not being asked yet; return the replies that are there, at least one.

        They come in the order of `requests`, whatever came first, so that what is made of them
        does not depend on time. A call that raises is raised here; the other calls of these
        requests are then cancelled.
        """
        run = _run.get()
        keys = {expand: CallKey(run, expand) for expand in requests}
        tasks = {e: self._task(keys[e], request) for e, request in requests.items()}
        try:
            await _some_done(list(tasks.values()), wait_for_all=wait_for_all)
            done = {e: task.result()[0] for e, task in tasks.items() if task.done()}
        except BaseException:
            self._cancel(list(keys.values()))
            raise
        with self._lock:
            for expand in done:
                self._tasks.pop(keys[expand], None)
        return done

    def end_run(self, run: int | None = None) -> None:
        """Cancel the calls of a run that has ended: by default, those of the present run."""
        number = _run.get() if run is None else run
        _waits.pop(number, None)
        with self._lock:
            left = [key for key in self._tasks if key.run == number]
        self._cancel(left)

    def _task(self, key: CallKey, request: ProposeRequest) -> asyncio.Task[list[list[Proposal]]]:
        with self._lock:
            for other, known in list(self._tasks.items()):
                if known.get_loop().is_closed():  # its thread is gone, and nobody will come for it
                    del self._tasks[other]
            task = self._tasks.get(key)
            here = asyncio.get_running_loop()
            if task is None or task.cancelled() or task.get_loop() is not here:
                task = asyncio.ensure_future(propose_in_time(self._policy, [request]))
                self._tasks[key] = task
            return task

    def _cancel(self, keys: Sequence[CallKey]) -> None:
        for key in keys:
            with self._lock:
                task = self._tasks.pop(key, None)
            if task is not None and not task.get_loop().is_closed():
                task.get_loop().call_soon_threadsafe(task.cancel)


_waits: dict[int, list[Future[Any]]] = {}
"""By the number of a run: what its threads wait for."""


def new_run() -> int:
    """Return the number of a new run, to be entered with `in_run` and ended with `end_run`."""
    return next(_run_numbers)


@contextlib.contextmanager
def in_run(run: int) -> Iterator[None]:
    """Make the calls of a block belong to `run`: those of the tasks and threads it starts, too."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


async def _some_done(
    tasks: Sequence[asyncio.Task[list[list[Proposal]]]], *, wait_for_all: bool
) -> None:
    if wait_for_all:
        await asyncio.wait(tasks)
        return
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if not all(task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=_GATHER_S)


class RunClocks:
    """When the last phase of each run ended: what lies between phases is time of the search, too.

    Pauses that a person makes are not: a run ends with an interrupt.
    """

    def __init__(self) -> None:
        self._ended: OrderedDict[int, float] = OrderedDict()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Note that a search of this run starts: no phase of it has ended."""
        with self._lock:
            self._ended.pop(_run.get(), None)

    def gap(self) -> float:
        """Return the seconds since the last phase of this run ended, 0.0 where there was none."""
        now = time.monotonic()
        with self._lock:
            return now - self._ended.get(_run.get(), now)

    def end(self) -> None:
        """Note that a phase of this run ends now; nothing outside a run."""
        run = _run.get()
        if not run:
            return
        with self._lock:
            self._ended[run] = time.monotonic()
            self._ended.move_to_end(run)
            while len(self._ended) > _KNOWN_SEARCHES:
                self._ended.popitem(last=False)


# --- what the scorer has seen --------------------------------------------------------------------


class ScoredRounds:
    """Which searches this process has scored, and up to which round."""

    def __init__(self) -> None:
        self._last: OrderedDict[NodeId, int] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, root: NodeId) -> None:
        """Note that the search with this root begins here: nothing of it was scored before."""
        self.note(root, 0)

    def misses(self, root: NodeId, number: int) -> bool:
        """Tell whether a round before round `number` was scored elsewhere, or may have been."""
        with self._lock:
            return self._last.get(root, -1) < number - 1

    def note(self, root: NodeId, number: int) -> None:
        """Note that round `number` is scored now, and the ones before it have been."""
        with self._lock:
            self._last[root] = number
            self._last.move_to_end(root)
            while len(self._last) > _KNOWN_SEARCHES:
                self._last.popitem(last=False)


# --- synchronous callers -------------------------------------------------------------------------


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

    waits = _waits.setdefault(_run.get(), [])
    # a portal's own call goes to the loop and back twice: to start the task, and to end it
    running = asyncio.run_coroutine_threadsafe(outcome(), loop)
    try:
        waits.append(running)
        value, exit_asked = running.result()
    except BaseException:  # KeyboardInterrupt among them: leave no work behind
        running.cancel()
        raise
    finally:
        with contextlib.suppress(ValueError):
            waits.remove(running)
    if exit_asked is not None:
        raise exit_asked
    return cast("T", value)


def leave_waits(run: int) -> None:
    """Cancel what the threads of a run wait for. Safe in a signal handler: it takes no lock."""
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
    try:
        while (one := come.get()) is not None:
            yield one[0]
        if (exit_asked := pumping.result()) is not None:
            raise exit_asked
    finally:
        pumping.cancel()


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
