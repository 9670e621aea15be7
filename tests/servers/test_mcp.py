"""The MCP server, called by the official SDK's client (1.x and 2.x) and by LangChain's."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("mcp")

from mcp import ClientSession, StdioServerParameters, stdio_client

from tests.servers.serving import served
from vprm_search.errors import ConfigError
from vprm_search.servers.mcp_server import McpLimits, create_mcp_server, http_app
from vprm_search.testing import ScriptedPolicy, ScriptedScorer

RUN = "from vprm_search.cli import main; main()"
SCRIPT = ["The left bar is 3.", "The right bar is 4.", "Answer: 7"]


def png(side: int = 8, colour: str = "red") -> str:
    data = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def say(request: Any, seed: int) -> str:
    return SCRIPT[min(len(request.steps), 2)] if request.until == "step" else "\n\n".join(SCRIPT)


def server(**options: Any) -> Any:
    return create_mcp_server(ScriptedPolicy(say), ScriptedScorer(lambda request: 0.75), **options)


@asynccontextmanager
async def client_of(made: Any) -> AsyncIterator[Any]:
    """Connect the SDK's client in this process."""
    try:
        from mcp import Client
    except ImportError:
        from mcp.shared.memory import create_connected_server_and_client_session as connected

        async with connected(made) as session:
            yield session
    else:
        async with Client(made) as client:
            yield client


def told(result: Any) -> Any:
    return getattr(result, "structured_content", None) or getattr(result, "structuredContent", None)


def failed(result: Any) -> bool:
    return bool(getattr(result, "is_error", None) or getattr(result, "isError", None))


async def test_a_client_finds_two_tools_of_few_arguments() -> None:
    async with client_of(server()) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"verify_solution", "solve"}
    schema = {n: getattr(t, "input_schema", None) or t.inputSchema for n, t in tools.items()}
    assert set(schema["verify_solution"]["properties"]) == {"question", "steps", "images"}
    assert set(schema["solve"]["properties"]) == {"question", "images", "strategy", "n"}
    assert schema["solve"]["required"] == ["question"]


async def test_verify_solution_gives_every_step_its_probability() -> None:
    arguments = {
        "question": "3 + 4?",
        "steps": SCRIPT,
        "images": [png(), "data:image/png;base64," + png()],
    }
    async with client_of(server()) as client:
        result = await client.call_tool("verify_solution", arguments)
    assert told(result) == {
        "score": 0.75,
        "steps": [{"text": step, "p": 0.75, "reason": ""} for step in SCRIPT],
    }


@pytest.mark.parametrize("strategy", ["auto", "best-of-n", "beam", "particles"])
async def test_solve_answers_and_tells_of_its_progress(strategy: str) -> None:
    heard: list[tuple[float, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    async with client_of(server()) as client:
        arguments = {"question": "3 + 4?", "images": [png()], "strategy": strategy, "n": 4}
        result = await client.call_tool("solve", arguments, progress_callback=hear)
    solved = told(result)
    assert solved["answer"] == "7"
    assert solved["solution"] == "\n\n".join(SCRIPT)
    assert not solved["unfinished"]
    assert solved["candidates"] >= 4
    assert [progress for progress, _ in heard] == sorted({progress for progress, _ in heard})
    assert heard[0][1] is not None
    assert heard[0][1].startswith("round 1: ")


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("solve", {"question": "x", "images": ["/etc/passwd"]}, "base64"),
        ("solve", {"question": "x", "images": ["file:///etc/passwd"]}, "base64"),
        ("solve", {"question": "x", "images": ["http://localhost/a.png"]}, "base64"),
        ("solve", {"question": "x", "images": [base64.b64encode(b"GIF89a").decode()]}, "image"),
        ("solve", {"question": "x", "strategy": "exhaustive"}, "one of auto, best-of-n"),
        ("solve", {"question": "x", "n": 65}, "n is 65; give 1 to 64"),
        ("solve", {"question": " "}, "the question is empty"),
        ("solve", {"question": "x" * 50_001}, "question has 50001 characters"),
        ("solve", {"question": "x", "images": [png()] * 17}, "17 images; at most 16"),
        ("verify_solution", {"question": "x", "steps": []}, "0 steps; give 1 to 128"),
        ("verify_solution", {"question": "x", "steps": ["a"] * 129}, "129 steps"),
        ("verify_solution", {"question": "x", "steps": ["y" * 50_001]}, "step 1 has 50001"),
    ],
)
async def test_what_cannot_be_done_is_said_in_words(
    tool: str, arguments: dict[str, Any], said: str
) -> None:
    async with client_of(server()) as client:
        result = await client.call_tool(tool, arguments)
    assert failed(result)
    assert said in result.content[0].text


