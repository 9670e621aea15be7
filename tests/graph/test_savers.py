"""Savers of every kind: sync and async, many searches at once, forks from a round."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.types import Command

from tests.graph.fakes import HashChatModel, HashScorer, asked
from tests.graph.test_kill_resume import postgres  # noqa: F401 (a fixture)
from vprm_search.errors import ConfigError
from vprm_search.graph import create_search_graph, search_done, tree_of_state
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import BeamSearch

KINDS = ["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.slow)]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres"))
    return "" if request.param == "memory" else str(tmp_path / "state.sqlite")


@contextmanager
def saver_at(place: str) -> Iterator[Any]:
    if not place:
        yield InMemorySaver()
    elif place.startswith("postgres"):
        from langgraph.checkpoint.postgres import PostgresSaver

        with PostgresSaver.from_conn_string(place) as saver:
            saver.setup()
            yield saver
    else:
        with SqliteSaver.from_conn_string(place) as sqlite:
            yield sqlite


@asynccontextmanager
async def async_saver_at(place: str) -> AsyncIterator[Any]:
    if not place:
        yield InMemorySaver()
    elif place.startswith("postgres"):
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        async with AsyncPostgresSaver.from_conn_string(place) as saver:
            await saver.setup()
            yield saver
    else:
        async with AsyncSqliteSaver.from_conn_string(place) as sqlite:
            yield sqlite


def app(saver: Any = None, **options: Any) -> Any:
    given = {"policy": HashChatModel(), "strategy": BeamSearch(width=2, expand=2, stop=None)}
    graph = create_search_graph(
        scorer=HashScorer(), image_store=MemoryImageStore(), **{**given, **options}
    )
    return graph.compile(checkpointer=saver)


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


QUESTIONS = [f"How many tiles are there on board {number}?" for number in range(6)]


@pytest.fixture(scope="module")
def alone() -> list[str]:
    return [tree_of_state(app().invoke(asked(q))).dumps() for q in QUESTIONS]


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_searches_at_once_on_one_saver_are_those_alone(place: str, alone: list[str]) -> None:
    with saver_at(place) as saver:
        graph = app(saver)
        threads = [thread(q) for q in QUESTIONS]
        states = graph.batch([asked(q) for q in QUESTIONS], threads)
        assert [tree_of_state(state).dumps() for state in states] == alone
        stored = [tree_of_state(graph.get_state(t).values).dumps() for t in threads]
        assert stored == alone


@pytest.mark.parametrize("place", KINDS, indirect=True)
async def test_so_they_are_asynchronously(place: str, alone: list[str]) -> None:
    async with async_saver_at(place) as saver:
        graph = app(saver)
        calls = (graph.ainvoke(asked(q), thread(q)) for q in QUESTIONS)
        states = await asyncio.gather(*calls)
        assert [tree_of_state(state).dumps() for state in states] == alone
        stored = [await graph.aget_state(thread(q)) for q in QUESTIONS]
        assert [tree_of_state(s.values).dumps() for s in stored] == alone


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_search_forks_from_any_round_and_the_first_one_stays(
    place: str, alone: list[str]
) -> None:
    with saver_at(place) as saver:
        graph = app(saver)
        graph.invoke(asked(QUESTIONS[0]), thread("one"))
        rounds = [s for s in graph.get_state_history(thread("one")) if s.next == ("plan",)]
        assert len(rounds) > 3
        last = rounds[0].config["configurable"]["checkpoint_id"]
        for snapshot in (rounds[1], rounds[-1]):
            state = graph.invoke(None, snapshot.config)  # time travel: the same from there on
            assert tree_of_state(state).dumps() == alone[0]
        wide = app(saver, strategy=BeamSearch(width=1, expand=4, stop=None))
        fork = tree_of_state(wide.invoke(None, rounds[-2].config))
        kept = tree_of_state(rounds[-2].values)
        assert fork.dumps() != alone[0]
        assert {r.id for r in kept} <= {r.id for r in fork}
        old = {"configurable": {"thread_id": "one", "checkpoint_id": last}}
        assert tree_of_state(graph.get_state(old).values).rounds == kept.rounds + len(rounds) - 2


@pytest.mark.parametrize("place", KINDS, indirect=True)
@pytest.mark.parametrize("calls", [1, 3, 5])
async def test_a_cancelled_search_goes_on_later_to_the_same_tree(
    place: str, calls: int, alone: list[str]
) -> None:
    """At its first call and at later ones; nothing of it is left while it does not run."""
    waiting: list[asyncio.Event] = []

    class Stops(HashChatModel):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            waiting.append(asyncio.Event())
            if len(waiting) == calls:
                await waiting[-1].wait()  # a server that never answers
            return await super()._agenerate(*args, **kwargs)

    async with async_saver_at(place) as saver:
        graph = app(saver, policy=Stops())
        before = asyncio.all_tasks()
        call = asyncio.ensure_future(
            graph.ainvoke(asked(QUESTIONS[0]), thread("one"), durability="sync")
        )
        while len(waiting) < calls:  # noqa: ASYNC110 - a plain look
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(1.0):
            while asyncio.all_tasks() - before:  # noqa: ASYNC110 - a plain look
                await asyncio.sleep(0.001)
        found = await graph.aget_state(thread("one"))
        assert not search_done(found)
        state = await graph.ainvoke(None, thread("one"))
        assert tree_of_state(state).dumps() == alone[0]
        assert search_done(await graph.aget_state(thread("one")))


class Bare(InMemorySaver):
    """A saver of somebody's own, without asynchronous methods."""

    async def aget_tuple(self, config: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("kind", ["sqlite", "bare"])
async def test_an_asynchronous_call_says_which_saver_it_needs(kind: str, tmp_path: Path) -> None:
    with SqliteSaver.from_conn_string(str(tmp_path / "state.sqlite")) as saver:
        graph = app(saver if kind == "sqlite" else Bare())
        says = "AsyncSqliteSaver .langgraph.checkpoint.sqlite.aio" if kind == "sqlite" else "Bare"
        with pytest.raises(ConfigError, match=says):
            await graph.ainvoke(asked(), thread("one"))
        with pytest.raises(ConfigError, match=says):
            await graph.aget_state(thread("one"))
        with pytest.raises(ConfigError, match=says):
            await graph.aupdate_state(thread("one"), {"messages": []}, as_node="ingest")
        with pytest.raises(ConfigError, match=says):
            [event async for event in graph.astream_events(asked(), thread("1"), version="v2")]
        assert graph.invoke(asked(), thread("two"))["search_result"]


async def test_another_not_implemented_error_stays_what_it_is() -> None:
    class Lazy(HashScorer):
        async def score(self, requests: Any) -> Any:
            raise NotImplementedError("not yet")

    graph = create_search_graph(
        policy=HashChatModel(), scorer=Lazy(), image_store=MemoryImageStore()
    ).compile(checkpointer=InMemorySaver())
    with pytest.raises(NotImplementedError, match="not yet"):
        await graph.ainvoke(asked(), thread("one"))


@pytest.mark.slow
async def test_postgres_says_it_too(postgres: str) -> None:  # noqa: F811
    with saver_at(postgres) as saver:
        with pytest.raises(ConfigError, match=r"AsyncPostgresSaver .langgraph.checkpoint.postgres"):
            await app(saver).ainvoke(asked(), thread("one"))
        state = app(saver, review=True).invoke(asked(), thread("two"))
        node = state["__interrupt__"][0].value["frontier"][0]["node"]
        graph = app(saver, review=True)
        graph.invoke(Command(resume={"prune": [node]}), thread("two"))
        found = graph.get_state(thread("two"))
        assert tree_of_state(found.values)[node].cause == "review"
