"""The OpenAI-compatible server, called by the official client, by ChatOpenAI and by hand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from PIL import Image
from pydantic import BaseModel

from tests.servers.serving import served
from vprm_search import GuidedChatModel
from vprm_search.cli.proxy import load_models, read_proxy_file
from vprm_search.errors import ConfigError
from vprm_search.search import BestOfN
from vprm_search.servers.openai_server import OpenAILimits, create_openai_app
from vprm_search.testing import ScriptedChatModel, ScriptedPolicy, ScriptedScorer
from vprm_search.tiny.world import generate, render

SCRIPT = ["The left bar is 3.", "The right bar is 4.", "Answer: 7"]
WHOLE = "\n\n".join(SCRIPT)


def png(side: int = 8) -> str:
    data = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def picture_question() -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": png(), "detail": "high"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "3 + 4?"}]}]


def say(request: Any, seed: int) -> str:
    """Every third candidate is wrong."""
    return WHOLE.replace("7", "8") if seed % 3 == 0 else WHOLE


def guided(**options: Any) -> GuidedChatModel:
    scorer = ScriptedScorer(lambda request: 0.2 if "8" in request.steps[-1] else 0.9)
    given = {"policy": ScriptedPolicy(say), "scorer": scorer, "strategy": BestOfN(n=4), **options}
    return GuidedChatModel(**given)


@asynccontextmanager
async def official(app: Any, key: str = "none") -> AsyncIterator[Any]:
    async with served(app) as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        async with client:
            yield client


# --- the official client -------------------------------------------------------------------------


async def test_the_official_client_gets_an_answer_about_a_picture() -> None:
    async with official(create_openai_app({"m": guided()})) as client:
        reply = await client.chat.completions.create(model="m", messages=picture_question())
        listed = await client.models.list()
        shown = await client.models.retrieve("m")
    assert [model.id for model in listed.data] == ["m"]
    assert shown.id == "m"
    (choice,) = reply.choices
    assert choice.message.content == WHOLE
    assert choice.finish_reason == "stop"
    assert reply.usage.completion_tokens == 4 * len(WHOLE.split())
    told = reply.model_extra["vprm"]
    assert told["answer"] == "7"
    assert told["score"] == pytest.approx(0.9)


async def test_a_stream_tells_of_the_search_and_then_answers() -> None:
    app = create_openai_app({"m": guided(progress=True)})
    async with official(app) as client:
        stream = await client.chat.completions.create(
            model="m",
            messages=picture_question(),
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    reasoning = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
    assert reasoning.startswith("Round 1: 4 candidates.")
    assert "".join(delta.content or "" for delta in deltas) == WHOLE
    assert deltas[0].role == "assistant"
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert ends == [None] * (len(ends) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_n_choices_are_the_best_candidates(stream: bool) -> None:
    async with official(create_openai_app({"m": guided()})) as client:
        made = await client.chat.completions.create(
            model="m", messages=picture_question(), n=2, stream=stream
        )
        if stream:
            texts: dict[int, str] = {}
            async for chunk in made:
                for choice in chunk.choices:
                    said = choice.delta.content or ""
                    texts[choice.index] = texts.get(choice.index, "") + said
            assert texts == {0: WHOLE, 1: WHOLE}
        else:
            assert [choice.message.content for choice in made.choices] == [WHOLE, WHOLE]


async def test_a_request_chooses_its_own_search() -> None:
    policy = ScriptedPolicy(say)
    async with official(create_openai_app({"m": guided(policy=policy)})) as client:
        await client.chat.completions.create(
            model="m",
            messages=picture_question(),
            extra_body={"vprm": {"n": 7, "strategy": "best-of-n"}},
        )
    assert sum(len(request.seeds) for request in policy.asked) == 7


# --- errors --------------------------------------------------------------------------------------

BAD = [
    ({"model": "nosuch"}, 404, "the model 'nosuch' does not exist; there are: m"),
    ({"messages": []}, 400, "messages: List should have at least 1 item"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages: "),
    ({"n": 65}, 400, "n is 65; at most 64 here"),
    ({"logprobs": True}, 400, "logprobs are not served"),
    ({"vprm": {"n": 65}}, 400, "vprm.n is 65"),
    ({"vprm": {"strategy": "exhaustive"}}, 400, "'exhaustive' is not known; one of best-of-n"),
    ({"vprm": {"width": 3}}, 400, "vprm.width: Extra inputs are not permitted"),
    ({"messages": [{"role": "assistant", "content": "hello"}]}, 400, ""),
    (
        {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}]},
        400,
        "never fetched",
    ),
    (
        {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
        400,
        "",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "said"), BAD)
async def test_what_is_wrong_is_said_where_clients_read_it(
    change: dict[str, Any], status: int, said: str
) -> None:
    async with official(create_openai_app({"m": guided()})) as client:
        request = {"model": "m", "messages": picture_question(), **change}
        with pytest.raises(openai.APIStatusError) as raised:
            await client.post("/chat/completions", body=request, cast_to=object)
    assert raised.value.status_code == status
    assert said in raised.value.body["message"]
    assert raised.value.response.headers["x-request-id"]


async def test_other_routes_answer_404_with_a_sentence() -> None:
    async with official(create_openai_app({"m": guided()})) as client:
        with pytest.raises(openai.NotFoundError, match="use /v1/chat/completions"):
            await client.responses.create(model="m", input="x")
        with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings is not served"):
            await client.embeddings.create(model="m", input="x")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_policy_is_one_error_that_clients_do_not_repeat(stream: bool) -> None:
    policy = ScriptedPolicy(lambda request, seed: ConnectionError("refused sk-verysecret123"))
    async with served(create_openai_app({"m": guided(policy=policy)})) as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2)

        async def ask() -> None:
            made = await client.chat.completions.create(
                model="m", messages=picture_question(), stream=stream
            )
            if stream:
                async for _ in made:
                    pass

        with pytest.raises(openai.APIError) as raised:
            await ask()
        await client.close()
    assert "verysecret" not in str(raised.value)
    assert sum(len(request.seeds) for request in policy.asked) == 4  # one search, not three


async def test_keys_and_sizes() -> None:
    limits = OpenAILimits(max_body_bytes=2_000)
    app = create_openai_app({"m": guided()}, limits=limits, keys=("one", "two"))
    async with served(app) as url:
        for key in ("one", "two"):
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
            assert (await client.models.list()).data
            await client.close()
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="three", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            await client.models.list()
        await client.close()
        async with httpx.AsyncClient() as plain:
            assert (await plain.get(f"{url}/health")).status_code == 200
            headers = {"authorization": "Bearer one"}
            large = await plain.post(
                f"{url}/v1/chat/completions", content=b"x" * 2_001, headers=headers
            )
    assert large.status_code == 413


async def test_too_many_at_once_are_asked_to_come_back() -> None:
    policy = ScriptedPolicy(say, delay_s=0.3)
    limits = OpenAILimits(max_searches=1, max_waiting=1)
    app = create_openai_app({"m": guided(policy=policy)}, limits=limits)
    async with official(app) as client:
        calls = [
            client.chat.completions.create(model="m", messages=picture_question()) for _ in range(4)
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert len(refused) == 2
    assert refused[0].response.headers["retry-after"]
    assert policy.most_running == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_its_search(stream: bool) -> None:
    policy = ScriptedPolicy(say, delay_s=60)
    async with served(create_openai_app({"m": guided(policy=policy)})) as url:
        body = {"model": "m", "messages": picture_question(), "stream": stream}
        async with httpx.AsyncClient() as client:
            post = client.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            call = asyncio.ensure_future(post)
            while not policy.running:  # noqa: ASYNC110 - a plain counter
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        for _ in range(200):
            if not policy.running:
                break
            await asyncio.sleep(0.01)
        assert policy.running == 0
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/health")).json()["searches"] == 0


async def test_a_silent_search_keeps_its_stream_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vprm_search.servers.openai_server._KEEP_ALIVE_S", 0.05)
    app = create_openai_app({"m": guided(policy=ScriptedPolicy(say, delay_s=0.3))})
    body = {"model": "m", "messages": picture_question(), "stream": True}
    async with served(app) as url, httpx.AsyncClient() as client:
        reply = await client.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    lines = [line for line in reply.text.split("\n\n") if line]
    assert ": searching" in lines
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith(("data: ", ": ")) for line in lines)  # no named event


def test_a_server_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        create_openai_app({})


# --- ChatOpenAI, tools and structured output -----------------------------------------------------


class Sum(BaseModel):
    """A sum."""

    total: int


CALL = {"name": "add", "args": {"a": 3, "b": 4}, "id": "call_1", "type": "tool_call"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}


@asynccontextmanager
async def chat_openai(app: Any, **options: Any) -> AsyncIterator[ChatOpenAI]:
    async with served(app) as url:
        yield ChatOpenAI(model="m", base_url=f"{url}/v1", api_key="none", max_retries=0, **options)


async def test_chat_openai_invokes_and_streams() -> None:
    async with chat_openai(create_openai_app({"m": guided(progress=True)})) as model:
        question = HumanMessage(picture_question()[0]["content"])
        answer = await model.ainvoke([question])
        pieces = [piece.content async for piece in model.astream([question])]
    assert answer.content == WHOLE
    assert answer.usage_metadata is not None
    assert "".join(pieces) == WHOLE


async def test_tools_are_passed_through_and_calls_come_back() -> None:
    asked: list[Any] = []

    def call(given: Any) -> AIMessage:
        asked.append(given.options)
        return AIMessage("", tool_calls=[CALL])

    model = guided(policy=ScriptedChatModel(call))
    async with chat_openai(create_openai_app({"m": model})) as chat:
        bound = chat.bind_tools([ADD], tool_choice="auto")
        answer = await bound.ainvoke("3 + 4?")
        streamed: Any = None
        async for piece in bound.astream("3 + 4?"):
            streamed = piece if streamed is None else streamed + piece
        after = [
            HumanMessage("3 + 4?"), answer, ToolMessage("7", tool_call_id="call_1", name="add")
        ]  # fmt: skip
        await chat.ainvoke(after)
    assert answer.tool_calls == [CALL]
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert streamed.tool_calls == [CALL]
    assert asked[0]["tools"][0]["function"]["name"] == "add"


async def test_structured_output() -> None:
    model = guided(policy=ScriptedChatModel(lambda given: '{"total": 7}'))
    async with chat_openai(create_openai_app({"m": model})) as chat:
        reader = chat.with_structured_output(Sum)
        assert await reader.ainvoke("3 + 4?") == Sum(total=7)


# --- the command ---------------------------------------------------------------------------------


def test_a_file_names_models(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(
        "models:\n  fast: {strategy: best-of-n, n: 4}\n  good: {policy: tiny, n: 8}\n"
        "limits: {max_n: 32}\n"
    )
    read = read_proxy_file(file)
    models = load_models(read, None)
    assert list(models) == ["fast", "good"]
    assert models["fast"].strategy == BestOfN(n=4)
    assert models["fast"].scorer is models["good"].scorer
    for text, said in (
        ("models: {}", "models"),
        ("- a", "holds no mapping"),
        ("models: {m: {widht: 3}}", "widht"),
        ("models: {m: {n: 0}}", "models.m.n"),
        ("models: {m: [", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_proxy_file(file)
    file.write_text("models: {m: {strategy: nosuch}}")
    with pytest.raises(ConfigError, match="one of best-of-n, auto"):
        load_models(read_proxy_file(file), None)


@pytest.mark.slow
async def test_the_command_serves_the_packaged_models(tmp_path: Path) -> None:
    problem = generate("tiles", "test", 3)
    data = io.BytesIO()
    render(problem).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}},
               {"type": "text", "text": problem.question}]  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = "from vprm_search.cli import main; main()"
    command = [sys.executable, "-c", run, "proxy", "--port", str(port), "--api-key", "k"]
    process = subprocess.Popen(command)  # noqa: ASYNC220 - it is only started
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0)
    try:
        for _ in range(600):
            try:
                await client.models.list()
                break
            except openai.APIConnectionError:
                await asyncio.sleep(0.2)
        reply = await client.chat.completions.create(
            model="vprm-search", messages=[{"role": "user", "content": content}]
        )
    finally:
        await client.close()
        process.terminate()
        process.wait(30)
    assert reply.model_extra["vprm"]["answer"] in reply.choices[0].message.content


# --- clients of other makers ---------------------------------------------------------------------


def two_models() -> Any:
    caller = guided(policy=ScriptedChatModel(lambda given: AIMessage("", tool_calls=[CALL])))
    return create_openai_app({"m": guided(progress=True), "tools": caller})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm")
async def test_vercels_ai_sdk(tmp_path: Path) -> None:
    for file in (Path(__file__).parent / "ai_sdk").iterdir():
        shutil.copy(file, tmp_path)
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent"]
    await asyncio.to_thread(subprocess.run, install, cwd=tmp_path, check=True, timeout=300)
    async with served(two_models()) as url:
        node = await asyncio.create_subprocess_exec(
            "node", "client.mjs", f"{url}/v1", png(), cwd=tmp_path, stdout=subprocess.PIPE
        )
        said, _ = await node.communicate()
    told = json.loads(said)
    assert told["whole"] == told["text"] == WHOLE
    assert told["finish"] == "stop"
    assert told["reasoning"].startswith("Round 1: 4 candidates.")
    assert told["errors"] == []
    assert told["total"] > 0
    assert told["calls"] == [["add", {"a": 3, "b": 4}]]
    assert "there are: m, tools" in told["refused"]


async def test_litellm() -> None:
    litellm = pytest.importorskip("litellm", reason="make test-clients installs it")
    given = {"messages": picture_question(), "api_key": "none", "num_retries": 0}
    async with served(two_models()) as url:
        given["api_base"] = f"{url}/v1"
        reply = await litellm.acompletion("openai/m", extra_body={"vprm": {"n": 3}}, **given)
        stream = await litellm.acompletion("openai/m", stream=True, **given)
        deltas = [chunk.choices[0].delta async for chunk in stream]
        with pytest.raises(litellm.NotFoundError, match="there are: m, tools"):
            await litellm.acompletion("openai/nosuch", **given)
    assert reply.choices[0].message.content == WHOLE
    assert "".join(delta.content or "" for delta in deltas) == WHOLE
    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert reasoning.startswith("Round 1: 4 candidates.")
