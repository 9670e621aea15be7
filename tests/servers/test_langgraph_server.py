"""`integrations/langgraph_server` under `langgraph dev`, called through LangGraph's own SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

pytest.importorskip("langgraph_api", reason="needs langgraph-cli[inmem]: make test-servers")

from langgraph_sdk import get_client

from tests.servers.langgraph_dev import asked, langgraph_dev

NAME = "vprm_search"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with langgraph_dev(tmp_path_factory.mktemp("app")) as url:
        yield url


async def test_studio_sees_a_form(server: str) -> None:
    client = get_client(url=server)
    (assistant,) = await client.assistants.search(graph_id=NAME)
    schemas = await client.assistants.get_schemas(assistant["assistant_id"])
    assert set(schemas["input_schema"]["properties"]) == {"question", "images", "messages"}
    assert set(schemas["output_schema"]["properties"]) == {"answer", "solution", "score", "warning"}
    for name in ("input_schema", "output_schema", "context_schema"):
        for key, field in schemas[name]["properties"].items():
            assert field.get("title") or "anyOf" in field or field.get("type"), (name, key)
            assert field["description"], (name, key)
    form = schemas["context_schema"]["properties"]
    defaults = {key: field["default"] for key, field in form.items()}
    assert defaults == {"strategy": "auto", "n": 16, "max_seconds": 300, "ask_below": 0}
    assert all(field["title"] for field in form.values())
    assert (form["n"]["minimum"], form["n"]["maximum"]) == (1, 64)
    assert form["strategy"]["enum"][0] == "auto"
    assert not schemas["context_schema"].get("required")
    drawn = await client.assistants.get_graph(assistant["assistant_id"], xray=True)
    assert {"intake", "search", "review"} <= {node["id"] for node in drawn["nodes"]}


async def test_a_run_answers(server: str) -> None:
    client = get_client(url=server)
    found: Any = await client.runs.wait(None, NAME, input=asked(), context={"n": 4})
    assert set(found) == {"answer", "solution", "score", "warning"}
    assert found["answer"] in found["solution"]
    assert 0 <= found["score"] <= 1


async def test_search_events_are_streamed_from_the_subgraph(server: str) -> None:
    client = get_client(url=server)
    modes: Any = ["custom", "updates"]
    context = {"n": 4, "strategy": "beam"}
    told = [
        part.data["event"]
        async for part in client.runs.stream(
            None, NAME, input=asked(), context=context, stream_mode=modes, stream_subgraphs=True
        )
        if part.event.startswith("custom|search:")
    ]
    assert told[0] == "round"
    assert {"expanded", "scored", "finished"} <= set(told)
    assert told[-1] == "answer"


async def test_a_bad_setting_and_a_bad_picture_are_said(server: str) -> None:
    client = get_client(url=server)
    for given, said in (
        ({"input": asked(), "context": {"n": 65}}, "less than or equal to 64"),
        ({"input": {"question": "x", "images": ["http://localhost/a.png"]}}, "nothing is fetched"),
        ({"input": {}}, "nothing is asked"),
    ):
        thread = await client.threads.create()
        reply: Any = await client.runs.wait(thread["thread_id"], NAME, raise_error=False, **given)
        assert said in str(reply)


async def test_a_person_is_asked_and_the_run_goes_on(server: str) -> None:
    client = get_client(url=server)
    thread = (await client.threads.create())["thread_id"]
    context = {"n": 4, "ask_below": 1.0}
    await client.runs.wait(thread, NAME, input=asked(), context=context)
    state: Any = await client.threads.get_state(thread)
    (task,) = state["tasks"]
    assert task["interrupts"][0]["value"]["answer"] is not None
    found: Any = await client.runs.wait(thread, NAME, command={"resume": "seven"}, context=context)
    assert found["answer"] == "seven"


async def test_a_run_stops_before_the_search_resumes_and_forks(server: str) -> None:
    client = get_client(url=server)
    thread = (await client.threads.create())["thread_id"]
    context = {"n": 4}
    await client.runs.wait(
        thread, NAME, input=asked(), context=context, interrupt_before=["search"]
    )
    paused: Any = await client.threads.get_state(thread)
    assert paused["next"] == ["search"]
    assert "base64" not in str(paused["values"]["messages"])
    found: Any = await client.runs.wait(thread, NAME, input=None, context=context)
    fork: Any = await client.runs.wait(
        thread, NAME, input=None, context=context, checkpoint=paused["checkpoint"]
    )
    assert found["answer"] is not None
    assert fork["solution"] == found["solution"]  # equal searches draw equally


async def test_a_cancelled_run_ends(server: str) -> None:
    client = get_client(url=server)
    thread = (await client.threads.create())["thread_id"]
    context = {"n": 64, "strategy": "best-of-n"}
    run = await client.runs.create(thread, NAME, input=asked(), context=context)
    await asyncio.sleep(0.3)
    await client.runs.cancel(thread, run["run_id"], wait=True)
    ended: Any = await client.runs.get(thread, run["run_id"])
    assert ended["status"] in ("interrupted", "success")  # a fast machine may have been quicker


async def test_the_graph_is_an_mcp_tool_of_few_arguments(server: str) -> None:
    async with httpx.AsyncClient(timeout=30) as client:
        reply = await client.post(
            f"{server}/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}},
            headers={"accept": "application/json, text/event-stream"},
        )
    (tool,) = reply.json()["result"]["tools"]
    assert set(tool["inputSchema"]["properties"]) == {"question", "images", "messages"}


async def test_openai_clients_are_served_by_the_same_server(server: str) -> None:
    given = asked()
    image = {"type": "image_url", "image_url": {"url": given["images"][0]}}
    content = [image, {"type": "text", "text": given["question"]}]
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none") as client:
        reply: Any = await client.chat.completions.create(
            model="vprm-search",
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
            extra_body={"vprm": {"n": 4}},
        )
    assert reply.model_extra["vprm"]["answer"] in reply.choices[0].message.content
