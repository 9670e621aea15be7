"""What a conversation leaves in SQLite: 1, 5 and 20 questions over one picture of 1 MB.

    python -m tests.benchmarks.state

Every question is a search of its own (`BeamSearch()`, a made-up policy and scorer) on one thread,
with LangGraph's default durability. Beside the graph alone: the same questions asked through a
parent graph that has a first node of its own and the search as a second, as they come, with an
`ImageIntake` as the first node, and with the input sent through `ImageIntake.lighten`.

Then one search of 20 rounds over the picture, with 16 and with 64 candidates a round (`BeamSearch`
of width 4 and 8, steps of about 120 characters): what it leaves, and milliseconds of the processor
a round with the saver and without, policy and scorer answering at once (the median over the rounds,
of each the least of several runs).
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph

from tests.benchmarks.framework import Clock, InstantPolicy, InstantScorer
from tests.graph.fakes import HashChatModel, HashScorer, asked, noisy_png
from vprm_search.budget import Budget
from vprm_search.graph import create_search_graph
from vprm_search.images import DiskImageStore, ImageIntake
from vprm_search.search import BeamSearch

THREAD: Any = {"configurable": {"thread_id": "one"}}
WAYS = ("graph", "node of a parent", "behind an intake node", "behind `lighten`")


def compiled(way: str, folder: Path, saver: SqliteSaver) -> Any:
    """Return the search graph, or a parent that has it as a node, on this saver."""
    store = DiskImageStore(folder / "images")
    search = create_search_graph(policy=HashChatModel(), scorer=HashScorer(), image_store=store)
    if way == "graph":
        return search.compile(checkpointer=saver)
    intake = ImageIntake(store)
    parent = StateGraph(MessagesState)
    parent.add_node("search", search.compile())
    parent.add_node("intake", intake if way == "behind an intake node" else lambda state: {})
    parent.add_edge(START, "intake")
    parent.add_edge("intake", "search")
    parent.add_edge("search", END)
    app = parent.compile(checkpointer=saver)
    return RunnableLambda(intake.lighten) | app if way == "behind `lighten`" else app


def measured(way: str, questions: Sequence[int], picture: bytes) -> list[Mapping[str, Any]]:
    """Return, for each number of questions, the size of the file and of the last answer."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "state.sqlite"
        with SqliteSaver.from_conn_string(str(path)) as saver:
            app = compiled(way, Path(name), saver)
            for number in range(1, max(questions) + 1):
                given = asked(png=picture) if number == 1 else followed(number)
                answer = app.invoke(given, THREAD)["messages"][-1]
                if number in questions:
                    saver.conn.execute("pragma wal_checkpoint(truncate)")
                    metadata = len(json.dumps(answer.response_metadata))
                    found.append(
                        {
                            "questions": number,
                            "bytes": path.stat().st_size,
                            "metadata": metadata,
                            "pictures": pictures(path, len(picture)),
                        }
                    )
    return found


def long_search(width: int, picture: bytes, *, saved: bool) -> tuple[list[float], dict[str, int]]:
    """Return the seconds of each of 20 rounds, and what the search leaves where it is saved."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "state.sqlite"
        with SqliteSaver.from_conn_string(str(path)) as saver:
            app = create_search_graph(
                policy=InstantPolicy(clock),
                scorer=InstantScorer(),
                strategy=BeamSearch(width=width, expand=width, stop=None, refill=0),
                budget=Budget(rounds=20),
                image_store=DiskImageStore(Path(name) / "images"),
            ).compile(checkpointer=saver if saved else None)
            state = app.invoke(asked(png=picture), THREAD)
            saver.conn.execute("pragma wal_checkpoint(truncate)")
        whole = {key: value for key, value in state.items() if key != "messages"}
        left = {
            "nodes": len(state["search_nodes"]),
            "state": len(json.dumps(whole)),
            "file": path.stat().st_size,
            "pictures": pictures(path, len(picture)) if saved else 0,
        }
    return clock.rounds, left


def print_long_searches(picture: bytes, runs: int) -> None:
    """Measure and print the table of searches of 20 rounds."""
    print("\n| candidates a round | nodes | state, JSON | SQLite | values with the picture", end="")
    print(" | ms a round, no saver | with SQLite |\n|---|---|---|---|---|---|---|")
    for width in (4, 8):
        costs: dict[bool, list[float]] = {}
        for saved in [False, True] * runs:
            rounds, left = long_search(width, picture, saved=saved)
            costs[saved] = list(map(min, costs.get(saved, rounds), rounds))
        print(
            f"| {width * width} | {left['nodes']} | {left['state'] / 1e6:.2f} MB "
            f"| {left['file'] / 1e6:.2f} MB | {left['pictures']} "
            f"| {median(costs[False]) * 1e3:.1f} | {median(costs[True]) * 1e3:.1f} |"
        )


def followed(number: int) -> dict[str, Any]:
    """Return a further question about the picture."""
    return {"messages": [HumanMessage(f"And how many tiles have the number {number}?")]}


def pictures(path: Path, size: int) -> int:
    """Return how many values in the file are as large as the picture."""
    with sqlite3.connect(path) as database:
        sizes = [
            length
            for table, column in (("checkpoints", "checkpoint"), ("writes", "value"))
            for (length,) in database.execute(f"select length({column}) from {table}")
        ]
    return sum(length >= size for length in sizes)


def main() -> None:
    """Measure and print the table of docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--runs", type=int, default=5, help="runs of which the least time counts")
    args = parser.parse_args()
    picture = noisy_png(600)
    print("| through | questions | SQLite | values with the picture | answer's metadata |")
    print("|---|---|---|---|---|")
    for way in WAYS:
        for row in measured(way, args.questions, picture):
            print(
                f"| {way} | {row['questions']} | {row['bytes'] / 1e6:.2f} MB "
                f"| {row['pictures']} | {row['metadata'] / 1e3:.1f} kB |"
            )
    print_long_searches(picture, args.runs)


if __name__ == "__main__":
    main()
