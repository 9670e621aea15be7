"""Pictures in an agent: seen by its model, not in the branches' checkpoints, not in traces."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langsmith import Client
from langsmith.run_helpers import tracing_context

from tests.graph.fakes import noisy_png
from tests.graph.test_traces import LARGE, Collector, data_uri, images_of, pictures_in, traced
from vprm_search import BeamSearch, ProcessRewardMiddleware, create_agent_search
from vprm_search.images import image_message
from vprm_search.images.store import MemoryImageStore
from vprm_search.testing import ChatCall, ScriptedChatModel, ScriptedScorer

CROP = noisy_png(20)
TURNS = 5
SCORER = ScriptedScorer(lambda request: 0.9 if "part = 1" in request.steps[-1] else 0.6)


@tool
def crop(part: int) -> Any:
    """Show a part of the picture."""
    return [{"type": "image_url", "image_url": {"url": data_uri(CROP)}}]


def look(call: ChatCall) -> AIMessage:
    done = sum(isinstance(message, ToolMessage) for message in call.messages)
    if done >= TURNS:
        return AIMessage("Answer: 7")
    part = 1 + call.number % 2
    said = {"name": "crop", "args": {"part": part}, "id": f"{done}-{part}"}
    return AIMessage("", tool_calls=[said])


def parts() -> tuple[ScriptedChatModel, Any]:
    model = ScriptedChatModel(look)
    search = create_agent_search(
        create_agent(model, [crop]),
        scorer=SCORER,
        strategy=BeamSearch(width=2, expand=2, refill=0),
        image_store=MemoryImageStore(),
    )
    return model, search


def question() -> dict[str, Any]:
    return {"messages": [image_message("How many?", LARGE)]}


def saw_all(model: ScriptedChatModel) -> bool:
    """Whether each call was shown the question's picture and those that tools had shown by then."""

    def expected(messages: list[BaseMessage]) -> int:
        return 1 + sum(isinstance(message, ToolMessage) for message in messages)

    return all(len(images_of(c.messages)) == expected(c.messages) for c in model.calls) and all(
        "vprm-image" not in repr(c.messages) for c in model.calls
    )


def watched(saver: BaseCheckpointSaver[Any], seen: list[int]) -> Any:
    """Have what is serialized for `saver` looked at."""
    inner: Callable[[Any], tuple[str, bytes]] = saver.serde.dumps_typed

    def dumps_typed(value: Any) -> tuple[str, bytes]:
        kind, data = inner(value)
        encoded = (base64.b64encode(LARGE)[3000:3200], base64.b64encode(CROP)[600:700])
        raw = (LARGE[5000:5100], CROP[600:700])
        seen.append(sum(data.count(one) for one in (*encoded, *raw)))
        return kind, data

    saver.serde.dumps_typed = dumps_typed  # type: ignore[method-assign]
    return saver


THREAD: Any = {"configurable": {"thread_id": "one"}}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_no_picture_is_in_the_checkpoint_of_a_branch(kind: str, tmp_path: Path) -> None:
    model, search = parts()
    written: list[int] = []
    if kind == "memory":
        saver = watched(InMemorySaver(), written)
        state = search.compile(checkpointer=saver).invoke(question(), THREAD)
    else:
        with SqliteSaver.from_conn_string(str(tmp_path / "state.sqlite")) as sqlite:
            state = search.compile(checkpointer=watched(sqlite, written)).invoke(question(), THREAD)
    assert len(written) > 50
    assert sum(written) == 0
    assert saw_all(model)
    assert sum(map(len, map(images_of, [[m] for m in state["messages"]]))) == 1 + TURNS


async def test_nor_is_it_asynchronously(tmp_path: Path) -> None:
    model, search = parts()
    written: list[int] = []
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "state.sqlite")) as sqlite:
        graph = search.compile(checkpointer=watched(sqlite, written))
        await graph.ainvoke(question(), THREAD)
    assert sum(written) == 0
    assert saw_all(model)


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
async def test_an_agent_search_sends_no_picture_to_langsmith(mode: str) -> None:
    model, search = parts()
    graph = search.compile()
    with traced() as collector:
        if mode == "invoke":
            graph.invoke(question())
        else:
            await graph.ainvoke(question())
    assert saw_all(model)
    assert len(model.calls) > 10
    assert pictures_in(collector.text, LARGE) == 0
    assert "vprm-image://" in collector.text
    assert collector.bytes_sent < 0.5 * len(LARGE)


async def test_opentelemetry_gets_no_picture_either() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    client = Client(tracing_mode="otel", otel_tracer_provider=provider, api_key="lsv2_pt_none")
    _, search = parts()
    with tracing_context(enabled=True, client=client):
        await search.compile().ainvoke(question())
    client.flush()
    client.close()
    told = [
        json.dumps(dict(span.attributes or {}), default=str) for span in spans.get_finished_spans()
    ]
    assert len(told) > 30
    assert pictures_in("".join(told), LARGE) == 0
    assert sum(map(len, told)) < 1.2 * len(LARGE)


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
async def test_the_candidates_of_a_middleware_send_no_picture(mode: str) -> None:
    async def told(**options: Any) -> Collector:
        agent = create_agent(ScriptedChatModel(look), [crop], **options)
        with traced() as collector:
            if mode == "invoke":
                agent.invoke(question())
            else:
                await agent.ainvoke(question())
        return collector

    alone = await told()
    chosen = await told(middleware=[ProcessRewardMiddleware(SCORER, n=4)])
    assert len(chosen.fields()) > len(alone.fields())
    # the agent's own nodes are LangChain's, and traced with their state
    assert pictures_in(chosen.text, LARGE) <= pictures_in(alone.text, LARGE)
