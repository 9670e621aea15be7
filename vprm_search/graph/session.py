"""What lives in one process between the rounds of its searches, and may be lost with it.

Live trees, calls to the policy that outlive a round, what a scorer keeps of earlier rounds, and the
event loop that synchronous callers share. Nothing here is part of a search's state: another process
that takes a search over builds all of it anew.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import os
import threading
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vprm_search import ids
from vprm_search.graph.loop import Job, propose_request, score, take_replies
from vprm_search.graph.parts import SearchRules
from vprm_search.search.plan import Expand, Plan
from vprm_search.tree import SearchTree
from vprm_search.types import (
    NodeId,
    NodeRecord,
    Policy,
    Problem,
    Proposal,
    ProposeRequest,
    StepScorer,
)

T = TypeVar("T")
RecordTable = dict[str, Any]

_KEPT_NODES = 50_000
_KNOWN_SEARCHES = 4096


# --- live trees ---------------------------------------------------------------------------------


class LiveTrees:
    """The last used trees, up to 50,000 nodes in all; safe to use from several threads."""

    def __init__(self) -> None:
        self._trees: OrderedDict[str, tuple[RecordTable, SearchTree]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, state: Mapping[str, Any], thread: str) -> SearchTree:
        """Return the tree of `state` for the caller alone, who may change it.

        `thread` tells equal searches of several conversations apart. Comparing the tables is
        cheap: within one process their values are the same objects.
        """
        with self._lock:
            table, tree = self._trees.pop(_key(state, thread), (None, None))
        fits = (
            tree is not None
            and tree.problem.to_json() == state.get("search_problem")
            and tree.run_seed == state.get("search_run_seed")
            and table == state.get("search_nodes")
        )
        if fits and tree is not None:
            return tree
        from vprm_search.graph.state import tree_of_state  # loads LangGraph

        return tree_of_state(state)

    def give(
        self, state: Mapping[str, Any], thread: str, update: RecordTable, tree: SearchTree
    ) -> None:
        """Keep `tree` for the state that `update` will make of `state`."""
        table = {**state.get("search_nodes", {}), **update}
        key = _key(state, thread)
        with self._lock:
            self._trees[key] = (table, tree)
            self._trees.move_to_end(key)
            spare = sum(len(kept) for _, kept in self._trees.values()) - _KEPT_NODES
            while spare > 0 and len(self._trees) > 1:
                spare -= len(self._trees.popitem(last=False)[1][1])


def _key(state: Mapping[str, Any], thread: str) -> str:
    problem = Problem.from_json(state["search_problem"])
    return f"{thread} {ids.root_id(problem, state['search_run_seed'])}"


# --- calls in flight ----------------------------------------------------------------------------


_GATHER_S = 0.002
"""Replies that come within this time of the first one are taken together, in seconds."""


@dataclass(frozen=True, slots=True)
class CallKey:
    """One expansion of one search: `owner` names the search and the conversation it belongs to."""

    owner: str
    expand: Expand


class CallsInFlight:
    """The calls under way, by search and expansion; each is a task of the loop that asked."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._tasks: dict[CallKey, asyncio.Task[list[list[Proposal]]]] = {}

    async def replies(
        self, requests: Mapping[CallKey, ProposeRequest], *, wait_for_all: bool = False
    ) -> dict[CallKey, list[Proposal]]:
        """Ask what is not being asked yet; return the replies that are there, at least one.

        They come in the order of `requests`, whatever came first, so that what is made of them
        does not depend on time. A call that raises is raised here; the other calls of these
        requests are then cancelled.
        """
        tasks = {key: self._task(key, request) for key, request in requests.items()}
        try:
            await _some_done(list(tasks.values()), wait_for_all=wait_for_all)
            done = {key: task.result()[0] for key, task in tasks.items() if task.done()}
        except BaseException:
            self._drop(requests)
            raise
        for key in done:
            del self._tasks[key]
        return done

    def cancel(self, owner: str) -> None:
        """Cancel the calls of a search that has ended."""
        self._drop([key for key in self._tasks if key.owner == owner])

    def _task(self, key: CallKey, request: ProposeRequest) -> asyncio.Task[list[list[Proposal]]]:
        task = self._tasks.get(key)
        if task is None or task.cancelled() or task.get_loop() is not asyncio.get_running_loop():
            task = asyncio.ensure_future(self._policy.propose([request]))
            self._tasks[key] = task
        return task

    def _drop(self, keys: Mapping[CallKey, object] | Sequence[CallKey]) -> None:
        for key in list(keys):
            task = self._tasks.pop(key, None)
            if task is not None and not task.get_loop().is_closed():
                task.get_loop().call_soon_threadsafe(task.cancel)


async def _some_done(
    tasks: Sequence[asyncio.Task[list[list[Proposal]]]], *, wait_for_all: bool
) -> None:
    if wait_for_all:
        await asyncio.wait(tasks)
        return
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if not all(task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=_GATHER_S)


async def propose_some(
    job: Job, plan: Plan, calls: CallsInFlight, rules: SearchRules, owner: str
) -> tuple[list[NodeRecord], Plan]:
    """Ask for what is planned and not being asked yet; return the records that are there so far.

    The plan that comes back holds what is still under way.
    """
    keys = {CallKey(owner, expand): propose_request(job, expand, rules) for expand in plan.expand}
    done = await calls.replies(keys)
    records = take_replies(job, {key.expand: reply for key, reply in done.items()}, rules)
    left = tuple(expand for expand in plan.expand if CallKey(owner, expand) not in done)
    return records, replace(plan, expand=left)


# --- the prefix cache of a scorer ---------------------------------------------------------------


class ScorerMemory:
    """Knows which searches this process has scored from their first round on."""

    def __init__(self, scorer: StepScorer) -> None:
        self._scorer = scorer
        self._followed: OrderedDict[NodeId, int] = OrderedDict()
        self._lock = threading.Lock()

    async def restore(self, job: Job, rules: SearchRules) -> int:
        """Score the rounds before the current one again if this process has not; return how many.

        Only for scorers with a true `has_prefix_cache`. The replies are thrown away: the records
        hold the scores already. Raises `ScorerError` as `score` does.
        """
        if not getattr(self._scorer, "has_prefix_cache", False):
            return 0
        last = job.tree.rounds
        with self._lock:
            known = self._followed.get(job.tree.root_id, 0)
        missing = range(1, last) if known < last - 1 else range(0)
        if missing:
            await self._replay(job, rules, missing)
        with self._lock:
            self._followed[job.tree.root_id] = last
            self._followed.move_to_end(job.tree.root_id)
            while len(self._followed) > _KNOWN_SEARCHES:
                self._followed.popitem(last=False)
        return len(missing)

    async def _replay(self, job: Job, rules: SearchRules, rounds: range) -> None:
        """Score `rounds` on a tree of their own, by the code that scored them first."""
        copy = SearchTree(job.tree.problem, job.tree.run_seed)
        for number in rounds:
            copy.merge(
                replace(record, score=None, score_reason="", path_scores={}, scored_tokens=0)
                for record in job.tree.round_nodes(number)
            )
            await score([Job(copy, job.images)], self._scorer, rules)


# --- synchronous callers ------------------------------------------------------------------------


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
