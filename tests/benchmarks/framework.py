"""What the framework costs: milliseconds per round of 64 candidates, by tree size and depth.

    python -m tests.benchmarks.framework

Policy and scorer answer at once, so that what is left is the search itself. `BestFirst` makes a
wide tree (size without depth), `BeamSearch` a deep one; each runs in the graph without a saver, in
`run_search`, and beside them

* in a graph of the same nodes, edges and channels that do nothing but hand LangGraph as many ready
  records as a search does: what of the graph's cost is LangGraph's own;
* in a plain loop that asks the same policy and scorer for as many candidates and keeps nothing but
  the best paths.

Costs are milliseconds of the processor (all threads). Each way is run several times, in turns; of
each round the least counts, since other work on the machine only ever adds, and a figure is the
median over the rounds of a window. Then the size of the SQLite file that a search of 5,000 nodes
leaves, the memory of a node, and the seconds it takes to load a tree of 20,000.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import operator
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from zlib import crc32

from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

from vprm_search import ids
from vprm_search.budget import Budget
from vprm_search.graph import SearchState, create_search_graph, run_search
from vprm_search.graph.nodes import next_node
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import BeamSearch, BestFirst, Strategy
from vprm_search.tree import SearchTree
from vprm_search.types import (
    NodeRecord,
    Problem,
    Proposal,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
    StepScore,
)

QUESTION = "How many red tiles are on the board, and what is their sum?"
WORDS = "so the next row adds its tiles to the sum that was found before, which is now"
ROUND = 64
SIZES = (1_000, 5_000, 20_000)
DEPTHS = (10, 78, 200)
WINDOW = 15
RUNS = 5


@dataclass
class Clock:
    """Notes the processor's time at the start of every round."""

    times: list[float] = field(default_factory=list)

    @property
    def rounds(self) -> list[float]:
        """What each round cost, in seconds."""
        return [after - before for before, after in pairwise(self.times)]


@dataclass
class InstantPolicy:
    """Proposes a made-up step for every seed; one in `ends` finishes its path (0: none)."""

    clock: Clock
    ends: int = 0
    batches: bool = True

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests."""
        self.clock.times.append(time.process_time())
        return [[self._step(seed) for seed in request.seeds] for request in requests]

    def _step(self, seed: int) -> Proposal:
        over = self.ends and seed % self.ends == 0
        text = f"Answer: {seed % 7}" if over else f"Step {seed % 10**9}: {WORDS} {seed % 997}."
        return Proposal(
            text=text,
            finish="stop" if over else "step",
            generated_tokens=20,
            prompt_tokens=100,
            requests=1,
        )


class InstantScorer:
    """Scores the last step by its text; the steps before it score the same."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests."""
        return [self._path(request.steps) for request in requests]

    def _path(self, steps: Sequence[str]) -> ScoreResult:
        score = StepScore(0.3 + (crc32(steps[-1].encode()) % 1000) / 2000)
        return ScoreResult((score,) * len(steps), 400, (20,) * len(steps))


def in_graph(strategy: Strategy, rounds: int, ends: int) -> Clock:
    """Search in the graph, without a saver."""
    clock = Clock()
    app = create_search_graph(
        policy=InstantPolicy(clock, ends),
        scorer=InstantScorer(),
        strategy=strategy,
        budget=Budget(rounds=rounds),
        image_store=MemoryImageStore(),
    ).compile()
    app.invoke({"messages": [("user", QUESTION)]}, {"recursion_limit": 100_000})
    return clock


def in_function(strategy: Strategy, rounds: int, ends: int) -> Clock:
    """Search with `run_search`."""
    clock = Clock()
    run_search(
        QUESTION,
        policy=InstantPolicy(clock, ends),
        scorer=InstantScorer(),
        strategy=strategy,
        budget=Budget(rounds=rounds),
    )
    return clock


def in_plain_loop(strategy: Strategy, rounds: int, ends: int) -> Clock:
    """Ask the same policy and scorer in a plain loop, keeping the eight best paths."""
    clock = Clock()
    policy, scorer, problem = InstantPolicy(clock, ends), InstantScorer(), Problem(QUESTION)

    async def loop() -> None:
        paths: list[tuple[float, tuple[str, ...], tuple[float, ...]]] = [(0.0, (), ())]
        for number in range(rounds):
            each = ROUND // len(paths)
            asked = [
                ProposeRequest(
                    problem, steps, tuple(ids.child_seed(str(number), i) for i in range(each))
                )
                for _, steps, _ in paths
            ]
            replies = await policy.propose(asked)
            new = [
                ((*steps, proposal.text), scores)
                for (_, steps, scores), reply in zip(paths, replies, strict=True)
                for proposal in reply
            ]
            results = await scorer.score([ScoreRequest(problem, steps) for steps, _ in new])
            scored = [
                (steps, (*scores, result.scores[-1].value or 0.0))
                for (steps, scores), result in zip(new, results, strict=True)
            ]
            ranked = [(sum(scores) / len(scores), steps, scores) for steps, scores in scored]
            paths = sorted(ranked, key=lambda path: -path[0])[:8]

    asyncio.run(loop())
    return clock


