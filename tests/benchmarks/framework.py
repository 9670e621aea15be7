"""What the framework costs: milliseconds per round of 64 candidates, by tree size and depth.

    python -m tests.benchmarks.framework

Policy and scorer answer at once, so that what is left is the search itself. `BestFirst` makes a
wide tree (size without depth), `BeamSearch` a deep one; each runs in the graph without a saver, in
`run_search`, and beside them a plain loop that asks the same policy and scorer for as many
candidates and keeps nothing but the best paths. A figure is the median over the rounds of a window,
in milliseconds of the processor (all threads), so that other work on the machine counts less. With
`--sqlite`, the size of the file that a search of 5,000 nodes leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from zlib import crc32

from langgraph.checkpoint.sqlite import SqliteSaver

from vprm_search import ids
from vprm_search.budget import Budget
from vprm_search.graph import create_search_graph, run_search
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import BeamSearch, BestFirst, Strategy
from vprm_search.types import (
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
SIZES = (1_000, 5_000, 10_000, 20_000)
DEPTHS = (10, 50, 100, 200)


@dataclass
class Clock:
    """Notes the processor's time at the start of every round."""

    times: list[float] = field(default_factory=list)

    def ms(self, number: int, window: int = 15) -> float:
        """Return the median cost of the `window` rounds that end with round `number`."""
        last = min(number, len(self.times) - 1)
        rounds = range(max(1, last - window + 1), last + 1)
        return median(self.times[n] - self.times[n - 1] for n in rounds) * 1e3


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


RUNS: dict[str, Callable[[Strategy, int, int], Clock]] = {
    "graph": in_graph,
    "run_search": in_function,
    "plain loop": in_plain_loop,
}


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


def main() -> None:
    """Measure and print the tables of docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sqlite", action="store_true", help="also the file of 5,000 nodes")
    parser.add_argument("--ends", type=int, default=16, help="one step in so many ends its path")
    args = parser.parse_args()
    tables: list[tuple[str, Strategy, Sequence[int], list[int]]] = [
        ("nodes", wide(), SIZES, [size // ROUND for size in SIZES]),
        ("depth", deep(), DEPTHS, list(DEPTHS)),
    ]
    for title, strategy, marks, numbers in tables:
        print(f"\n| {title} | " + " | ".join(f"{mark:,}" for mark in marks) + " |")
        print("|---" * (len(marks) + 1) + "|")
        for name, run in RUNS.items():
            clock = run(strategy, max(numbers) + 1, args.ends)
            print(f"| {name} | " + " | ".join(f"{clock.ms(n):.2f}" for n in numbers) + " |")
    if args.sqlite:
        print(f"\nSQLite at 5,000 nodes: {sqlite_bytes(5_000) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
