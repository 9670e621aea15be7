"""What lives in one process between the rounds of its searches, and may be lost with it.

Live trees, calls to the policy that outlive a round, and which rounds a scorer has seen. Nothing
here is part of a search's state: another process that takes a search over builds all of it anew.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from vprm_search.graph.blocking import current_run, forget_waits
from vprm_search.recent import Recent
from vprm_search.search.plan import Expand
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, Policy, Proposal, ProposeRequest

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
        run = current_run()
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
        number = current_run() if run is None else run
        forget_waits(number)
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
        self._ended: Recent[int, float] = Recent(_KNOWN_SEARCHES)

    def start(self) -> None:
        """Note that a search of this run starts: no phase of it has ended."""
        self._ended.forget(current_run())

    def gap(self) -> float:
        """Return the seconds since the last phase of this run ended, 0.0 where there was none."""
        ended = self._ended.get(current_run())
        return 0.0 if ended is None else time.monotonic() - ended

    def end(self) -> None:
        """Note that a phase of this run ends now; nothing outside a run."""
        if run := current_run():
            self._ended.put(run, time.monotonic())


# --- what the scorer has seen --------------------------------------------------------------------


class ScoredRounds:
    """Which searches this process has scored, and up to which round."""

    def __init__(self) -> None:
        self._last: Recent[NodeId, int] = Recent(_KNOWN_SEARCHES)

    def begin(self, root: NodeId) -> None:
        """Note that the search with this root begins here: nothing of it was scored before."""
        self.note(root, 0)

    def misses(self, root: NodeId, number: int) -> bool:
        """Tell whether a round before round `number` was scored elsewhere, or may have been."""
        last = self._last.get(root)
        return last is None or last < number - 1

    def note(self, root: NodeId, number: int) -> None:
        """Note that round `number` is scored now, and the ones before it have been."""
        self._last.put(root, number)
