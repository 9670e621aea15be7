"""The run of a guided model: candidates below it, no token of theirs beside it, events, no leak."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import pytest
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    BaseCallbackHandler,
    UsageMetadataCallbackHandler,
    get_usage_metadata_callback,
)
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from tests.guided.parts import Traces, by_words, guided
from vprm_search import BestOfN, GuidedChatModel
from vprm_search.guided.model_run import EVENT_NAME
from vprm_search.scoring.judge_scorer import JudgeScorer
from vprm_search.testing import ScriptedChatModel

NESTED = "GuidedChatModel(propose, propose)"
TEXT = "It is\n\na good answer."


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def graph(model: Any, *, how: str = "invoke") -> Any:
    """Return a graph with one node that asks `model`."""

    def call(state: State) -> dict[str, Any]:
        if how == "invoke":
            return {"messages": [model.invoke(state["messages"])]}
        chunks = list(model.stream(state["messages"]))
        return {"messages": [sum(chunks[1:], chunks[0])]}

    async def acall(state: State) -> dict[str, Any]:
        if how == "invoke":
            return {"messages": [await model.ainvoke(state["messages"])]}
        chunks = [chunk async for chunk in model.astream(state["messages"])]
        return {"messages": [sum(chunks[1:], chunks[0])]}

    builder = StateGraph(State)
    builder.add_node("ask", RunnableLambda(call, acall, name="ask"))
    builder.add_edge(START, "ask")
    builder.add_edge("ask", END)
    return builder.compile()


ASKED = {"messages": [HumanMessage("Why?")]}


# --- nesting ---


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream", "batch", "chain"])
async def test_candidates_are_runs_below_the_models_own(way: str) -> None:
    model, traces = guided(TEXT, "bad"), Traces()
    config: Any = {"callbacks": [traces]}
    if way == "invoke":
        model.invoke("Why?", config)
    elif way == "stream":
        list(model.stream("Why?", config))
    elif way == "ainvoke":
        await model.ainvoke("Why?", config)
    elif way == "astream":
        _ = [chunk async for chunk in model.astream("Why?", config)]
    elif way == "batch":
        model.batch(["Why?", "How?"], config)
    else:
        (RunnableLambda(lambda text: text) | model).invoke("Why?", config)
    expected = {"batch": [NESTED] * 2, "chain": [f"RunnableSequence(RunnableLambda, {NESTED})"]}
    assert traces.shapes == expected.get(way, [NESTED])


@pytest.mark.parametrize("how", ["invoke", "stream"])
@pytest.mark.parametrize("mode", ["messages", "values"])
@pytest.mark.parametrize("sync", [True, False])
async def test_they_are_in_graphs_that_stream_messages_too(
    how: str, mode: Any, *, sync: bool
) -> None:
    model, traces = guided(TEXT, "bad"), Traces()
    config: Any = {"callbacks": [traces]}
    compiled = graph(model, how=how)
    if sync:
        list(compiled.stream(ASKED, config, stream_mode=mode))
    else:
        _ = [part async for part in compiled.astream(ASKED, config, stream_mode=mode)]
    assert traces.shapes == [f"LangGraph(ask(ask({NESTED})))"]


def test_a_judges_calls_are_below_it_too() -> None:
    judge = JudgeScorer(ScriptedChatModel("1"), mode="text")
    model, traces = guided(TEXT, "bad", scorer=judge), Traces()
    model.invoke("Why?", {"callbacks": [traces]})
    (shape,) = traces.shapes
    assert shape.startswith("GuidedChatModel(propose, propose, ")


def test_a_guided_model_within_another_is_below_it() -> None:
    outer = GuidedChatModel(
        policy=guided(TEXT, "bad"), scorer=by_words(good=0.9), strategy=BestOfN(2)
    )
    traces = Traces()
    assert outer.invoke("Why?", {"callbacks": [traces]}).text == TEXT
    assert traces.shapes == [
        "GuidedChatModel(propose(propose, propose), propose(propose, propose))"
    ]


# --- no leak ---


def texts(parts: list[Any]) -> list[str]:
    """Return what a `messages` stream shows: the pieces of each message put together."""
    found: dict[str, str] = {}
    for message, _ in parts:
        found[message.id] = found.get(message.id, "") + str(message.text)
    return list(found.values())


@pytest.mark.parametrize("how", ["invoke", "stream"])
@pytest.mark.parametrize("sync", [True, False])
async def test_a_messages_stream_shows_the_answer_alone_in_pieces(how: str, *, sync: bool) -> None:
    compiled = graph(guided("bad one", TEXT, "bad two"), how=how)
    if sync:
        parts = list(compiled.stream(ASKED, stream_mode="messages"))
    else:
        parts = [part async for part in compiled.astream(ASKED, stream_mode="messages")]
    assert texts(parts) == [TEXT]
    assert len(parts) > 3
    assert {meta["langgraph_node"] for _, meta in parts} == {"ask"}


@pytest.mark.parametrize("sync", [True, False])
async def test_events_of_version_3_show_the_answer_alone(*, sync: bool) -> None:
    model = guided("bad one", TEXT, "bad two")
    traces = Traces()
    config: Any = {"callbacks": [traces]}
    if sync:
        stream: Any = model.stream_events("Why?", config, version="v3")
        message = stream.output
    else:
        stream = await model.astream_events("Why?", config, version="v3")
        message = await stream.output
        async with asyncio.timeout(10):
            while not traces.roots:  # noqa: ASYNC110 - its end is told after its output
                await asyncio.sleep(0.001)
    assert message.text == TEXT
    assert traces.shapes == ["GuidedChatModel(propose, propose, propose)"]


async def test_events_of_version_2_show_the_answer_alone() -> None:
    chain = RunnableLambda(lambda text: text) | guided("bad one", TEXT, "bad two")
    events = [event async for event in chain.astream_events("Why?", version="v2")]
    pieces = [e["data"]["chunk"] for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(str(piece.text) for piece in pieces) == TEXT
    (end,) = [e["data"]["output"] for e in events if e["event"] == "on_chat_model_end"]
    assert end.text == TEXT
    assert {e["name"] for e in events if "chat_model" in e["event"]} == {"GuidedChatModel"}


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke"])
async def test_usage_counters_count_the_search_once(way: str) -> None:
    own = [
        AIMessage(
            text,
            response_metadata={"model_name": "m", "finish_reason": "stop"},
            usage_metadata={"input_tokens": 10, "output_tokens": n, "total_tokens": 10 + n},
        )
        for n, text in enumerate(["bad", TEXT], 1)
    ]
    model, handler = guided(*own), UsageMetadataCallbackHandler()
    config: Any = {"callbacks": [handler]}
    with get_usage_metadata_callback() as counted:
        if way == "invoke":
            model.invoke("Why?", config)
        elif way == "stream":
            list(model.stream("Why?", config))
        else:
            await model.ainvoke("Why?", config)
    for told in (counted.usage_metadata, handler.usage_metadata):
        assert told["m"]["input_tokens"] == 20
        assert told["m"]["output_tokens"] == 3


# --- pieces ---


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_the_pieces_make_the_message(way: str) -> None:
    model = guided(TEXT, "bad")
    whole = model.invoke("Why?")
    if way == "stream":
        pieces = list(model.stream("Why?"))
    else:
        pieces = [piece async for piece in model.astream("Why?")]
    joined = sum(pieces[1:], pieces[0])
    assert isinstance(joined, AIMessageChunk)
    assert joined.content == whole.content
    assert joined.usage_metadata == whole.usage_metadata
    assert joined.additional_kwargs == whole.additional_kwargs
    assert pieces[-1].chunk_position == "last"
    told, known = (m.response_metadata["vprm"] for m in (joined, whole))
    assert told["node"] == known["node"]


class Tokens(BaseCallbackHandler):
    """Keeps the tokens it is told of."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def on_llm_new_token(self, token: str, **_: Any) -> None:
        self.tokens.append(token)


