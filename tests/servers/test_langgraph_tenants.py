"""Two clients of one LangGraph server, each with a key: neither finds anything of the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

pytest.importorskip("langgraph_api", reason="needs langgraph-cli[inmem]: make test-servers")

from langgraph_sdk import get_client

from tests.servers.langgraph_dev import asked, langgraph_dev

NAME = "vprm_search"
KEYS = {"ann": "a-key", "bob": "b-key"}
PAUSED = {"n": 2, "ask_below": 1.0}


@dataclass
class Running:
    """A server, and what Ann has there: a paused thread, its run, schedules and an item."""

    url: str
    thread: str
    run: str
    checkpoint: dict[str, Any]
    crons: list[str]

    def client(self, name: str) -> Any:
        return client_of(self.url, name)


def client_of(url: str, name: str) -> Any:
    return get_client(url=url, headers={"Authorization": f"Bearer {KEYS[name]}"}, api_key=None)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = {"VPRM_SEARCH_SERVER_TENANTS": json.dumps(KEYS)}
    with langgraph_dev(tmp_path_factory.mktemp("app"), **keys) as url:

        async def begin() -> Running:
            ann = client_of(url, "ann")
            thread = (await ann.threads.create())["thread_id"]
            await ann.runs.wait(thread, NAME, input=asked(), context=PAUSED)
            state = await ann.threads.get_state(thread)
            assert state["next"] == ["review"]
            (run,) = await ann.runs.list(thread)
            await ann.store.put_item(["notes"], "secret", {"text": "canary"})
            never = {"schedule": "0 0 1 1 *", "input": asked()}
            crons = [
                await ann.crons.create_for_thread(thread, NAME, **never),
                await ann.crons.create(NAME, **never),
            ]
            numbers = [cron["cron_id"] for cron in crons]
            return Running(url, thread, run["run_id"], state["checkpoint"], numbers)

        yield asyncio.run(begin())


Act = Callable[[Any, Running], Awaitable[Any]]
GONE = (404, 409)


def join(client: Any, at: Running) -> Any:
    async def joined() -> list[Any]:
        parts = [part async for part in client.runs.join_stream(at.thread, at.run)]
        assert all(part.event == "error" for part in parts)
        return []

    return joined()


REFUSED: dict[str, Act] = {
    "get": lambda c, at: c.threads.get(at.thread),
    "state": lambda c, at: c.threads.get_state(at.thread),
    "state at a checkpoint": lambda c, at: c.threads.get_state(at.thread, at.checkpoint),
    "history": lambda c, at: c.threads.get_history(at.thread),
    "copy": lambda c, at: c.threads.copy(at.thread),
    "delete": lambda c, at: c.threads.delete(at.thread),
    "prune": lambda c, at: c.threads.prune([at.thread]),
    "take over": lambda c, at: c.threads.update(at.thread, metadata={"vprm_owner": "tenant:bob"}),
    "write": lambda c, at: c.threads.update_state(at.thread, {"question": "x"}),
    "make it again": lambda c, at: c.threads.create(thread_id=at.thread, if_exists="do_nothing"),
    "runs": lambda c, at: c.runs.list(at.thread),
    "run": lambda c, at: c.runs.get(at.thread, at.run),
    "wait for a run": lambda c, at: c.runs.join(at.thread, at.run),
    "delete a run": lambda c, at: c.runs.delete(at.thread, at.run),
    "cancel": lambda c, at: c.runs.cancel(at.thread, at.run),
    "cancel all": lambda c, at: c.runs.cancel_many(status="all"),
    "resume": lambda c, at: c.runs.wait(
        at.thread, NAME, command={"resume": "x"}, if_not_exists="create"
    ),
    "fork": lambda c, at: c.runs.wait(at.thread, NAME, input=None, checkpoint=at.checkpoint),
    "delete a schedule": lambda c, at: c.crons.delete(at.crons[1]),
    "change a schedule": lambda c, at: c.crons.update(at.crons[0], enabled=False),
    "schedule on it": lambda c, at: c.crons.create_for_thread(
        at.thread, NAME, schedule="0 0 1 1 *", input=asked()
    ),
}

NOTHING: dict[str, Act] = {
    "search": lambda c, at: c.threads.search(),
    "search by id": lambda c, at: c.threads.search(ids=[at.thread]),
    "search by owner": lambda c, at: c.threads.search(metadata={"vprm_owner": "tenant:ann"}),
    "count": lambda c, at: c.threads.count(),
    "stream of a run": join,
    "schedules": lambda c, at: c.crons.search(),
    "schedules of the thread": lambda c, at: c.crons.search(thread_id=at.thread),
    "count schedules": lambda c, at: c.crons.count(),
    "item": lambda c, at: c.store.get_item(["notes"], "secret"),
    "item by owner": lambda c, at: c.store.get_item(["tenant:ann", "notes"], "secret"),
    "delete the item": lambda c, at: c.store.delete_item(["notes"], "secret"),
    "items": lambda c, at: items_of(c, []),
    "items by owner": lambda c, at: items_of(c, ["tenant:ann"]),
}


async def items_of(client: Any, place: list[str]) -> Any:
    found = await client.store.search_items(place)
    spaces = await client.store.list_namespaces(prefix=place)
    return found["items"] + [space for space in spaces["namespaces"] if space[0] != "tenant:bob"]


@pytest.mark.parametrize("act", REFUSED.values(), ids=REFUSED)
async def test_what_is_anothers_is_not_there(act: Act, running: Running) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        await act(running.client("bob"), running)
    assert refused.value.response.status_code in GONE


@pytest.mark.parametrize("act", NOTHING.values(), ids=NOTHING)
async def test_what_is_anothers_is_not_found(act: Act, running: Running) -> None:
    assert not await act(running.client("bob"), running)


@pytest.mark.parametrize("own_thread", [True, False])
@pytest.mark.parametrize("how", ["checkpoint", "configurable"])
async def test_nobody_forks_anothers_thread_through_a_run_of_his_own(
    own_thread: bool, how: str, running: Running
) -> None:
    bob = running.client("bob")
    thread = (await bob.threads.create())["thread_id"] if own_thread else None
    place = {**running.checkpoint, "thread_id": running.thread}
    given: Any = (
        {"checkpoint": place} if how == "checkpoint" else {"config": {"configurable": place}}
    )
    found = await bob.runs.wait(thread, NAME, input=None, raise_error=False, **given)
    assert found["__error__"]["error"] == "EmptyInputError"  # it began with nothing
    if thread:
        assert (await bob.threads.get_state(thread))["values"] == {}
        await bob.threads.delete(thread)


async def test_what_bob_marks_as_anns_is_bobs(running: Running) -> None:
    ann, bob = running.client("ann"), running.client("bob")
    marked = {"vprm_owner": "tenant:ann"}
    thread = await bob.threads.create(metadata=marked)
    await bob.threads.update(thread["thread_id"], metadata=marked)
    await bob.runs.wait(thread["thread_id"], NAME, input=asked(), context=PAUSED, metadata=marked)
    assert (await bob.threads.get(thread["thread_id"]))["metadata"]["vprm_owner"] == "tenant:bob"
    assert await ann.threads.count() == 1
    await bob.threads.delete(thread["thread_id"])


async def test_a_run_under_way_is_its_clients_to_cancel(running: Running) -> None:
    ann, bob = running.client("ann"), running.client("bob")
    thread = (await ann.threads.create())["thread_id"]
    run = await ann.runs.create(thread, NAME, input=asked(), context={"n": 64})
    for act in (
        lambda: bob.runs.cancel(thread, run["run_id"]),
        lambda: bob.runs.cancel_many(status="all"),
        lambda: bob.runs.cancel_many(thread_id=thread, run_ids=[run["run_id"]]),
    ):
        with pytest.raises(httpx.HTTPStatusError):
            await act()
    assert (await ann.runs.get(thread, run["run_id"]))["status"] != "interrupted"
    with contextlib.suppress(httpx.HTTPStatusError):  # a fast machine was quicker
        await ann.runs.cancel(thread, run["run_id"], wait=True)
    await ann.threads.delete(thread)


async def test_graphs_are_for_all_and_for_nobody_to_change(running: Running) -> None:
    bob = running.client("bob")
    (assistant,) = await bob.assistants.search()
    number = assistant["assistant_id"]
    for change in (
        bob.assistants.create(NAME),
        bob.assistants.update(number, name="x"),
        bob.assistants.delete(number),
    ):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            await change
        assert refused.value.response.status_code == 403


HEADERS: list[list[tuple[str, str]]] = [
    [],
    [("authorization", "Bearer wrong")],
    [("authorization", "Bearer")],
    [("authorization", KEYS["ann"])],
    [("x-api-key", KEYS["ann"])],
    [("x-auth-scheme", "langsmith")],  # what Studio sends: a way around, unless it is closed
    [("x-auth-scheme", "langsmith"), ("authorization", "Bearer wrong")],
]


@pytest.mark.parametrize("headers", HEADERS, ids=str)
async def test_nobody_comes_in_without_a_key(
    headers: list[tuple[str, str]], running: Running
) -> None:
    async with httpx.AsyncClient(base_url=running.url, headers=headers) as client:
        for method, path in (
            ("POST", "/threads/search"),
            ("GET", f"/threads/{running.thread}/state"),
            ("POST", "/runs/wait"),
            ("POST", "/store/items/search"),
            ("POST", "/assistants/search"),
            ("POST", "/mcp"),
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
            ("GET", "/noauth/threads/search"),
        ):
            reply = await client.request(method, path, json={} if method == "POST" else None)
            assert reply.status_code == 401, path
        assert (await client.get("/ok")).status_code == 200


@pytest.mark.parametrize("name", ["ann", "bob"])
async def test_each_key_opens_the_mounted_routes_too(name: str, running: Running) -> None:
    given = asked()
    image = {"type": "image_url", "image_url": {"url": given["images"][0]}}
    said: Any = [{"role": "user", "content": [image, {"type": "text", "text": given["question"]}]}]
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEYS[name]) as client:
        reply: Any = await client.chat.completions.create(
            model="vprm-search", messages=said, extra_body={"vprm": {"n": 2}}
        )
        with pytest.raises(openai.NotFoundError, match="there are: vprm-search"):
            await client.chat.completions.create(model="other", messages=said)
    assert reply.model_extra["vprm"]["answer"]
    call = {"name": "vprm-search", "arguments": given}
    headers = {
        "authorization": f"Bearer {KEYS[name]}",
        "accept": "application/json, text/event-stream",
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    async with httpx.AsyncClient(timeout=60) as plain:
        answer = (await plain.post(f"{running.url}/mcp", json=body, headers=headers)).json()
    assert "'answer': '" in answer["result"]["content"][0]["text"]
    count = await running.client(name).threads.count()
    assert count == (1 if name == "ann" else 0)  # neither leaves a thread


@pytest.mark.parametrize(
    "address",
    ["http://169.254.169.254/", "https://example.com/", "/threads", "http://localhost:1/"],
)
async def test_no_address_of_a_client_is_called(address: str, running: Running) -> None:
    bob = running.client("bob")
    with pytest.raises(httpx.HTTPStatusError) as refused:
        await bob.runs.wait(None, NAME, input=asked(), webhook=address)
    assert refused.value.response.status_code == 422


async def test_bodies_are_bounded_on_every_route(running: Running) -> None:
    headers = {"authorization": f"Bearer {KEYS['bob']}"}
    async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=60) as client:
        for path in ("/threads", "/mcp", "/v1/chat/completions"):
            assert (await client.post(path, content=b"x" * 64_000_001)).status_code == 413


async def test_the_servers_own_refusals_keep_their_status(running: Running) -> None:
    """They were once answered by the mounted routes."""
    headers = {"authorization": f"Bearer {KEYS['ann']}"}
    async with httpx.AsyncClient(base_url=running.url, headers=headers) as client:
        missing = await client.get("/threads/0190a0a0-0000-7000-8000-000000000000")
        wrong = await client.post("/threads", json={"metadata": "x"})
    assert (missing.status_code, wrong.status_code) == (404, 422)
    assert "not found" in missing.json()["detail"]


async def test_at_the_end_all_of_it_is_still_there(running: Running) -> None:
    ann = running.client("ann")
    state = await ann.threads.get_state(running.thread)
    assert state["checkpoint"] == running.checkpoint
    assert len(await ann.runs.list(running.thread)) == 1
    assert {cron["cron_id"] for cron in await ann.crons.search()} == set(running.crons)
    assert (await ann.store.get_item(["notes"], "secret"))["value"] == {"text": "canary"}
    found: Any = await ann.runs.wait(
        running.thread, NAME, command={"resume": "seven"}, context=PAUSED
    )
    assert found["answer"] == "seven"
