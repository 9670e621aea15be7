"""Measure strategies, selectors and sizes against each other at equal generated tokens.

The problems are cut into shards. A *cell* is one strategy at one size on one shard; it is written
as soon as it is measured, and skipped when it is there already. Best-of-N is measured first: what
its N samples cost on a problem is the budget of every other strategy of that size on that problem.
Its samples are one growing pool (the samples of N are the first of those of 2N), and the selectors
of a strategy all choose from the same search, so that differences are paired.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vprm_search.compare.cell import (
    CUT,
    Cell,
    Row,
    Spent,
    cell_path,
    read_cell,
    same_strategy,
    write_atomically,
)
from vprm_search.compare.entrants import (
    DEFAULT_ENTRANTS,
    REFERENCE,
    Entrant,
    choice_of,
    described,
    entrants_of,
)
from vprm_search.compare.worlds import LoadedWorld, Task, World
from vprm_search.errors import ConfigError, RecordError
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.search import BestScore, Plan, Strategy
from vprm_search.steps import split_steps
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, StepScorer


@dataclass(frozen=True)
class Capped:
    """Another strategy's plan, cut to the children that a token budget still has room for.

    `tokens` maps the root of a search to its budget. A child is expected to cost the mean of the
    children proposed so far in this search, so a round is cut, or not begun, before the budget is
    exceeded; what a search spends beyond it is the error of that one estimate. A function of the
    tree alone, as every strategy is.
    """

    strategy: Strategy
    tokens: Mapping[NodeId, int]

    @property
    def aggregates(self) -> Sequence[str]:
        """The path scores that the strategy reads."""
        return self.strategy.aggregates

    def plan(self, tree: SearchTree) -> Plan:
        """Return the strategy's plan as far as the tokens go."""
        plan = self.strategy.plan(tree)
        spent, proposed = tree.totals.generated_tokens, tree.totals.candidates
        if plan.finish or not proposed:
            return plan
        budget = self.tokens[tree.root_id]
        each = max(1.0, spent / proposed)
        room = math.floor((budget - spent) / each + 1e-9)
        if room < 1:
            return Plan(close=plan.close, finish=f"{CUT} {spent} of {budget}")
        return replace(plan.limited_to(room), cut=plan.cut)


Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to compare. `choices` replace the selectors that each strategy has by default.

    Args:
        entrants: strategies by name (`compare_entrants.ENTRANTS`).
        sizes: the N of best-of-N and of the strategies of its cost.
        run_seed: makes all draws of the policy.
        batch: problems whose searches advance together.
        shard: problems per cell.
    """

    entrants: tuple[str, ...] = DEFAULT_ENTRANTS
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64)
    choices: tuple[str, ...] = ()
    run_seed: int = 0
    batch: int = 50
    shard: int = 50

    def __post_init__(self) -> None:
        """Raise `ConfigError` on values that cannot be measured."""
        entrants_of(self.entrants)
        for choice in self.choices:
            choice_of(choice)
        if not self.sizes or not all(2 <= size <= 256 for size in self.sizes):
            raise ConfigError(f"sizes {list(self.sizes)}: give some, each between 2 and 256")
        if self.batch < 1 or self.shard < 1:
            raise ConfigError(f"batch {self.batch} and shard {self.shard} must be at least 1")

    def identity(self, world: World) -> dict[str, Any]:
        """Return what every cell of one folder has in common."""
        return {"world": world.identity(), "run_seed": self.run_seed, "shard": self.shard}

    def shards(self, world: World) -> list[tuple[int, int]]:
        """Return the first problem of every shard and the one after its last."""
        size = world.size
        return [(start, min(start + self.shard, size)) for start in range(0, size, self.shard)]


def open_folder(comparison: Comparison, world: World, out: Path) -> None:
    """Make the folder of the results, or check that it holds results of the same comparison.

    Raises `ConfigError` if it holds others.
    """
    path = out / "comparison.json"
    wanted = json.loads(json.dumps(comparison.identity(world)))
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(wanted, indent=1))
    elif json.loads(path.read_text()) != wanted:
        raise ConfigError(
            f"{out} holds results of another comparison (other problems, models, seed or shard "
            "size); use another --out folder, or the settings in comparison.json"
        )


def measure_shard(
    comparison: Comparison, world: World, out: Path, start: int, stop: int, report: Report
) -> None:
    """Measure all cells of a shard that are not there yet."""
    shard = _Shard(comparison, world, out, start, stop, report)
    asyncio.run(shard.measure())


@dataclass(slots=True)
class _Shard:
    """One shard being measured; the problems and models are loaded when first needed."""

    comparison: Comparison
    world: World
    out: Path
    start: int
    stop: int
    report: Report
    _loaded: LoadedWorld | None = field(default=None)

    @property
    def loaded(self) -> LoadedWorld:
        if self._loaded is None:
            self._loaded = self.world.load(self.start, self.stop)
        return self._loaded

    async def measure(self) -> None:
        sizes = sorted(set(self.comparison.sizes))
        reference, *others = entrants_of(self.comparison.entrants)
        missing = [size for size in sizes if self._known(reference, size) is None]
        if missing:
            await self._grow_pool(reference, [s for s in sizes if s <= missing[-1]], set(missing))
        for size in sizes:
            budget = self._budgets(reference, size)
            for entrant in others:
                if self._known(entrant, size) is None:
                    await self._search(entrant, size, budget)

    def _known(self, entrant: Entrant, size: int) -> Row | None:
        """Return a cell that is there. Raises `ConfigError` if another strategy made it."""
        path = cell_path(self.out, self.start, self.stop, entrant.name, size)
        if not path.exists():
            return None
        row = read_cell(path)
        wanted = json.loads(json.dumps(described(entrant.make(size))))
        if not same_strategy(row["strategy"], wanted) or not set(self._choices(entrant)) <= set(
            row["right"]
        ):
            raise ConfigError(
                f"{path} was measured with other options or selectors of {entrant.name}; remove "
                "it or use another --out folder"
            )
        return row

    def _choices(self, entrant: Entrant) -> tuple[str, ...]:
        return self.comparison.choices or entrant.choices

    def _budgets(self, reference: Entrant, size: int) -> list[int]:
        row = self._known(reference, size)
        if row is None:
            raise RecordError(f"{REFERENCE}@{size} was not measured; run the comparison again")
        return [int(tokens) for tokens in row["generated_tokens"]]

    async def _grow_pool(self, entrant: Entrant, sizes: Sequence[int], write: set[int]) -> None:
        """Measure best-of-N at growing N on the same samples; each N pays for its own only."""
        cells = {size: Cell(entrant.name, size, self._choices(entrant)) for size in sizes}
        scorer = self.loaded.new_scorer()
        for tasks in self._batches():
            jobs = [_job(task, self.comparison.run_seed) for task in tasks]
            spent = Spent()
            for size in sizes:
                with spent:
                    runs = await self._run(jobs, scorer, entrant.make(size))
                cells[size].add(tasks, runs, spent)
        for size in sizes:
            if size in write:
                self._write(cells[size], entrant, cells[size].generated_tokens)

    async def _search(self, entrant: Entrant, size: int, budgets: Sequence[int]) -> None:
        cell = Cell(entrant.name, size, self._choices(entrant))
        scorer = self.loaded.new_scorer()
        for tasks in self._batches():
            jobs = [_job(task, self.comparison.run_seed) for task in tasks]
            first = len(cell.generated_tokens)
            caps = {job.tree.root_id: budgets[first + i] for i, job in enumerate(jobs)}
            with Spent() as spent:
                runs = await self._run(jobs, scorer, Capped(entrant.make(size), caps))
            cell.add(tasks, runs, spent)
        self._write(cell, entrant, budgets)

    def _batches(self) -> Iterator[Sequence[Task]]:
        tasks, batch = self.loaded.tasks, self.comparison.batch
        yield from (tasks[start : start + batch] for start in range(0, len(tasks), batch))

    async def _run(
        self, jobs: Sequence[Job], scorer: StepScorer, strategy: Strategy
    ) -> list[SearchRun]:
        rules = SearchRules(strategy, BestScore(), extract=self.loaded.extract, split=split_steps)
        return await run_jobs(jobs, self.loaded.policy, scorer, rules)

    def _write(self, cell: Cell, entrant: Entrant, budgets: Sequence[int]) -> None:
        path = cell_path(self.out, self.start, self.stop, cell.name, cell.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = cell.to_json(described(entrant.make(cell.size)), budgets)
        write_atomically(path, json.dumps(row))
        where = f"problems {self.start}-{self.stop - 1}"
        self.report(f"{where}: {cell.name}@{cell.size} in {cell.seconds:.1f} s")


def _job(task: Task, run_seed: int) -> Job:
    return Job(SearchTree(task.problem, run_seed), task.images)


def run_comparison(
    comparison: Comparison, world: World, out: Path, *, jobs: int = 1, report: Report
) -> None:
    """Measure every cell that is not in `out` yet; `report` gets a line as each one ends.

    With `jobs` above 1 the shards are measured by that many processes of one thread each, which
    write their lines to stderr. Raises what the models raise; what was measured stays.
    """
    open_folder(comparison, world, out)
    shards = comparison.shards(world)
    progress = _Progress(comparison, out, shards, report)
    if jobs == 1 or len(shards) == 1:
        for start, stop in shards:
            measure_shard(comparison, world, out, start, stop, progress)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(min(jobs, len(shards)), mp_context=context) as pool:
        waiting = [
            pool.submit(_measure, comparison, world, out, start, stop) for start, stop in shards
        ]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Progress:
    """Puts the number of measured cells before every line."""

    def __init__(
        self, comparison: Comparison, out: Path, shards: list[tuple[int, int]], report: Report
    ) -> None:
        names = [entrant.name for entrant in entrants_of(comparison.entrants)]
        self._paths = [
            cell_path(out, start, stop, name, size)
            for start, stop in shards
            for name in names
            for size in sorted(set(comparison.sizes))
        ]
        self._report = report

    def __call__(self, line: str) -> None:
        done = sum(path.exists() for path in self._paths)
        self._report(f"[{done}/{len(self._paths)}] {line}")


def _measure(comparison: Comparison, world: World, out: Path, start: int, stop: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before the world loads torch
    progress = _Progress(comparison, out, comparison.shards(world), _to_stderr)
    measure_shard(comparison, world, out, start, stop, progress)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
