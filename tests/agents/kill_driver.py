"""Searches over trajectories that are killed with SIGKILL, each time going on in a new process.

    python -m tests.agents.kill_driver DIRECTORY MODE [POSTGRES]

The search of `MODE` runs on a SQLite file in DIRECTORY, or in the PostgreSQL database with the
address POSTGRES, until it ends, asks a person, or is killed. Its tools write a line when they start
and one when they end, into `tools.log`.

    once   the tool `send` kills the process the first time it runs, while `add` beside it has ended
    safe   the same, with `send` marked safe
    run    the search goes on with the answer "run" to what is asked
    skip   with the answer "skip"
    slow   every tool takes a while, for a kill from outside; all are safe
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from vprm_search import BeamSearch, create_agent_search
from vprm_search.images.store import MemoryImageStore
from vprm_search.testing import ChatCall, ScriptedChatModel, ScriptedScorer

SLOW_S = 0.05


@contextlib.contextmanager
def saver_at(folder: Path, address: str) -> Iterator[Any]:
    if not address:
        with SqliteSaver.from_conn_string(str(folder / "state.sqlite")) as sqlite:
            yield sqlite
        return
    from langgraph.checkpoint.postgres import PostgresSaver

    with PostgresSaver.from_conn_string(address) as saver:
        saver.setup()
        yield saver


def main(folder: Path, mode: str, address: str = "") -> None:
    def log(line: str) -> None:
        with (folder / "tools.log").open("a") as file:
            file.write(line + "\n")

    @tool
    def add(left: int, right: int) -> str:
        """Add two numbers."""
        log(f"start add {left} {right}")
        time.sleep(SLOW_S * (mode == "slow"))
        log(f"end add {left} {right}")
        return str(left + right)

    @tool
    def send(text: str) -> str:
        """Send a letter."""
        log(f"start send {text}")
        if mode in ("once", "safe") and not (folder / "killed").exists():
            (folder / "killed").touch()
            time.sleep(1.0)  # what ran beside it is recorded meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        log(f"end send {text}")
        return f"sent {text}"

    def both(call: ChatCall) -> AIMessage:
        results = [m for m in call.messages if isinstance(m, ToolMessage)]
        if results:
            return AIMessage(f"Answer: {sorted(str(m.text) for m in results)}")
        calls = [
            {"name": "add", "args": {"left": 1, "right": 2}, "id": "add"},
            {"name": "send", "args": {"text": "hello"}, "id": "send"},
        ]
        return AIMessage("", tool_calls=calls)

    def count(call: ChatCall) -> AIMessage:
        last = call.messages[-1]
        have = int(str(last.text)) if isinstance(last, ToolMessage) else 0
        if have >= 6:
            return AIMessage(f"Answer: {have}")
        args = {"left": have, "right": 1 + call.number % 2}
        return AIMessage("", tool_calls=[{"name": "add", "args": args, "id": f"{have}-{args}"}])

    model = ScriptedChatModel(count if mode == "slow" else both)
    agent = create_agent(model, [add, send])
    thread: Any = {"configurable": {"thread_id": str(folder)}}
    with saver_at(folder, address) as saver:
        graph = create_agent_search(
            agent,
            scorer=ScriptedScorer(lambda r: 0.9 if "right = 1" in r.steps[-1] else 0.6),
            strategy=BeamSearch(width=2, expand=2, refill=0),
            safe_tools={"safe": ["send"], "slow": ["add"]}.get(mode, []),
            image_store=MemoryImageStore(),
        ).compile(checkpointer=saver)
        found = graph.get_state(thread)
        given: Any = None if found.values else {"messages": [HumanMessage("Go.", id="q")]}
        if mode in ("run", "skip"):
            given = Command(resume=mode)
        state = graph.invoke(given, thread, durability="sync")
        asked = [i.value for i in state.get("__interrupt__", [])]
        given_back = [f"{m.name} {m.text}" for m in state["messages"] if isinstance(m, ToolMessage)]
        print(repr((asked and asked[0]["type"], state["messages"][-1].text, given_back)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
