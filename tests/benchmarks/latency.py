"""How long a search waits for its slowest replies, with and without level barriers.

    python -m tests.benchmarks.latency --sizes 16 256

Every step of the policy takes a lognormal time (median 1, sigma 0.6), drawn from the step's seed,
so it is the same with either runner. Time is virtual (`virtual_time`): the real runner of the
package is run, nothing sleeps. Level-synchronous is `run_jobs(lockstep=True)`; for best-of-N,
which has no levels here, it is what a step-by-step best-of-N with a barrier per level would take
on the same draws.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

from tests.benchmarks.virtual_time import run_virtual
from vprm_search import ids
from vprm_search.compare.worlds import WORLDS, SyntheticPolicy, SyntheticScorer, SyntheticWorld
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.search import DVTS, BeamSearch, BestOfN, BestScore, Strategy
from vprm_search.tree import SearchTree
from vprm_search.types import (
    Counts,
    Problem,
    Proposal,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
)

SIGMA = 0.6
_NORMAL = NormalDist()


def step_seconds(seed: int, number: int, sigma: float = SIGMA) -> float:
    """Return how long the policy takes for step `number` of the child with this seed."""
    drawn = int.from_bytes(ids.digest("latency", seed, number)[:8], "big") / 2**64
    return math.exp(sigma * _NORMAL.inv_cdf(min(max(drawn, 1e-12), 1 - 1e-12)))


@dataclass
class TimedPolicy:
    """A synthetic policy behind a server: each child takes its own time, a call its slowest."""

    inner: SyntheticPolicy
    sigma: float = SIGMA
    batches: bool = False

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer once all children of all requests are there."""
        await asyncio.sleep(max(self.seconds(r, s) for r in requests for s in r.seeds))
        return await self.inner.propose(requests)

    def seconds(self, request: ProposeRequest, seed: int) -> float:
        """Return how long one child takes: one step, or all that are left."""
        first = len(request.steps) + 1
        last = self.inner.world.settings.depth if request.until == "end" else first
        return sum(step_seconds(seed, number, self.sigma) for number in range(first, last + 1))


@dataclass
class TimedScorer:
    """A synthetic scorer that takes `seconds` a call, whatever is in it.

    It reports no cost: how many tokens a call has to compute depends on which came before it.
    """

    inner: SyntheticScorer
    seconds: float = 0.0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Answer after the time of a call."""
        await asyncio.sleep(self.seconds)
        return [replace(r, cost=Counts()) for r in await self.inner.score(requests)]


def timed_run(
    world: SyntheticWorld,
    strategy: Strategy,
    problems: range,
    *,
    lockstep: bool,
    scorer_seconds: float = 0.0,
    sigma: float = SIGMA,
) -> tuple[list[SearchRun], float]:
    """Search the problems in one run; return the searches and the virtual seconds they took."""
    jobs = [Job(SearchTree(Problem(world.question(number)), 0)) for number in problems]
    policy = TimedPolicy(SyntheticPolicy(world), sigma)
    scorer = TimedScorer(SyntheticScorer(world), scorer_seconds)
    rules = SearchRules(strategy, BestScore())
    return run_virtual(run_jobs(jobs, policy, scorer, rules, lockstep=lockstep))


def barriers_of_samples(run: SearchRun, depth: int, sigma: float = SIGMA) -> float:
    """Return what the samples of a best-of-N search would take with a barrier per level."""
    seeds = [sample.seed for sample in run.tree.children(run.tree.root_id)]
    levels = range(1, depth + 1)
    return sum(max(step_seconds(seed, number, sigma) for seed in seeds) for number in levels)


def measure(size: int, problems: int, scorer_seconds: float, sigma: float) -> list[dict[str, Any]]:
    """Return the times of best-of-N and DVTS at one size, alone and several problems at once."""
    world = SyntheticWorld(replace(WORLDS["hard"], seed=7))
    depth = world.settings.depth
    options = {"scorer_seconds": scorer_seconds, "sigma": sigma}
    rows = []
    samples = BestOfN(n=size)
    level, free = [], []
    for number in range(problems):
        runs, seconds = timed_run(
            world, samples, range(number, number + 1), lockstep=False, **options
        )
        free.append(seconds)
        level.append(barriers_of_samples(runs[0], depth, sigma) + depth * scorer_seconds)
    rows.append(_row("best-of-n, one problem", size, level, free))
    dvts = DVTS(subtrees=max(1, size // 4), expand=4, stop=None, refill=0)
    level, free, trees = [], [], []
    for number in range(problems):
        one = range(number, number + 1)
        held, seconds = timed_run(world, dvts, one, lockstep=True, **options)
        level.append(seconds)
        gone, seconds = timed_run(world, dvts, one, lockstep=False, **options)
        free.append(seconds)
        trees.append(held[0].tree.dumps() == gone[0].tree.dumps())
    rows.append({**_row("dvts, one problem", size, level, free), "same_trees": all(trees)})
    if size <= 64:
        beam = BeamSearch(width=max(1, size // 4), expand=4, stop=None, refill=0)
        several = range(8)
        _, together = timed_run(world, beam, several, lockstep=True, **options)
        runs, apart = timed_run(world, beam, several, lockstep=False, **options)
        rows.append(_row("beam, 8 problems in one run", size, [together], [apart]))
    return rows


def _row(name: str, size: int, level: Sequence[float], free: Sequence[float]) -> dict[str, Any]:
    return {
        "what": name,
        "size": size,
        "runs": len(level),
        "level_synchronous": fmean(level),
        "barrier_free": fmean(free),
        "ratio": fmean(a / b for a, b in zip(level, free, strict=True)),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown; times in medians of one step."""
    lines = [
        "| search | N | runs | level-synchronous | without barriers | ratio |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['what']} | {r['size']} | {r['runs']} | {r['level_synchronous']:.1f} "
        f"| {r['barrier_free']:.1f} | {r['ratio']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure the sizes of the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--scorer-seconds", type=float, default=0.0)
    parser.add_argument("--sigma", type=float, default=SIGMA)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for size in given.sizes:
        problems = given.problems if size <= 64 else max(1, given.problems // 4)
        rows += measure(size, problems, given.scorer_seconds, given.sigma)
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
