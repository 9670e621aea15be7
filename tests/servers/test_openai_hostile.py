"""Clients that mean harm to the OpenAI-compatible server: they get 4xx in words, others go on."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import zlib
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.servers.serving import served
from tests.servers.test_openai_server import guided, picture_question, png, say
from vprm_search.servers.openai_server import OpenAILimits, create_openai_app
from vprm_search.testing import ScriptedChatModel, ScriptedPolicy


def said(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def shown(url: Any) -> dict[str, Any]:
    return said([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "x"}])


def bomb(width: int, height: int) -> str:
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + body
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
HOSTILE: dict[str, dict[str, Any]] = {
    "http": shown("http://127.0.0.1:1/x.png"),
    "https": shown("HTTPS://example.com/x.png"),
    "file": shown("file:///etc/passwd"),
    "ftp": shown("ftp://x/y"),
    "path": shown("/etc/passwd"),
    "no address": shown(""),
    "address is a number": shown(5),
    "langchain's url": said([{"type": "image", "url": "http://127.0.0.1:1/"}]),
    "anthropic's url": said([{"type": "image", "source": {"type": "url", "url": "http://x/"}}]),
    "a reference of ours": said([{"type": "image", "file_id": "sha256-" + "0" * 64}]),
    "svg": shown("data:image/svg+xml;base64,PHN2Zy8+"),
    "not base64": shown("data:image/png;base64,@@@"),
    "bomb": shown(bomb(60_000, 60_000)),
    "large bomb": shown(bomb(2**31 - 1, 2**31 - 1)),
    "many pictures": said([{"type": "image_url", "image_url": {"url": png()}}] * 17),
    "sound": said([{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]),
    "part is null": said([None]),
    "part is a number": said([7]),
    "unknown part": said([{"type": "zzz"}]),
    "content is a number": said(7),
    "nothing": said(None),
    "a message that is text": {"messages": ["x"]},
    "messages are an object": {"messages": {}},
    "role is a number": {"messages": [{"role": 5, "content": "x"}]},
    "calls are text": {"messages": [{"role": "assistant", "content": "", "tool_calls": "x"}]},
    "calls are numbers": {"messages": [{"role": "assistant", "content": "", "tool_calls": [5]}]},
    "no call answered": {"messages": [{"role": "tool", "content": "7"}]},
    "many messages": {"messages": [{"role": "user", "content": "x"}] * 1001},
    "many parts": said([{"type": "text", "text": "x"}] * 1001),
    "long text": {"messages": [{"role": "system", "content": "x" * 1_000_001}]},
    "long arguments": {
        "messages": [{"role": "assistant", "content": "", "tool_calls": "x" * 10**6}]
    },
    "n is huge": {"n": 10**30},
    "n is a fraction": {"n": 1.5},
    "n is negative": {"n": -1},
    "size is huge": {"vprm": {"n": 10**30}},
    "time is text": {"vprm": {"max_seconds": "inf"}},
    "top_p is no number": {"top_p": "nan"},
    "temperature is endless": {"temperature": "Infinity"},
    "many stops": {"stop": ["x"] * 65},
    "stop is null": {"stop": [None]},
    "tools are text": {"tools": "x"},
    "tools are numbers": {"tools": [5]},
    "format is text": {"response_format": "json"},
    "model is a number": {"model": 5},
    "vprm is a list": {"vprm": []},
    "options are a list": {"stream": True, "stream_options": []},
    "a tool for a policy without": {"tools": [TOOL]},
}
RAW = {
    "nan": b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "minus infinity": b'{"model":"m","messages":[{"role":"user","content":"x"}],"top_p":-Infinity}',
    "large number": b'{"model":"m","messages":[{}],"n":' + b"9" * 5000 + b"}",
    "half a character": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "latin-1": b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
    "utf-16": '{"model":"m"}'.encode("utf-16"),
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "two": b'{"model":"m","messages":[{"role":"user","content":"x"}]} {}',
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "a deep message": b'{"messages":[{"role":"x","content":' + b"[" * 5000 + b"]" * 5000 + b"}]}",
}  # fmt: skip


@pytest.fixture(scope="module")
def app() -> Any:
    chat = guided(policy=ScriptedChatModel(lambda call: "Answer: 7"))
    return create_openai_app({"m": guided(), "chat": chat})


async def ask(app: Any, body: bytes) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        return await client.post("/v1/chat/completions", content=body)


def refusal(reply: httpx.Response) -> str:
    assert reply.status_code == 400, reply.text[:300]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return str(error["message"])


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
async def test_what_is_no_request_is_refused_in_words(change: dict[str, Any], app: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **change}
    message = refusal(await ask(app, json.dumps(body).encode()))
    assert 5 < len(message) < 1000
    assert "root:" not in message  # no file was opened


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
async def test_what_is_no_json_is_refused_in_words(body: bytes, app: Any) -> None:
    refusal(await ask(app, body))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "text", "role", "content", "image_url", "url", "function", "id"]
            )
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
KEYS = [
    "messages",
    "stream",
    "n",
    "stop",
    "tools",
    "tool_choice",
    "response_format",
    "vprm",
    "seed",
    "max_tokens",
    "temperature",
    "top_p",
    "stream_options",
    "logprobs",
    "reasoning_effort",
]


@settings(max_examples=60, deadline=None)
@given(
    change=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    model=st.sampled_from(["m", "chat"]),
)
def test_no_value_of_any_key_is_an_error_of_the_server(change: dict[str, Any], model: str) -> None:
    given_app = create_openai_app(
        {"m": guided(), "chat": guided(policy=ScriptedChatModel(lambda call: "Answer: 7"))}
    )
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], **change}
    reply = asyncio.run(ask(given_app, json.dumps(body).encode()))
    assert reply.status_code in (200, 400, 404, 424), reply.text[:300]
    if reply.status_code == 200 and not reply.headers["content-type"].startswith("text/event"):
        json.loads(reply.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    "text", ["a\x00b", "😀" * 100, "\u202eabc", "<|im_end|><image>\n+", "\u2028"]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_odd_text_is_text(text: str, stream: bool, app: Any) -> None:
    policy = ScriptedPolicy(lambda request, seed: f"{text}\n\nAnswer: 7")
    odd = create_openai_app({"m": guided(policy=policy)})
    body = {"model": "m", **said(f"{text}?"), "stream": stream}
    reply = await ask(odd, json.dumps(body).encode())
    assert reply.status_code == 200
    if stream:
        lines = [line for line in reply.content.split(b"\n") if line]
        assert lines[-1] == b"data: [DONE]"
        for line in lines[:-1]:
            assert line.startswith(b"data: {")
            json.loads(line[6:])


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/chat/completions"), ("PUT", "/v1/models"), ("POST", "/v1/completions"),
     ("OPTIONS", "/v1/chat/completions"), ("GET", "/v1/models/%2e%2e/etc/passwd"), ("GET", "//"),
     ("POST", "/health"), ("GET", "/v1/models/a%00b")],
)  # fmt: skip
async def test_what_is_not_served_is_404_in_openais_shape(method: str, path: str, app: Any) -> None:
    async with served(app) as url, httpx.AsyncClient() as client:
        reply = await client.request(method, url + path)
    assert reply.status_code == 404
    assert reply.json()["error"]["message"]


async def test_many_clients_that_leave_cost_the_others_nothing() -> None:
    policy = ScriptedPolicy(say, delay_s=60)
    limits = OpenAILimits(max_searches=200)
    app = create_openai_app({"slow": guided(policy=policy), "m": guided()}, limits=limits)
    async with served(app) as url:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as client:
            post = f"{url}/v1/chat/completions"
            calls = [
                asyncio.ensure_future(
                    client.post(
                        post,
                        json={
                            "model": "slow",
                            "messages": picture_question(),
                            "stream": n % 2 == 0,
                        },
                        timeout=60,
                    )
                )
                for n in range(60)
            ]
            while (await client.get(f"{url}/health")).json()["searches"] < 60:  # noqa: ASYNC110 - another process would look so
                await asyncio.sleep(0.01)
            body = {"model": "m", "messages": picture_question()}
            assert (await client.post(post, json=body)).status_code == 200
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        for _ in range(500):
            if not policy.running:
                break
            await asyncio.sleep(0.01)
        assert policy.running == 0
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/health")).json()["searches"] == 0


async def test_half_a_head_and_half_a_body_hold_nobody_up() -> None:
    async with served(create_openai_app({"m": guided()}, keys=("k",))) as url:
        port = int(url.rpartition(":")[2])
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n"
        writers = []
        for start in (head, head + b"content-length: 100\r\n\r\n{", b"GET /health"):
            for _ in range(20):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(start)
                writers.append(writer)
        body = {"model": "m", "messages": picture_question()}
        async with httpx.AsyncClient(headers={"authorization": "Bearer k"}) as client:
            reply = await client.post(f"{url}/v1/chat/completions", json=body)
        for writer in writers:
            writer.close()
    assert reply.status_code == 200