async def test_a_client_that_gives_up_ends_its_search() -> None:
    policy = ScriptedPolicy(say, delay_s=30)
    made = create_mcp_server(policy, ScriptedScorer(lambda request: 0.75))
    async with client_of(made) as client:
        call = asyncio.ensure_future(client.call_tool("solve", {"question": "x"}))
        while not policy.running:  # noqa: ASYNC110 - a plain counter
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    for _ in range(100):
        if not policy.running:
            break
        await asyncio.sleep(0.01)
    assert policy.running == 0


async def test_only_so_many_searches_run_side_by_side() -> None:
    policy = ScriptedPolicy(say, delay_s=0.02)
    made = create_mcp_server(
        policy, ScriptedScorer(lambda request: 0.75), limits=McpLimits(max_searches=2)
    )
    async with client_of(made) as client:
        calls = [client.call_tool("solve", {"question": f"{i}?", "n": 2}) for i in range(8)]
        results = await asyncio.gather(*calls)
    assert [told(result)["answer"] for result in results] == ["7"] * 8
    assert policy.most_running <= 2


def test_a_default_size_above_the_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_n, 8"):
        server(n=16, limits=McpLimits(max_n=8))


@pytest.mark.slow
async def test_the_command_serves_the_packaged_models_over_stdio() -> None:
    from vprm_search.tiny.world import generate, render

    problem = generate("tiles", "test", 3)
    data = io.BytesIO()
    render(problem).save(data, "PNG")
    image = base64.b64encode(data.getvalue()).decode()
    command = StdioServerParameters(command=sys.executable, args=["-c", RUN, "mcp"])
    async with stdio_client(command) as streams, ClientSession(*streams) as session:
        await session.initialize()
        solved = told(
            await session.call_tool("solve", {"question": problem.question, "images": [image]})
        )
        steps = solved["solution"].split("\n\n")
        verdict = told(
            await session.call_tool(
                "verify_solution",
                {"question": problem.question, "images": [image], "steps": steps},
            )
        )
    assert solved["answer"]
    assert 0 <= verdict["score"] <= 1
    assert len(verdict["steps"]) == len(steps)


@pytest.mark.slow
async def test_langchain_agents_get_the_tools() -> None:
    pytest.importorskip("mcp.server.fastmcp", reason="langchain-mcp-adapters needs SDK 1.x")
    from langchain_mcp_adapters.client import MultiServerMCPClient

    arguments = ["-c", RUN, "mcp"]
    client = MultiServerMCPClient(
        {"vprm": {"transport": "stdio", "command": sys.executable, "args": arguments}}
    )
    tools = {tool.name: tool for tool in await client.get_tools()}
    reply = await tools["verify_solution"].ainvoke(
        {"question": "What is 2 + 3?", "steps": ["2 + 3 = 5", "Answer: 5"]}
    )
    assert "score" in str(reply)


async def test_over_http_a_key_is_asked_for_and_the_body_is_bounded() -> None:
    import httpx

    app = http_app(server(), McpLimits(max_body_bytes=2_000), keys=("right",))
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    accept = {"accept": "application/json, text/event-stream"}
    right = {**accept, "authorization": "Bearer right"}
    async with served(app) as address, httpx.AsyncClient() as client:
        url = f"{address}/mcp"
        without = await client.post(url, json=hello, headers=accept)
        wrong = await client.post(url, json=hello, headers={**accept, "authorization": "Bearer x"})
        large = await client.post(url, content=b"x" * 2_001, headers=right)
        let_in = await client.post(url, json=hello, headers=right)
    assert (without.status_code, wrong.status_code, large.status_code) == (401, 401, 413)
    assert "2000 bytes" in large.json()["error"]["message"]
    assert let_in.status_code == 200
    assert "vprm-search" in let_in.text
