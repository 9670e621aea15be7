"""A cancelled search ends its requests to a real server, and leaves neither task nor thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph

from vprm_search import (
    BestOfN,
    GuidedChatModel,
    ProcessRewardMiddleware,
    create_agent_search,
    create_search_graph,
    create_verifier_node,
)
from vprm_search.graph import VerifierState, cancellable
from vprm_search.images.store import MemoryImageStore
from vprm_search.scoring.judge_scorer import JudgeScorer
from vprm_search.testing import ScriptedScorer


class Judged(MessagesState, VerifierState):
    """A conversation and the verdict on its last message."""


class Silent:
    """A server of chat completions that takes requests and never answers."""

    def __init__(self) -> None:
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        await reader.readexactly(length)
        self.open += 1
        try:
            await reader.read()  # until the client is gone
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def silent() -> AsyncIterator[tuple[Silent, str]]:
    server = Silent()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield server, f"http://127.0.0.1:{port}/v1"


async def until(wanted: Any) -> None:
    """Wait, one second at most, until something is so."""
    async with asyncio.timeout(1.0):
        while not wanted():  # noqa: ASYNC110 - a plain look
            await asyncio.sleep(0.005)


def search_of(kind: str, model: ChatOpenAI) -> Any:
    scorer, store = ScriptedScorer(lambda request: 0.5), MemoryImageStore()
    if kind == "guided model":
        return GuidedChatModel(policy=model, scorer=scorer, strategy=BestOfN(4))
    if kind == "graph":
        return create_search_graph(
            policy=model, scorer=scorer, strategy=BestOfN(4), image_store=store
        ).compile()
    if kind == "middleware":
        return create_agent(model, [], middleware=[ProcessRewardMiddleware(scorer, n=4)])
    if kind == "verifier":
        parent: Any = StateGraph(Judged)
        parent.add_node("verify", create_verifier_node(JudgeScorer(model), image_store=store))
        parent.add_edge(START, "verify")
        return parent.compile()
    agent = create_agent(model, [])
    return create_agent_search(agent, scorer=scorer, image_store=store).compile()


@pytest.mark.parametrize(
    "kind", ["graph", "guided model", "agent search", "middleware", "verifier"]
)
@pytest.mark.parametrize("way", ["cancelled", "timed out", "stream cancelled"])
async def test_a_cancellation_ends_requests_and_leaves_nothing(kind: str, way: str) -> None:
    async with silent() as (server, url):
        model = ChatOpenAI(model="m", base_url=url, api_key="k", max_retries=0)
        search = search_of(kind, model)
        said = [AIMessage("Answer: 7")] if kind == "verifier" else []
        messages = [HumanMessage("3 + 4?"), *said]
        given: Any = messages if kind == "guided model" else {"messages": messages}

        async def once() -> None:
            tasks = asyncio.all_tasks()
            if way == "stream cancelled":

                async def read() -> None:
                    async for _ in search.astream(given):
                        pass

                call = asyncio.ensure_future(read())
            else:
                call = asyncio.ensure_future(search.ainvoke(given))
            async with asyncio.timeout(60):
                while not server.open:  # noqa: ASYNC110 - a plain counter
                    await asyncio.sleep(0.005)
            handlers = asyncio.all_tasks() - tasks  # the server's own end with their clients
            if way == "timed out":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(call, 0.05)
            else:
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            assert call.done()
            await until(lambda: server.open == 0)
            await until(lambda: all(task.done() for task in handlers))
            assert asyncio.all_tasks() <= tasks

        await once()  # whatever is made once for a process is there now
        threads = set(threading.enumerate())
        await once()
        assert set(threading.enumerate()) <= threads | idle_workers()


@pytest.mark.parametrize("kind", ["graph", "guided model", "verifier"])
async def test_a_synchronous_stream_around_it_that_is_closed_ends_requests(kind: str) -> None:
    async with silent() as (server, url):
        model = ChatOpenAI(model="m", base_url=url, api_key="k", max_retries=0)
        search = search_of(kind, model)
        parent: Any = StateGraph(Judged)
        parent.add_node("begin", lambda state: get_stream_writer()("begun"))
        parent.add_node("below", create_agent(search, []) if kind == "guided model" else search)
        parent.add_edge(START, "begin")
        parent.add_edge(START, "below")
        said = [AIMessage("Answer: 7")] if kind == "verifier" else []
        asked = {"messages": [HumanMessage("3 + 4?"), *said]}

        def read_and_leave() -> None:
            stream = cancellable(
                parent.compile().stream(asked, stream_mode="custom", subgraphs=True)
            )
            assert next(iter(stream))
            for _ in range(3000):
                if server.open:
                    break
                time.sleep(0.01)
            assert server.open
            stream.close()  # type: ignore[attr-defined]

        await asyncio.to_thread(read_and_leave)
        await until(lambda: server.open == 0)


def idle_workers() -> set[threading.Thread]:
    """Return the threads of the loop's own pool, which wait for the next call."""
    return {one for one in threading.enumerate() if one.name.startswith("asyncio_")}
