"""The same answer by every door, whatever recursion limit LangChain or a parent hands in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.runnables.config import ensure_config
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer
from tests.search.strategies import EVERY
from vprm_search.graph import create_search_graph, search_done, tree_of_state
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import BeamSearch, Strategy
from vprm_search.types import Proposal, ProposeRequest

TIGHT: Any = {"recursion_limit": 4}
"""Four supersteps: enough for what stands around a search, and for no search."""

Door = Callable[[Any], Awaitable[dict[str, Any]]]


def asked() -> dict[str, Any]:
    return {"messages": [HumanMessage(QUESTION)]}


def app(strategy: Strategy, **options: Any) -> Any:
    models = {"draft": HashChatModel(spread=6), "strong": HashChatModel(spread=9, max_steps=5)}
    given = {"policy": models, "scorer": HashScorer(fail=0.05), "strategy": strategy}
    return create_search_graph(**{**given, **options}, image_store=MemoryImageStore())


def parent(graph: Any) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("search", graph)
    builder.add_edge(START, "search")
    builder.add_edge("search", END)
    return builder.compile()


async def by_batch(graph: Any) -> dict[str, Any]:
    first, second = await asyncio.to_thread(graph.batch, [asked(), asked()], TIGHT)
    assert first["search_result"]["text"] == second["search_result"]["text"]
    return dict(second)


async def by_stream(graph: Any) -> dict[str, Any]:
    return dict(list(graph.stream(asked(), TIGHT, stream_mode="values"))[-1])


async def by_astream(graph: Any) -> dict[str, Any]:
    return dict([c async for c in graph.astream(asked(), TIGHT, stream_mode="values")][-1])


async def by_events(graph: Any) -> dict[str, Any]:
    found = [e async for e in graph.astream_events(asked(), TIGHT, version="v2")]
    return dict(found[-1]["data"]["output"])


async def by_tool(graph: Any) -> dict[str, Any]:
    tool = RunnableLambda(lambda given: graph.invoke(given["question"])).as_tool(
        name="search", description="searches", arg_types={"question": str}
    )
    return dict(tool.invoke({"question": QUESTION}, TIGHT))


DOORS: dict[str, Door] = {
    "ainvoke": lambda graph: graph.ainvoke(asked(), TIGHT),
    "batch": by_batch,
    "abatch": lambda graph: _first(graph.abatch([asked()], TIGHT)),
    "stream": by_stream,
    "astream": by_astream,
    "astream_events": by_events,
    "prompt | graph": lambda graph: (
        ChatPromptTemplate.from_messages([("human", "{asked}")]) | graph
    ).ainvoke({"asked": QUESTION}, TIGHT),
    "parallel": lambda graph: _first(
        RunnableParallel({"0": graph, "other": graph}).ainvoke(asked(), TIGHT), "0"
    ),
    "with_retry": lambda graph: graph.with_retry().ainvoke(asked(), TIGHT),
    "with_config": lambda graph: graph.with_config(TIGHT).ainvoke(asked()),
    "copy": lambda graph: graph.copy({"name": "mine"}).ainvoke(asked(), TIGHT),
    "lambda": lambda graph: RunnableLambda(lambda given: graph).ainvoke(asked(), TIGHT),
    "tool": by_tool,
    "subgraph": lambda graph: parent(graph).ainvoke(asked(), TIGHT),
    "subgraph, sync": lambda graph: asyncio.to_thread(parent(graph).invoke, asked(), TIGHT),
    "subgraph by batch": lambda graph: _first(parent(graph).abatch([asked()], TIGHT)),
    "graph in a node": lambda graph: parent(lambda state: graph.invoke(state)).ainvoke(
        asked(), TIGHT
    ),
}


async def _first(results: Awaitable[Any], key: Any = 0) -> dict[str, Any]:
    return dict((await results)[key])


def said(state: dict[str, Any]) -> tuple[Any, ...]:
    """Return what the answering message says: the same wherever it comes from."""
    message = state["messages"][-1]
    assert isinstance(message, AIMessage)
    told = message.response_metadata["vprm"]
    usage = {name: count for name, count in told["usage"].items() if name != "seconds"}
    return message.content, told["answer"], told["score"], told["ended_by"], usage


KINDS = ("best-of-n", "beam", "dvts", "rebase", "particles", "best-first", "mcts", "cascade")


@pytest.mark.parametrize(
    "name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in EVERY]
)
async def test_every_strategy_gives_the_same_answer_by_every_door(name: str) -> None:
    graph = app(EVERY[name]()).compile()
    state = graph.invoke(asked())
    assert "recursion" not in state["search_result"]["ended_by"]
    for door, enter in DOORS.items():
        other = await enter(graph)
        assert said(other) == said(state), door
        assert search_done(other), door
        if "search_nodes" in other:
            assert tree_of_state(other).dumps() == tree_of_state(state).dumps(), door


async def test_a_long_search_is_not_cut_by_the_25_that_langchain_fills_in() -> None:
    graph = app(
        BeamSearch(width=2, expand=2, stop=None), policy=HashChatModel(max_steps=40)
    ).compile()
    state = graph.invoke(asked())
    assert state["search_result"]["usage"]["rounds"] * 3 > 25
    for found in (
        graph.batch([asked()])[0],
        (await graph.abatch([asked()]))[0],
        RunnableParallel({"one": graph}).invoke(asked())["one"],
        (RunnableLambda(lambda given: given) | graph).invoke(asked()),
    ):
        assert said(found) == said(state)


def test_every_round_stays_a_checkpoint_by_every_door() -> None:
    saver = InMemorySaver()
    graph = app(BeamSearch(width=2, expand=2)).compile(checkpointer=saver)
    threads: list[Any] = [{"configurable": {"thread_id": name}} for name in ("one", "two")]
    graph.invoke(asked(), threads[0])
    graph.batch([asked()], [threads[1]])
    steps = [[s.next for s in graph.get_state_history(thread)] for thread in threads]
    assert steps[0] == steps[1]
    assert len(steps[0]) > 3 * 3


class Nosy:
    """A policy that notes which recursion limit an agent inside it would inherit."""

    limits: list[int]

    def __init__(self) -> None:
        self.limits = []

    async def propose(self, requests: Any) -> list[list[Proposal]]:
        self.limits.append(ensure_config()["recursion_limit"])
        return [[self._one(request) for _ in request.seeds] for request in requests]

    def _one(self, request: ProposeRequest) -> Proposal:
        return Proposal("Answer: 1", "stop")


def test_what_a_policy_calls_keeps_a_recursion_limit_of_its_own() -> None:
    policy = Nosy()
    app(BeamSearch(), policy=policy).compile().invoke(asked(), {"recursion_limit": 7})
    assert set(policy.limits) == {ensure_config()["recursion_limit"]}