def test_invoke_tells_tokens_if_it_is_to_stream() -> None:
    quiet, loud = Tokens(), Tokens()
    guided(TEXT, "bad").invoke("Why?", {"callbacks": [quiet]})
    guided(TEXT, "bad", streaming=True).invoke("Why?", {"callbacks": [loud]})
    assert quiet.tokens == []
    assert "".join(loud.tokens) == TEXT


# --- events and progress ---


class Events(AsyncCallbackHandler):
    """Keeps the custom events it is told of."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.events.append((name, data["event"]))


KINDS = ["round", "expanded", "scored", "finished", "answer"]


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
async def test_a_handler_is_told_of_the_search(way: str) -> None:
    model, events = guided(TEXT, "bad"), Events()
    config: Any = {"callbacks": [events]}
    if way == "invoke":
        model.invoke("Why?", config)
    elif way == "stream":
        list(model.stream("Why?", config))
    elif way == "ainvoke":
        await model.ainvoke("Why?", config)
    else:
        _ = [piece async for piece in model.astream("Why?", config)]
    assert events.events == [(EVENT_NAME, kind) for kind in KINDS]


@pytest.mark.parametrize("sync", [True, False])
async def test_so_is_the_custom_stream_of_a_graph(*, sync: bool) -> None:
    compiled = graph(guided(TEXT, "bad"))
    if sync:
        told = list(compiled.stream(ASKED, stream_mode="custom"))
    else:
        told = [part async for part in compiled.astream(ASKED, stream_mode="custom")]
    assert [event["event"] for event in told] == KINDS


async def test_where_nobody_listens_there_is_no_error() -> None:
    model = guided(TEXT, "bad")
    chain = RunnableLambda(lambda text: text) | model
    assert model.invoke("Why?").text == chain.invoke("Why?").text == TEXT
    assert (await model.ainvoke("Why?")).text == (await chain.ainvoke("Why?")).text == TEXT
    assert len([piece async for piece in chain.astream("Why?")]) > 1


@pytest.mark.parametrize("way", ["stream", "astream", "messages"])
async def test_progress_comes_as_reasoning_before_the_answer(way: str) -> None:
    model = guided(TEXT, "bad", progress=True)
    if way == "stream":
        pieces = list(model.stream("Why?"))
    elif way == "astream":
        pieces = [piece async for piece in model.astream("Why?")]
    else:
        pieces = [part[0] for part in graph(model).stream(ASKED, stream_mode="messages")]
    thought = [p.additional_kwargs.get("reasoning_content", "") for p in pieces]
    assert "".join(thought) == (
        "Round 1: 2 candidates.\nScored 3 of 3 steps, the best with 0.90.\n"
        "Ended: 2 solutions sampled.\n"
    )
    last, first = max(n for n, t in enumerate(thought) if t), [bool(p.text) for p in pieces]
    assert first.index(True) > last
    joined = sum(pieces[1:], pieces[0])
    assert [b["type"] for b in joined.content_blocks] == ["reasoning", "text"]
    assert model.invoke("Why?").additional_kwargs["reasoning_content"] == "".join(thought)


# --- ending early ---


async def test_a_cancelled_call_cancels_its_search() -> None:
    model = guided("good", policy=ScriptedChatModel("good", delay_s=30.0))
    for call in (model.ainvoke("Why?"), anext(model.astream("Why?"))):
        task = asyncio.ensure_future(call)
        while not model.policy.running:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert model.policy.running == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_stream_that_is_left_ends_its_search() -> None:
    slow = ScriptedChatModel("good", delay_s=30.0)
    model = guided("good", policy=slow, progress=True)
    pieces = model.stream("Why?")
    assert next(pieces).additional_kwargs
    pieces.close()
    for _ in range(1000):
        if slow.running == 0 and slow.most_running == 1:
            break
        time.sleep(0.005)
    assert slow.running == 0
