"""Calls to the policy that outlive a round: a slow reply holds up its own part of the tree only.

A strategy with independent parts plans each part as soon as that part's replies are there. What
is still being asked stays under way in this process while the graph goes through its nodes, and is
written into the plan of the state; a process that takes over a search asks it again, for the same
children with the same seeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vprm_search.search.plan import Expand
from vprm_search.types import Policy, Proposal, ProposeRequest

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
