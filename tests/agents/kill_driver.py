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

    python -m tests.agents.kill_driver DIRECTORY kills NUMBER SEED [POSTGRES]

Searches of the mode "slow" are killed a random moment after a random number of lines, NUMBER times
in all, each going on in a process that is forked from this one. Prints what they left, as JSON.
Which way a branch goes depends on the branch alone, so that all of them have to end alike.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from tests.graph.fakes import chance
from tests.graph.kill_driver import LoggedSteps, LoggedStore, scored_again
from vprm_search import BeamSearch, create_agent_search, tree_of_state
from vprm_search.images.store import MemoryImageStore
from vprm_search.scoring.score_cache import CachedScorer
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
        branch = ensure_config()["configurable"]["thread_id"].rpartition("/")[2]
        args = {"left": have, "right": 1 + (chance(branch) < 0.5)}
        return AIMessage("", tool_calls=[{"name": "add", "args": args, "id": f"{have}-{args}"}])

    model = ScriptedChatModel(count if mode == "slow" else both)
    agent = create_agent(model, [add, send])
    thread: Any = {"configurable": {"thread_id": str(folder)}}
    store, steps = LoggedStore(folder / "scores.sqlite"), str(folder / "steps.log")
    store.log = steps
    by_words = ScriptedScorer(lambda r: 0.9 if "right = 1" in r.steps[-1] else 0.6)
    scorer = CachedScorer(LoggedSteps(by_words, str(folder / "calls.log"), steps), store)
    with saver_at(folder, address) as saver:
        graph = create_agent_search(
            agent,
            scorer=scorer,
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
        (folder / "tree.json").write_text(tree_of_state(state).dumps())
        print(repr((asked and asked[0]["type"], state["messages"][-1].text, given_back)))


def lines(folder: Path) -> list[str]:
    path = folder / "tools.log"
    return path.read_text().splitlines() if path.exists() else []


def recorded_calls(folder: Path, address: str) -> set[str]:
    """Return the calls whose results the saver has, read as anybody may read it."""
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, ToolMessage):
            args = ast.literal_eval(value.tool_call_id.partition("-")[2])
            found.add(f"start add {args['left']} {args['right']}")
        for inside in value if isinstance(value, list | tuple) else ():
            look(inside)

    with saver_at(folder, address) as saver:
        for kept in saver.list(None):
            if kept.config["configurable"]["thread_id"].startswith(str(folder)):
                look(kept.checkpoint["channel_values"].get("messages"))
                look([value for _, channel, value in kept.pending_writes if channel == "messages"])
    return found


def killed(folder: Path, address: str, wanted: random.Random | None) -> dict[str, Any]:
    """Run one search to its end, killed at random; return what it left."""
    folder.mkdir()
    kills, remade, recorded = 0, list[str](), set[str]()
    while True:
        before = len(lines(folder))
        child = os.fork()
        if child == 0:
            try:
                main(folder, "slow", address)
                os._exit(0)
            finally:
                os._exit(1)
        ended = False
        after = 1 << 30 if wanted is None else before + wanted.randint(1, 3)
        while not ended and len(lines(folder)) < after:
            pid, status = os.waitpid(child, os.WNOHANG)
            if status:
                raise SystemExit(f"the search failed with status {status}")
            ended = pid == child
            time.sleep(0.003)
        if not ended and wanted is not None:
            time.sleep(wanted.random() * 0.1)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            ended = not os.WIFSIGNALED(status)
        remade += [line for line in lines(folder)[before:] if line in recorded]
        if ended:
            break
        kills += 1
        recorded |= recorded_calls(folder, address)
    return {
        "kills": kills,
        "tree": (folder / "tree.json").read_text(),
        "lines": lines(folder),
        "remade": remade,
        "recorded": len(recorded),
        "scored_again": scored_again((folder / "steps.log").read_text()),
    }


def killed_again_and_again(folder: Path, number: int, seed: int, address: str = "") -> None:
    wanted = random.Random(seed)
    found = [killed(folder / "calm", address, None)]
    while sum(one["kills"] for one in found) < number:
        found.append(killed(folder / str(len(found)), address, wanted))
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    if sys.argv[2] == "kills":
        killed_again_and_again(Path(sys.argv[1]), *map(int, sys.argv[3:5]), *sys.argv[5:])
    else:
        main(Path(sys.argv[1]), *sys.argv[2:])
