"""A search that nobody waits for any more leaves no call to the policy under way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph

from tests.search.world import World
from vprm_search.errors import InputError, ScorerError
from vprm_search.graph import cancellable, create_search_graph, run_jobs
from vprm_search.graph.blocking import run_blocking
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.search import DVTS, BestScore
from vprm_search.tree import SearchTree
from vprm_search.types import Problem, Proposal, ProposeRequest, ScoreRequest, ScoreResult

THREAD: Any = {"configurable": {"thread_id": "one"}}
WORLD = World(seed=3, stop=0.0, words=60)
STRATEGY = DVTS(subtrees=3, width=1, expand=2, max_depth=4, stop=None)
ASKED: Any = {"messages": [("user", "How many tiles?")]}


class Stuck:
    """A server that never answers about one of the subtrees, and counts who waits for it."""

    batches = False

    def __init__(self) -> None:
        self.stuck = ""
        self.waiting = 0
        self.released = threading.Event()

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        steps = requests[0].steps
        self.stuck = self.stuck or (steps[0] if steps else "")
        if not steps or steps[0] != self.stuck:
            return await WORLD.propose(requests)
        self.waiting += 1
        self.released.clear()
        try:
            await asyncio.Event().wait()
        finally:
            self.waiting -= 1
            self.released.set()
        raise AssertionError("not reached")


class FailsLater:
    """A scorer that raises at its third batch."""

    def __init__(self) -> None:
        self.batches = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.batches += 1
        if self.batches == 3:
            raise ScorerError("the scorer is gone")
        return await WORLD.score(requests)


def opened(policy: Stuck, scorer: Any = WORLD) -> Any:
    graph = create_search_graph(
        policy=policy, scorer=scorer, strategy=STRATEGY, selector=BestScore()
    )
    return graph.compile(checkpointer=InMemorySaver())


def calls_of(app: Any) -> int:
    return len(app.builder.search_nodes.loop.calls)


def until_stuck(app: Any, policy: Stuck, thread: Any = THREAD) -> Any:
    """Return a stream that was read until a call is stuck and another round has been made."""
    stream = app.stream(ASKED, thread, stream_mode="updates")
    for chunk in stream:
        if policy.waiting and "score" in chunk:
            return stream
    raise AssertionError("the search ended")


def test_a_closed_stream_ends_its_calls() -> None:
    policy = Stuck()
    app = opened(policy)
    stream = until_stuck(app, policy)
    assert calls_of(app) == 1
    stream.close()
    assert policy.released.wait(30)
    assert calls_of(app) == policy.waiting == 0


def test_a_stream_that_is_dropped_ends_its_calls() -> None:
    policy = Stuck()
    app = opened(policy)
    until_stuck(app, policy)
    gc.collect()
    assert policy.released.wait(30)
    assert calls_of(app) == 0


def test_an_exception_ends_the_calls_beside_it() -> None:
    policy = Stuck()
    app = opened(policy, FailsLater())
    with pytest.raises(ScorerError, match="gone"):
        app.invoke(ASKED, THREAD)
    assert policy.released.wait(30)
    assert calls_of(app) == policy.waiting == 0


def test_a_new_question_on_the_thread_leaves_nothing_of_the_old_one() -> None:
    policy = Stuck()
    app = opened(policy)
    until_stuck(app, policy).close()
    assert policy.released.wait(30)
    policy.stuck = "no step is like this"
    state = app.invoke({"messages": [("user", "And how many are red?")]}, THREAD)
    assert state["search_result"]["ended_by"]
    assert calls_of(app) == 0


async def test_a_cancelled_task_and_a_closed_async_stream_end_their_calls() -> None:
    policy = Stuck()
    app = opened(policy)
    task = asyncio.ensure_future(app.ainvoke(ASKED, THREAD))
    await _until(lambda: policy.waiting > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _until(lambda: policy.waiting == 0)
    stream = app.astream(ASKED, {"configurable": {"thread_id": "two"}}, stream_mode="updates")
    async for chunk in stream:
        if policy.waiting and "score" in chunk:
            break
    await stream.aclose()
    await _until(lambda: policy.waiting == 0)
    assert calls_of(app) == 0


def test_calls_of_a_loop_that_is_gone_are_forgotten() -> None:
    policy = Stuck()
    app = opened(policy)
    loop = asyncio.new_event_loop()

    async def begin() -> Any:
        stream = app.astream(ASKED, THREAD, stream_mode="updates")
        async for chunk in stream:
            if policy.waiting and "score" in chunk:
                return stream

    stream = loop.run_until_complete(begin())
    loop.close()  # without ending what runs on it
    assert calls_of(app) == 1
    policy.stuck = "no step is like this"
    app.invoke(ASKED, {"configurable": {"thread_id": "two"}})
    assert calls_of(app) == 0
    del stream


def test_two_equal_searches_at_once_do_not_share_calls() -> None:
    """Without a thread id nothing but the run tells them apart."""
    graph = create_search_graph(
        policy=Patient(), scorer=WORLD, strategy=STRATEGY, selector=BestScore()
    ).compile()
    states = graph.batch([ASKED, ASKED])
    assert states[0]["search_nodes"] == states[1]["search_nodes"]


class Patient:
    """Takes a moment for every call."""

    batches = False

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        await asyncio.sleep(0.002)
        return await WORLD.propose(requests)


def test_a_failed_search_without_a_graph_ends_its_calls() -> None:
    policy = Stuck()
    job = Job(SearchTree(Problem("How many tiles?")))
    with pytest.raises(ScorerError, match="gone"):
        run_blocking(run_jobs([job], policy, FailsLater(), SearchRules(STRATEGY, BestScore())))
    assert policy.released.wait(30)
    assert policy.waiting == 0


class Silent:
    """A server that never answers, and does something once it is asked."""

    batches = True

    def __init__(self, once_asked: Callable[[], Any]) -> None:
        self.once_asked = once_asked
        self.asked = 0
        self.released = threading.Event()

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        self.asked += 1
        self.once_asked()
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 60)  # a test that fails ends, too
        except asyncio.CancelledError:
            self.released.set()
            raise
        raise AssertionError("not reached")


def interrupt_main_thread() -> None:
    """Interrupt the main thread as Ctrl-C does, once it waits."""
    main = threading.main_thread().ident or 0
    while sys._current_frames()[main].f_code.co_name != "wait":
        time.sleep(0.001)
    signal.pthread_kill(main, signal.SIGINT)


@pytest.mark.parametrize(
    ("mode", "levels"), [("values", 0), ("custom", 0), ("messages", 0), ("messages", 1)]
)
def test_an_interrupt_ends_a_stream_whichever_thread_waits(mode: Any, levels: int) -> None:
    """With some modes LangGraph runs nodes in threads, which it joins before it lets go."""
    policy = Silent(interrupt_main_thread)
    search = create_search_graph(policy=policy, scorer=WORLD, strategy=STRATEGY).compile()
    stream = nested(search, levels).stream(ASKED, stream_mode=mode)
    # A shell starts what it puts into the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(cancellable(stream) if levels else stream)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert policy.released.wait(30)


def test_a_stream_that_is_closed_while_a_node_runs_ends_the_node() -> None:
    policy = Silent(lambda: get_stream_writer()({"heard": True}))
    app = create_search_graph(policy=policy, scorer=WORLD, strategy=STRATEGY).compile()
    stream = app.stream(ASKED, stream_mode="custom")
    assert any("heard" in part for part in stream)
    assert not policy.released.is_set()
    stream.close()
    assert policy.released.wait(30)


def nested(app: Any, levels: int) -> Any:
    """Return a graph that has the search as a node, so many levels below."""
    for _ in range(levels):
        parent = StateGraph(MessagesState)
        parent.add_node("below", app)
        parent.add_edge(START, "below")
        parent.add_edge("below", END)
        app = parent.compile()
    return app


@pytest.mark.parametrize("levels", [1, 2])
def test_a_closed_stream_of_a_parent_ends_its_calls(levels: int) -> None:
    policy = Silent(lambda: get_stream_writer()({"heard": True}))
    search = create_search_graph(policy=policy, scorer=WORLD, strategy=STRATEGY).compile()
    app = nested(search, levels)
    others = set(threading.enumerate())
    stream = cancellable(app.stream(ASKED, stream_mode="custom", subgraphs=True))
    assert any("heard" in part[-1] for part in stream)
    assert not policy.released.is_set()
    new = set(threading.enumerate()) - others
    nodes = [thread for thread in new if thread.name.startswith("ThreadPoolExecutor")]
    assert nodes
    stream.close()
    assert policy.released.wait(30)
    assert not any(thread.is_alive() for thread in nodes)


async def test_only_a_stream_is_made_cancellable() -> None:
    app = nested(create_search_graph(policy=Silent(print), scorer=WORLD).compile(), 1)
    for given in (app.astream(ASKED), map(str, app.stream(ASKED)), [1], None):
        with pytest.raises(InputError, match="astream"):
            cancellable(given)  # type: ignore[arg-type]


def test_after_a_closed_stream_an_agent_asks_for_nothing_more() -> None:
    """Whatever catches the cancellation: the next call is refused at once."""
    policy = Silent(lambda: get_stream_writer()({"heard": True}))
    asked = []

    def persistent(state: Any) -> Any:
        for _ in range(3):
            with contextlib.suppress(BaseException):
                asked.append(1)
                run_blocking(policy.propose([]))
        return {}

    parent = StateGraph(MessagesState)
    parent.add_node("node", persistent)
    parent.add_edge(START, "node")
    stream = cancellable(parent.compile().stream(ASKED, stream_mode="custom"))
    assert next(stream) == {"heard": True}
    stream.close()
    assert len(asked) == 3
    assert policy.asked == 1


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