def joined(known: dict[str, Any], new: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put tables of records together without looking at them."""
    return functools.reduce(operator.or_, new, known)


class BareState(SearchState):
    """The state of a search whose records are not looked at."""

    search_nodes: Annotated[dict[str, Any], DeltaChannel(joined)]  # type: ignore[misc]


def in_bare_graph(strategy: Strategy, rounds: int, ends: int) -> Clock:
    """Go as often through a graph of a search's shape whose nodes do nothing."""
    clock, number = Clock(), itertools.count()
    record = NodeRecord("0" * 24, "0" * 24, 0, f"Step 1: {WORDS} 1.", seed=1, round=1).to_json()
    made: dict[str, Any] = {}

    def ingest(state: Mapping[str, Any]) -> dict[str, Any]:
        return {"search_nodes": {}, "search_plan": {"finish": ""}, "search_seconds": 0.0}

    def plan(state: Mapping[str, Any]) -> dict[str, Any]:
        over = len(clock.times) >= rounds
        return {
            "search_plan": {"finish": "over" if over else ""},
            "search_nodes": dict(made),
            "search_size": len(state["search_nodes"]),
            "search_seconds": 0.0,
        }

    def propose(state: Mapping[str, Any]) -> dict[str, Any]:
        clock.times.append(time.process_time())
        made.clear()
        made.update({f"{next(number):024}": record for _ in range(ROUND)})
        return {"search_nodes": dict(made), "search_size": 0, "search_seconds": 0.0}

    def score(state: Mapping[str, Any]) -> dict[str, Any]:
        return {"search_nodes": dict(made), "search_size": 0, "search_seconds": 0.0}

    graph: Any = StateGraph(BareState)
    for node in (ingest, plan, propose, score):
        graph.add_node(node.__name__, node)
    graph.add_node("answer", lambda state: {})
    graph.add_edge(START, "ingest")
    graph.add_edge("ingest", "plan")
    graph.add_conditional_edges("plan", next_node, {"propose": "propose", "answer": "answer"})
    graph.add_edge("propose", "score")
    graph.add_edge("score", "plan")
    graph.add_edge("answer", END)
    graph.compile().invoke({"messages": [("user", QUESTION)]}, {"recursion_limit": 100_000})
    return clock


WAYS: dict[str, Callable[[Strategy, int, int], Clock]] = {
    "graph, no saver": in_graph,
    "of it LangGraph alone": in_bare_graph,
    "`run_search`": in_function,
    "plain loop": in_plain_loop,
}


def least(strategy: Strategy, rounds: int, ends: int, runs: int) -> dict[str, list[float]]:
    """Return for each way the seconds of each round, the least of several runs in turns."""
    costs: dict[str, list[float]] = {}
    for _ in range(runs):
        for name, run in WAYS.items():
            new = run(strategy, rounds, ends).rounds
            costs[name] = list(map(min, costs.get(name, new), new))
    return costs


def ms(rounds: Sequence[float], number: int) -> float:
    """Return the median milliseconds of the rounds of a window that ends with round `number`."""
    return median(rounds[max(0, number - WINDOW) : number]) * 1e3


def sqlite_bytes(nodes: int) -> int:
    """Return the size of the file that a search of so many nodes leaves."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "state.sqlite"
        with SqliteSaver.from_conn_string(str(path)) as saver:
            app = create_search_graph(
                policy=InstantPolicy(Clock()),
                scorer=InstantScorer(),
                strategy=wide(),
                budget=Budget(candidates=nodes),
                image_store=MemoryImageStore(),
            ).compile(checkpointer=saver)
            config: Any = {"configurable": {"thread_id": "one"}, "recursion_limit": 100_000}
            app.invoke({"messages": [("user", QUESTION)]}, config)
            saver.conn.execute("pragma wal_checkpoint(truncate)")
        return path.stat().st_size


def wide() -> Strategy:
    """Return a strategy that makes a large tree of little depth."""
    return BestFirst(batch=8, expand=8, expansions=10**6, stop=None, refill=0)


def deep() -> Strategy:
    """Return a strategy that goes one level deeper with every round."""
    return BeamSearch(width=8, expand=8, stop=None, refill=0, max_depth=max(DEPTHS) + 1)


def loaded(nodes: int) -> tuple[float, float]:
    """Return the seconds that loading a tree of so many nodes takes, and the bytes of a node."""
    strategy, rounds = wide(), nodes // ROUND + 1
    text = run_search(
        QUESTION,
        policy=InstantPolicy(Clock()),
        scorer=InstantScorer(),
        strategy=strategy,
        budget=Budget(rounds=rounds),
    ).tree.dumps()
    began = time.process_time()
    SearchTree.loads(text)
    seconds = time.process_time() - began
    tracemalloc.start()
    tree = SearchTree.loads(text)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, size / len(tree)


def main() -> None:
    """Measure and print the tables of docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ends", type=int, default=16, help="one step in so many ends its path")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of which the least counts")
    args = parser.parse_args()
    tables: list[tuple[str, Strategy, Sequence[int], list[int]]] = [
        ("nodes", wide(), SIZES, [size // ROUND for size in SIZES]),
        ("depth", deep(), DEPTHS, list(DEPTHS)),
    ]
    for title, strategy, marks, numbers in tables:
        print(f"\n| {title} | " + " | ".join(f"{mark:,}" for mark in marks) + " |")
        print("|---" * (len(marks) + 1) + "|")
        costs = least(strategy, max(numbers) + 2, args.ends, args.runs)
        for name, rounds in costs.items():
            cells = " | ".join(f"{ms(rounds, number):.2f}" for number in numbers)
            print(f"| {name} | {cells} |", flush=True)
    print(f"\nSQLite at 5,000 nodes: {sqlite_bytes(5_000) / 1e6:.1f} MB")
    seconds, size = loaded(20_000)
    print(f"A tree of 20,000 nodes loads in {seconds:.2f} s, {size:,.0f} bytes a node")


if __name__ == "__main__":
    main()
