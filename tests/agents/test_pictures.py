"""Pictures in an agent: seen by its model, not in the branches' checkpoints, not in traces."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tests.graph.fakes import noisy_png
from tests.graph.test_traces import (
    LARGE,
    PNG,
    Collector,
    data_uri,
    images_of,
    pictures_in,
    traced,
    traced_by_opentelemetry,
)
from vprm_search import BeamSearch, ProcessRewardMiddleware, create_agent_search
from vprm_search.graph import without_pictures
from vprm_search.images import ImageIntake, image_message
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


def question(png: bytes = LARGE) -> dict[str, Any]:
    return {"messages": [image_message("How many?", png)]}


def saw_all(model: ScriptedChatModel) -> bool:
    """Whether each call was shown the question's picture and those that tools had shown by then."""

    def expected(messages: list[BaseMessage]) -> int:
        return 1 + sum(isinstance(message, ToolMessage) for message in messages)

    return all(len(images_of(c.messages)) == expected(c.messages) for c in model.calls) and all(
        "vprm-image" not in repr(c.messages) for c in model.calls
    )


def watched(saver: BaseCheckpointSaver[Any], seen: list[int]) -> Any:
    """Have what is serialized for `saver` looked at, and for no other saver."""
    saver.serde = copy.copy(saver.serde)  # savers share one
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
    assert len(written) > 50
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
    _, search = parts()
    with traced_by_opentelemetry() as spans:
        await search.compile().ainvoke(question())
    told = [text for _, text in spans]
    assert len(told) > 30
    assert pictures_in("".join(told), LARGE) == 0
    assert sum(map(len, told)) < 1.2 * len(LARGE)


def copies(text: str) -> int:
    """Count the copies of the question's picture, and of no other."""
    return text.count(base64.b64encode(PNG).decode()[3000:3200])


def names(collector: Collector) -> set[str]:
    """Return the names of the runs whose inputs or outputs hold the question's picture."""
    named: dict[str, str] = {}
    shown: set[str] = set()
    for run, field, data in collector.parts():
        if not field:
            named[run] = data.get("name") or named[run]
        elif copies(json.dumps(data)):
            shown.add(run)
    return {named[run] for run in shown}


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
async def test_the_candidates_of_a_middleware_send_no_picture(mode: str) -> None:
    async def told(**options: Any) -> Collector:
        agent = create_agent(ScriptedChatModel(look), [crop], **options)
        with traced() as collector:
            if mode == "invoke":
                agent.invoke(question(PNG))
            else:
                await agent.ainvoke(question(PNG))
        return collector

    alone = await told()
    chosen = await told(middleware=[ProcessRewardMiddleware(SCORER, n=4)])
    assert len(chosen.fields()) > len(alone.fields())
    # the agent's own nodes are LangChain's, and traced with their state
    assert names(alone) == {"LangGraph", "model", "ScriptedChatModel"}
    assert names(chosen) == {"LangGraph", "model"}


def once(request: Any) -> bool:
    return not any(isinstance(message, ToolMessage) for message in request.messages)


@pytest.mark.parametrize(("mode", "when"), [("invoke", once), ("ainvoke", None)])
async def test_an_agent_whose_pictures_are_moved_out_sends_none(mode: str, when: Any) -> None:
    store = MemoryImageStore()
    chooser = ProcessRewardMiddleware(SCORER, n=4, when=when, image_store=store)
    model = ScriptedChatModel(look)
    agent: Any = create_agent(model, [crop], middleware=[chooser], checkpointer=InMemorySaver())
    light = ImageIntake(store).lighten(question(PNG))
    with traced() as collector:
        if mode == "invoke":
            state = agent.invoke(light, THREAD)
        else:
            state = await agent.ainvoke(light, THREAD)
    assert state["vprm_verdicts"][0]["outcome"] == "scored"
    assert saw_all(model)
    assert copies(collector.text) == copies(repr(state)) == 0
    assert "vprm-image://" in repr(state)


@pytest.mark.parametrize("to", ["langsmith", "opentelemetry"])
def test_a_client_with_our_rule_sends_no_picture_of_anybodys_run(to: str) -> None:
    def run() -> None:
        model = ScriptedChatModel(look)
        chooser = ProcessRewardMiddleware(SCORER, n=2)
        create_agent(model, [crop], middleware=[chooser]).invoke(question(PNG))
        prompt = ChatPromptTemplate.from_messages([("placeholder", "{said}")])
        (prompt | model).invoke({"said": question(PNG)["messages"]})
        url = {"url": data_uri(PNG)}
        said = [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]
        (prompt | model).invoke({"said": said})

    rule = {"anonymizer": without_pictures}
    if to == "langsmith":
        with traced(**rule) as collector:
            run()
        assert len(collector.parts()) > 50
        text = collector.text
    else:
        with traced_by_opentelemetry(**rule) as spans:
            run()
        assert len(spans) > 20
        text = "".join(told for _, told in spans)
    assert pictures_in(text) == 0  # nor of any other PNG
    assert "vprm-image://" in text


def request(png: bytes) -> dict[str, Any]:
    """Return a request about a call that looks at the picture."""
    from langchain_core.decisions import Noul

    asked = image_message("How many?", png)
    call = {"name": "crop", "args": {"part": 1}, "id": "1"}
    state = {"messages": [asked, AIMessage("", tool_calls=[call])], "tool_call": call}
    return {"state": state, "questions": {"wrong": Noul(instructions="Is it wrong?")}}


async def decide(way: str, scorer: ScriptedScorer) -> Any:
    from vprm_search.agents import VPRMDecisionModel

    model = VPRMDecisionModel(scorer=scorer, image_store=MemoryImageStore())
    if way == "invoke":
        return model.invoke(request(PNG))
    if way == "ainvoke":
        return await model.ainvoke(request(PNG))
    if way == "batch":
        return model.batch([request(PNG)])[0]
    if way == "abatch":
        return (await model.abatch([request(PNG)]))[0]
    return [part async for part in model.astream(request(PNG))][-1]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch", "astream"])
async def test_a_decision_sends_no_picture(way: str) -> None:
    pytest.importorskip("langchain_core.decisions", reason="core 1.8 and newer")
    shown: list[int] = []

    def seen(asked: Any) -> float:
        shown.append(len(asked.images))
        return 0.9

    with traced() as collector:
        answer = await decide(way, ScriptedScorer(seen))
    assert answer.answers["wrong"].noul == pytest.approx(0.1)
    assert shown == [1]
    runs = [data for _, name, data in collector.parts() if not name]
    assert {run["name"] for run in runs if "name" in run} == {"VPRMDecisionModel"}
    assert copies(collector.text) == pictures_in(collector.text) == 0
    assert "vprm-image://" in collector.text
    assert collector.bytes_sent < 1.2 * len(PNG)


async def test_nor_does_a_decision_to_opentelemetry() -> None:
    pytest.importorskip("langchain_core.decisions", reason="core 1.8 and newer")
    with traced_by_opentelemetry() as spans:
        await decide("ainvoke", ScriptedScorer(lambda request: 0.9))
    assert [name for name, _ in spans] == ["VPRMDecisionModel"]
    text = spans[0][1]
    assert copies(text) == pictures_in(text) == 0
    assert "vprm-image://" in text
