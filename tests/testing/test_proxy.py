"""The proxy passes on what a server says to the letter, and spoils it exactly as told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.json_server import Asked, Reply, json_server
from vprm_search import BestOfN, ChatModelPolicy, MajorityVote, run_search
from vprm_search.chat.calls import RetryRules
from vprm_search.testing import Fault, FaultProxy, ProxiedRequest, SeededFaults

WORDS = [f"word{n} " for n in range(40)]
TEXT = "".join(WORDS) + "Answer: 7"


class Chat:
    """A server that chats, streams events, echoes, and counts what reaches it."""

    url = ""

    def __init__(self) -> None:
        self.reached: list[bytes] = []

    def reply(self, asked: Asked) -> Reply:
        if asked.method != "POST":
            shown = {"path": asked.path, "host": asked.headers["host"]}
            return Reply(b"", 204) if asked.path == "/empty" else Reply(shown)
        self.reached.append(asked.data)
        if asked.path == "/echo":
            return Reply(asked.data)
        if asked.body.get("stream"):
            return Reply(_events(), headers={"Content-Type": "text/event-stream; charset=utf-8"})
        message = {"role": "assistant", "content": TEXT}
        usage = {"prompt_tokens": 3, "completion_tokens": 41, "total_tokens": 44}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Reply(_completion([choice], usage=usage))


def _events() -> Iterator[bytes]:
    for word in [*WORDS, "Answer: 7"]:
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        event = json.dumps(_completion([choice], object="chat.completion.chunk"))
        yield f"data: {event}\n\n".encode()
    yield b"data: [DONE]\n\n"


def _completion(choices: list[Any], **fields: Any) -> dict[str, Any]:
    base = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    return {**base, "choices": choices, **fields}


@pytest.fixture(scope="module")
def server() -> Iterator[Chat]:
    chat = Chat()
    with json_server(chat.reply) as chat.url:
        yield chat


def model_behind(proxy: FaultProxy, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="m",
        base_url=f"{proxy.url}/v1",
        api_key=SecretStr("none"),
        max_retries=0,
        timeout=60,
        **options,
    )


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=4))
@settings(max_examples=20)
def test_without_faults_every_byte_comes_through(server: Chat, bodies: list[bytes]) -> None:
    with FaultProxy(server.url) as proxy, httpx.Client(base_url=proxy.url) as client:
        for body in bodies:  # over one connection
            assert client.post("/echo", content=body).content == body
        assert client.get("/a?b=c").json() == {
            "path": "/a?b=c",
            "host": server.url.removeprefix("http://"),
        }
        assert client.head("/a").headers["content-length"]
        assert client.get("/empty").status_code == 204
    assert [request.body for request, _ in proxy.met][: len(bodies)] == bodies
    assert [request.number for request, _ in proxy.met] == list(range(len(bodies) + 3))


def test_a_large_body_in_chunks_comes_through(server: Chat) -> None:
    body = bytes(range(256)) * 20_000
    pieces = (body[start : start + 70_000] for start in range(0, len(body), 70_000))
    with FaultProxy(server.url) as proxy:
        assert httpx.post(f"{proxy.url}/echo", content=pieces).content == body


async def test_a_chat_model_cannot_tell_the_proxy_from_the_server(server: Chat) -> None:
    with FaultProxy(server.url) as proxy:
        model = model_behind(proxy)
        assert (await model.ainvoke("?")).text == TEXT
        assert "".join([str(c.text) async for c in model.astream("?")]) == TEXT
        assert [m.text for m in await model.abatch(["?"] * 20)] == [TEXT] * 20


BODY = json.dumps({"a": "0123456789" * 30}).encode()  # five pieces of 64 bytes


def post(proxy: FaultProxy, path: str = "/echo", **options: Any) -> httpx.Response:
    with httpx.Client(timeout=options.pop("timeout", 60)) as client:
        return client.post(proxy.url + path, content=BODY, **options)


def test_each_fault_is_what_it_says(server: Chat) -> None:
    faults = [
        Fault("status", status=429, retry_after=1.5),
        Fault("reset"),
        Fault("reset", reaches=True),
        Fault("truncated"),
        Fault("malformed"),
        Fault("late", seconds=0.05),
        Fault("slow", seconds=0.03),
        None,
    ]
    with FaultProxy(server.url, faults) as proxy:
        refused = post(proxy)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1.5")
        assert refused.json()["error"]["code"] == 429
        before = len(server.reached)
        for reaches in (0, 1):
            with pytest.raises(httpx.ReadError):
                post(proxy)
            assert len(server.reached) == before + reaches
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            post(proxy)
        cut = post(proxy)
        assert (cut.status_code, cut.content) == (200, BODY[: len(BODY) // 2])
        with pytest.raises(json.JSONDecodeError):
            cut.json()
        for least in (0.05, 4 * 0.03):
            start = time.monotonic()
            assert post(proxy).content == BODY
            assert time.monotonic() - start >= 0.9 * least  # a timer may fire a tick early
        assert post(proxy).content == BODY
        assert post(proxy).content == BODY  # after the list all goes well
    assert [fault for _, fault in proxy.met] == [*faults, None]


async def test_event_streams_break_event_by_event(server: Chat) -> None:
    with FaultProxy(server.url, [Fault("truncated"), Fault("malformed"), Fault("slow")]) as proxy:
        model = model_behind(proxy)
        heard: list[str] = []

        async def listen() -> None:
            heard.clear()
            async for chunk in model.astream("?"):
                heard.append(str(chunk.text))

        with pytest.raises(openai.APIConnectionError):
            await listen()
        assert 10 < len(heard) < 30
        assert TEXT.startswith("".join(heard))
        with pytest.raises(json.JSONDecodeError):
            await listen()
        assert TEXT.startswith("".join(heard))
        await listen()
        assert "".join(heard) == TEXT


async def test_a_hung_call_ends_with_the_proxy_and_holds_up_no_other(server: Chat) -> None:
    came = asyncio.Event()
    loop = asyncio.get_running_loop()

    def rule(request: ProxiedRequest) -> Fault | None:
        loop.call_soon_threadsafe(came.set)
        return Fault("hang") if request.number == 0 else None

    with FaultProxy(server.url, rule) as proxy:
        async with httpx.AsyncClient(timeout=30) as client:
            hung = asyncio.create_task(client.get(f"{proxy.url}/a"))
            await came.wait()
            assert (await client.get(f"{proxy.url}/b")).status_code == 200
            with pytest.raises(httpx.ReadTimeout):
                await client.get(f"{proxy.url}/c", timeout=0.001)
            assert not hung.done()
            await asyncio.to_thread(proxy.close)
            with pytest.raises(httpx.TransportError):
                await hung
            with pytest.raises(httpx.ConnectError):
                await client.get(proxy.url)


def test_a_server_that_is_not_there_is_a_502_and_a_slow_one_a_504(server: Chat) -> None:
    with FaultProxy("http://127.0.0.1:1") as proxy:
        assert post(proxy).status_code == 502
    with (
        FaultProxy(server.url, [Fault("late", seconds=0.5)]) as slow,
        FaultProxy(slow.url, timeout_s=0.05) as proxy,
    ):
        assert post(proxy).status_code == 504
        assert post(proxy).status_code == 200


@given(st.integers(0, 1000), st.floats(0, 1))
def test_seeded_faults_depend_on_seed_and_number_alone(seed: int, share: float) -> None:
    request = ProxiedRequest(0, "GET", "/", (), b"")
    numbers = range(200)
    rule = SeededFaults(seed, share)
    met = [rule(replace(request, number=n)) for n in numbers]
    other = replace(request, method="POST", path="/x", body=b"y")
    assert met == [SeededFaults(seed, share)(replace(other, number=n)) for n in numbers]
    count = sum(fault is not None for fault in met)
    assert abs(count / 200 - share) < 0.16


def test_faults_meet_only_what_they_are_meant_for(server: Chat) -> None:
    async def rule(request: ProxiedRequest) -> Fault | None:
        return Fault("status", status=500) if request.json().get("a") else None

    with FaultProxy(server.url, rule, only="/echo") as proxy:
        assert httpx.get(f"{proxy.url}/health").status_code == 200
        assert post(proxy).status_code == 500
        assert httpx.post(f"{proxy.url}/echo", content=b"{}").status_code == 200
    assert [request.number for request, _ in proxy.met] == [0, 1]


def test_a_search_survives_a_bad_server(server: Chat) -> None:
    """Whatever a third of the calls meet, the search ends with the answer."""
    retry = RetryRules(max_attempts=6, timeout_s=30, first_wait_s=0.01, longest_wait_s=0.05)
    with FaultProxy(server.url, SeededFaults(seed=4, share=0.4)) as proxy:
        policy = ChatModelPolicy(model_behind(proxy), retry=retry, n_per_call=1)
        run = run_search("?", policy=policy, strategy=BestOfN(24), scorer=None,
                         selector=MajorityVote())  # fmt: skip
    assert run.result.answer == "7"
    failed = [node for node in run.tree if node.status == "failed"]
    assert len(failed) < 12
    kinds = {fault.kind for _, fault in proxy.met if fault is not None}
    assert len(kinds) > 3
