"""Searches by several strategies and sizes at equal generated tokens, recorded as they end.

Every search is kept as soon as it has ended (`evaluate.search_records`), and not made again.
Best-of-N is measured first: what its N samples cost on a problem is the budget of every other
strategy of that size on that problem, but where the budgets come from elsewhere. Its samples are
one growing pool (the samples of N are the first of those of 2N), and the selectors of a strategy
all choose from the same search, so that differences are paired.

A *cell* is one strategy at one size on all problems. If more than `max_failed` of its calls failed
it is no result, and the searches in which some failed are made again by the next run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vprm_search.budget import Budget
from vprm_search.compare.entrants import (
    DEFAULT_ENTRANTS,
    Entrant,
    choice_of,
    described,
    entrants_of,
)
from vprm_search.compare.worlds import LoadedWorld, World
from vprm_search.errors import ConfigError, ModelChangedError
from vprm_search.evaluate.candidates import FACTS
from vprm_search.evaluate.cells import same_strategy
from vprm_search.evaluate.folder import MODELS, SEARCHES, RunFolder
from vprm_search.evaluate.search_records import (
    FILE_NAME,
    MAX_FAILED,
    Failures,
    Record,
    RecordFile,
    chosen,
)
from vprm_search.evaluate.side_by_side import LOST_IN_A_ROW, Losses, SharedTime
from vprm_search.graph.blocking import run_blocking
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.search import BestScore
from vprm_search.steps import split_steps
from vprm_search.tree import SearchTree
from vprm_search.types import StepScorer

Report = Callable[[str], None]
Budgets = Callable[[int, int], int]
"""The tokens that a problem's searches of a size may generate."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to compare. `choices` replace the selectors that each strategy has by default.

    Args:
        entrants: strategies by name (`compare.entrants.ENTRANTS`).
        sizes: the N of best-of-N and of the strategies of its cost.
        run_seed: makes all draws of the policy.
        batch: problems whose searches advance together; a run that is killed loses those.
        shard: problems that are loaded together, and that one process measures.
        max_failed: the share of its calls, in [0, 1], that may fail in a cell that is a result.
    """

    entrants: tuple[str, ...] = DEFAULT_ENTRANTS
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64)
    choices: tuple[str, ...] = ()
    run_seed: int = 0
    batch: int = 50
    shard: int = 50
    max_failed: float = MAX_FAILED

    def __post_init__(self) -> None:
        """Raise `ConfigError` on values that cannot be measured."""
        entrants_of(self.entrants)
        for choice in self.choices:
            choice_of(choice)
        if not self.sizes or not all(2 <= size <= 256 for size in self.sizes):
            raise ConfigError(f"sizes {list(self.sizes)}: give some, each between 2 and 256")
        if self.batch < 1 or self.shard < 1:
            raise ConfigError(f"batch {self.batch} and shard {self.shard} must be at least 1")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"max_failed is {self.max_failed}; it must lie between 0 and 1")

    @property
    def cells(self) -> list[tuple[str, int]]:
        """What is measured on every problem: strategies by name, and sizes."""
        names = [entrant.name for entrant in entrants_of(self.entrants)]
        return [(name, size) for size in sorted(set(self.sizes)) for name in names]

    def shards(self, world: World) -> list[range]:
        """Return the problems of every shard."""
        whole = range(world.size)
        return [whole[start : start + self.shard] for start in whole[:: self.shard]]

    def open(self, world: World, out: Path) -> None:
        """Make the folder of the results, or check that it holds results of the same world.

        Raises `ConfigError`, which names what differs, if it holds others, or a run of `evaluate`.
        """
        folder = RunFolder(out)
        if folder.facts(FACTS) is not None:
            raise ConfigError(
                f"{out} has a run of vprm-search evaluate; give compare an --out folder of its own"
            )
        if not (out / FILE_NAME).exists() and not (out / "cells").exists():
            folder.forget(SEARCHES, MODELS)  # of a run that ended before its first search
        identity, known = world.identity(), folder.facts(SEARCHES) or {}
        count = known.get("world", {}).get("problems")
        if isinstance(count, int):  # how many there are was a part of it before 0.2
            identity["problems"] = count
        folder.settle(SEARCHES, {"world": identity, "run_seed": self.run_seed})


@dataclass(slots=True)
class Shard:
    """One shard being measured; the problems and models are loaded when first needed.

    Args:
        comparison: what is compared.
        problems: the problems of the shard.
        world: loads them, with the models.
        records: what is measured already; what is measured now is added.
        report: gets a line as each cell ends.
        budgets: where best-of-N was sampled elsewhere. Default: what its own best-of-N of that
            size generated.
    """

    comparison: Comparison
    problems: range
    world: World
    records: RecordFile
    report: Report
    budgets: Budgets | None = None
    _loaded: LoadedWorld | None = None
    _losses: Losses = field(init=False)

    def __post_init__(self) -> None:
        self._losses = Losses("the run", min(LOST_IN_A_ROW, self.world.size), "searches")

    @property
    def loaded(self) -> LoadedWorld:
        if self._loaded is None:
            self._loaded = self.world.load(self.problems.start, self.problems.stop)
            _check_models(self.records.path.parent, self._loaded.models)
        return self._loaded

    async def measure(self) -> None:
        """Make the searches that are not recorded, and those that must be repeated.

        Raises what the models raise, and `SearchError` when nothing at all comes from them.
        """
        reference, *others = entrants_of(self.comparison.entrants)
        sizes = sorted(set(self.comparison.sizes))
        if self.budgets is None:
            await self._grow_pools(reference, sizes)
        for size in sizes:
            budgets = self.budgets is not None or self._may_be_result(reference.name, size)
            for entrant in others:
                if budgets:
                    await self._search(entrant, size, reference)
                elif self.missing(entrant, size, reference):
                    why = f"{reference.name}@{size}, which sets its budget, is no result"
                    self._tell(f"{entrant.name}@{size} not measured: {why}")

    # --- what is there

    def missing(self, entrant: Entrant, size: int, reference: Entrant) -> list[int]:
        """Return the problems to be measured: not recorded, with another budget, or failed."""
        own = entrant.name == reference.name
        found = []
        for problem in self.problems:
            record = self._valid(entrant, problem, size)
            if own and record is not None:
                budget: int | None = record.usage.generated_tokens
            else:
                budget = self._budget(problem, size, reference)
            if record is None or record.budget != budget:
                found.append(problem)
        return found

    def _budget(self, problem: int, size: int, reference: Entrant) -> int | None:
        if self.budgets is not None:
            return self.budgets(problem, size)
        pool = self.records.get(problem, reference.name, size)
        return None if pool is None else pool.usage.generated_tokens

    def _valid(self, entrant: Entrant, problem: int, size: int) -> Record | None:
        """Return the record of a search, None if there is none or it is to be made again.

        Raises `ConfigError` if another strategy was measured under this name.
        """
        record = self.records.get(problem, entrant.name, size)
        if record is None or (record.failures.share and self._unfit(entrant.name, size)):
            return None
        wanted = json.loads(json.dumps(described(entrant.make(size))))
        lacking = set(self._choices(entrant)) - set(record.choices)
        if not same_strategy(dict(record.strategy), wanted) or (lacking and not record.root):
            raise ConfigError(
                f"{self.records.path}: {entrant.name}@{size} was measured with other options or "
                "selectors; use another --out folder"
            )
        return record

    def _unfit(self, name: str, size: int) -> bool:
        return self.records.failures(name, size).share > self.comparison.max_failed

    def _may_be_result(self, name: str, size: int) -> bool:
        """Whether few enough calls have failed if none does on the problems still to come."""
        known = (record for record in self.records if (record.name, record.size) == (name, size))
        failed = sum(record.failures.share for record in known) / self.world.size
        return failed <= self.comparison.max_failed

    def _choices(self, entrant: Entrant) -> tuple[str, ...]:
        return self.comparison.choices or entrant.choices

    # --- what is measured

    async def _grow_pools(self, entrant: Entrant, sizes: Sequence[int]) -> None:
        """Measure best-of-N at growing N on the same samples, from the first N that is missing.

        A problem's pool goes on from the tree of the largest N below that one, if it was kept. Each
        N pays for its own samples only.
        """
        first: dict[int, int] = {}
        for size in reversed(sizes):
            first |= dict.fromkeys(self.missing(entrant, size, entrant), size)
        if not first:
            return
        scorer = self.loaded.new_scorer()
        measured = dict.fromkeys(sizes, 0.0)
        for batch in self._batches(sorted(first)):
            jobs, spent = {}, {}
            for problem in batch:
                begun = self._begun(entrant, problem, first[problem])
                if begun is None:
                    first[problem] = 0
                jobs[problem], spent[problem] = begun or (self._job(problem), (0.0, 0.0))
            for size in sizes:
                todo = {problem: job for problem, job in jobs.items() if size >= first[problem]}
                if todo:
                    measured[size] += await self._run(entrant, size, todo, scorer, spent)
        for size, seconds in measured.items():
            if seconds:
                self._tell_cell(entrant, size, seconds)

    def _begun(
        self, entrant: Entrant, problem: int, first: int
    ) -> tuple[Job, tuple[float, float]] | None:
        """Return the pool of the largest N below `first` that was kept, and the time it took."""
        for size in range(first - 1, 1, -1):
            record = self._valid(entrant, problem, size)
            tree = None if record is None else self.records.tree(record)
            if record is not None and tree is not None:
                return self._job(problem, tree), (record.seconds, record.cpu_seconds)
        return None

    async def _search(self, entrant: Entrant, size: int, reference: Entrant) -> None:
        missing = self.missing(entrant, size, reference)
        if not missing:
            return
        scorer, seconds = self.loaded.new_scorer(), 0.0
        for batch in self._batches(missing):
            jobs = {problem: self._job(problem) for problem in batch}
            known = {problem: self._budget(problem, size, reference) for problem in batch}
            budgets = {problem: tokens for problem, tokens in known.items() if tokens is not None}
            seconds += await self._run(entrant, size, jobs, scorer, {}, budgets)
        self._tell_cell(entrant, size, seconds)

    def _batches(self, problems: Sequence[int]) -> Iterator[Sequence[int]]:
        batch = self.comparison.batch
        yield from (problems[at : at + batch] for at in range(0, len(problems), batch))

    def _job(self, problem: int, tree: SearchTree | None = None) -> Job:
        task = self.loaded.tasks[problem - self.problems.start]
        return Job(tree or SearchTree(task.problem, self.comparison.run_seed), task.images)

    async def _run(
        self,
        entrant: Entrant,
        size: int,
        jobs: Mapping[int, Job],
        scorer: StepScorer,
        spent: dict[int, tuple[float, float]],
        budgets: Mapping[int, int] | None = None,
    ) -> float:
        """Make searches together, keep each as it ends; return the seconds they took.

        `spent` holds what their trees took before, and gets what they have taken then.
        """
        for problem, tokens in (budgets or {}).items():
            jobs[problem].budget = Budget(generated_tokens=max(1, tokens))  # 0: no call answered
        strategy, extract = entrant.make(size), self.loaded.extract
        rules = SearchRules(strategy, BestScore(), extract=extract, split=split_steps)
        problems, clock = list(jobs), SharedTime(len(jobs))

        def keep(place: int, run: SearchRun) -> None:
            problem = problems[place]
            before, share = spent.get(problem, (0.0, 0.0)), clock.end_one()
            spent[problem] = before[0] + share[0], before[1] + share[1]
            budget = None if budgets is None else budgets[problem]
            self._keep(entrant, size, problem, run, budget, spent[problem])

        began = time.perf_counter()
        await run_jobs(list(jobs.values()), self.loaded.policy, scorer, rules, on_run=keep)
        return time.perf_counter() - began

    def _keep(
        self,
        entrant: Entrant,
        size: int,
        problem: int,
        run: SearchRun,
        budget: int | None,
        spent: tuple[float, float],
    ) -> None:
        tree, expected = run.tree, self.loaded.tasks[problem - self.problems.start].answer
        record = Record(
            problem=problem,
            name=entrant.name,
            size=size,
            strategy=described(entrant.make(size)),
            root=tree.root_id,
            expected=expected,
            budget=tree.totals.generated_tokens if budget is None else budget,
            ended_by=run.result.ended_by,
            finished=len(tree.finished()),
            seconds=spent[0],
            cpu_seconds=spent[1],
            usage=replace(tree.totals, seconds=spent[0]),
            failures=Failures.of(tree),
            choices={name: chosen(tree, name, expected) for name in self._choices(entrant)},
        )
        self.records.append(record, tree)
        lost = record.failures.share == 1
        self._losses.note(f"{entrant.name}@{size}: {self._failed(entrant, size)}" if lost else "")

    def _failed(self, entrant: Entrant, size: int, problems: range | None = None) -> str:
        failures = self.records.failures(entrant.name, size, problems)
        return f"{failures}, most often: {failures.most_frequent}" if failures.share else ""

    # --- what is said

    def _tell_cell(self, entrant: Entrant, size: int, seconds: float) -> None:
        said = self._failed(entrant, size, self.problems)
        self._tell(f"{entrant.name}@{size} in {seconds:.1f} s" + (f"; {said}" if said else ""))

    def _tell(self, line: str) -> None:
        self.report(f"problems {self.problems[0]}-{self.problems[-1]}: {line}")


# --- all of them


def run_comparison(
    comparison: Comparison, world: World, out: Path, *, jobs: int = 1, report: Report
) -> None:
    """Make every search that is not in `out` yet; `report` gets a line as each cell ends.

    With `jobs` above 1 the shards are measured by that many processes of one thread each, which
    write their lines to stderr; on Windows, where no file is locked, by one. Raises what the models
    raise, and `SearchError` when nothing at all comes from them; what was measured stays.
    """
    comparison.open(world, out)
    shards = comparison.shards(world)
    if jobs == 1 or len(shards) == 1 or os.name == "nt":
        records = RecordFile(out)
        measured = [Shard(comparison, part, world, records, report) for part in shards]
        progress = _Progress(comparison, measured, report)
        for shard in measured:
            shard.report = progress
            run_blocking(shard.measure())  # one loop for all: clients keep connections
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    workers = min(jobs, len(shards))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        waiting = [pool.submit(_measure, comparison, world, out, part) for part in shards]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_models(out: Path, models: Mapping[str, Any]) -> None:
    """Write down which models are served, or raise `ModelChangedError` if there were others."""
    folder, found = RunFolder(out), json.loads(json.dumps(dict(models)))
    known = folder.facts(MODELS)
    if known is None:
        if found:
            folder.settle(MODELS, found)
    elif known != found:
        raise ModelChangedError(
            f"{out} was measured with {known}, and now there is {found}; use another --out folder, "
            "or have the former model served"
        )


class _Progress:
    """Puts the number of cells that are done before every line."""

    def __init__(self, comparison: Comparison, shards: Sequence[Shard], report: Report) -> None:
        reference, *_ = entrants = entrants_of(comparison.entrants)
        sizes = set(comparison.sizes)
        self._all = len(shards) * len(comparison.cells)
        left = sum(
            bool(shard.missing(entrant, size, reference))
            for shard in shards
            for entrant in entrants
            for size in sizes
        )
        self._done = self._all - left
        self._report = report

    def __call__(self, line: str) -> None:
        self._done = min(self._done + 1, self._all)
        self._report(f"[{self._done}/{self._all}] {line}")


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, also by kill -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _measure(comparison: Comparison, world: World, out: Path, problems: range) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before the world loads torch
    run_blocking(Shard(comparison, problems, world, RecordFile(out), _to_stderr).measure())


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
