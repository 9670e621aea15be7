"""Measure strategies, selectors and sizes against each other at equal generated tokens.

Every search is kept as soon as it has ended (`compare.records`), and not made again. Best-of-N is
measured first: what its N samples cost on a problem is the budget of every other strategy of that
size on that problem. Its samples are one growing pool (the samples of N are the first of those of
2N), and the selectors of a strategy all choose from the same search, so that differences are
paired.

A *cell* is one strategy at one size on all problems. If more than `max_failed` of its calls failed
it is no result, and the searches in which some failed are made again by the next run.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vprm_search.compare.cell import same_strategy, write_atomically
from vprm_search.compare.entrants import (
    DEFAULT_ENTRANTS,
    Entrant,
    choice_of,
    described,
    entrants_of,
)
from vprm_search.compare.records import CUT, MAX_FAILED, Failures, Record, RecordFile, chosen
from vprm_search.compare.worlds import LoadedWorld, World
from vprm_search.errors import ConfigError, ModelChangedError, SearchError
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.graph.session import run_blocking
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

_LOST_IN_A_ROW = 10
"""So many searches of which nothing came end the run: the server is down."""


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

    def identity(self, world: World) -> dict[str, Any]:
        """Return what all records of one folder have in common."""
        facts = {"world": world.identity(), "run_seed": self.run_seed}
        return dict(json.loads(json.dumps(facts)))

    def shards(self, world: World) -> list[tuple[int, int]]:
        """Return the first problem of every shard and the one after its last."""
        size = world.size
        return [(start, min(start + self.shard, size)) for start in range(0, size, self.shard)]


# --- the folder ----------------------------------------------------------------------------------


def open_folder(comparison: Comparison, world: World, out: Path) -> None:
    """Make the folder of the results, or check that it holds results of the same comparison.

    Raises `ConfigError`, which names what differs, if it holds others.
    """
    wanted = comparison.identity(world)
    known = _read_identity(out)
    if known is None:
        write_atomically(_identity_path(out), json.dumps(wanted, indent=1))
        return
    asked, there = (_flat(facts) for facts in (wanted, known))
    differs = [name for name in asked if there.get(name, _MISSING) != asked[name]]
    if differs:
        lacking = all(name not in there for name in differs)
        why = " (they were measured by a version that did not look at it)" if lacking else ""
        raise ConfigError(
            f"{out} holds results of another comparison: {', '.join(differs)} differ{why}; use "
            "another --out folder, or the settings in its comparison.json"
        )


def _check_models(out: Path, models: Mapping[str, Any]) -> None:
    """Write down which models are served, or raise `ModelChangedError` if there were others."""
    known = _read_identity(out) or {}
    found = json.loads(json.dumps(dict(models)))
    if "models" not in known:
        if found:
            write_atomically(_identity_path(out), json.dumps({**known, "models": found}, indent=1))
    elif known["models"] != found:
        raise ModelChangedError(
            f"{out} was measured with {known['models']}, and now there is {found}; use another "
            "--out folder, or have the former model served"
        )


_MISSING = object()


def _identity_path(out: Path) -> Path:
    return out / "comparison.json"


def _read_identity(out: Path) -> dict[str, Any] | None:
    path = _identity_path(out)
    try:
        return dict(json.loads(path.read_text())) if path.exists() else None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); use another --out folder") from error


def _flat(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested facts by their dotted names, to tell where two differ."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        inside = isinstance(value, Mapping)
        flat |= _flat(value, f"{before}{name}.") if inside else {f"{before}{name}": value}
    return flat


# --- one shard -----------------------------------------------------------------------------------


def measure_shard(
    comparison: Comparison, world: World, out: Path, start: int, stop: int, report: Report
) -> None:
    """Make all searches of a shard that are not recorded yet, and those that must be repeated.

    Raises what the models raise, and `SearchError` when nothing at all comes from them.
    """
    shard = _Shard(comparison, world, out, start, stop, report, RecordFile(out))
    run_blocking(shard.measure())


class SharedTime:
    """Time that is shared evenly by all searches that are under way: wall time and CPU time."""

    def __init__(self, searches: int) -> None:
        self._active = searches
        self._share = [0.0, 0.0]
        self._last = self._now()

    def end_one(self) -> tuple[float, float]:
        """Return the seconds and CPU seconds of the search that has just ended."""
        now = self._now()
        for place in range(2):
            self._share[place] += (now[place] - self._last[place]) / self._active
        self._last = now
        self._active -= 1
        return self._share[0], self._share[1]

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


@dataclass(slots=True)
class _Shard:
    """One shard being measured; the problems and models are loaded when first needed."""

    comparison: Comparison
    world: World
    out: Path
    start: int
    stop: int
    report: Report
    records: RecordFile
    _loaded: LoadedWorld | None = None
    _lost: int = 0

    @property
    def loaded(self) -> LoadedWorld:
        if self._loaded is None:
            self._loaded = self.world.load(self.start, self.stop)
            _check_models(self.out, self._loaded.models)
        return self._loaded

    async def measure(self) -> None:
        reference, *others = entrants_of(self.comparison.entrants)
        sizes = sorted(set(self.comparison.sizes))
        await self._grow_pools(reference, sizes)
        for size in sizes:
            unfit = self._unfit(reference.name, size)
            for entrant in others:
                if not unfit:
                    await self._search(entrant, size, reference)
                elif self.missing(entrant, size, reference):
                    why = f"{reference.name}@{size}, which sets its budget, is no result"
                    self._tell(f"{entrant.name}@{size} not measured: {why}")

    # --- what is there

    def missing(self, entrant: Entrant, size: int, reference: Entrant) -> list[int]:
        """Return the problems to be measured: not recorded, with another budget, or failed."""
        own = entrant.name == reference.name
        found = []
        for problem in range(self.start, self.stop):
            record = self._valid(entrant, problem, size)
            pool = record if own else self.records.get(problem, reference.name, size)
            if record is None or pool is None or record.budget != pool.usage.generated_tokens:
                found.append(problem)
        return found

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
                f"{self.out}: {entrant.name}@{size} was measured with other options or selectors; "
                "use another --out folder"
            )
        return record

    def _unfit(self, name: str, size: int) -> bool:
        return self.records.failures(name, size).share > self.comparison.max_failed

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
            pools = {p: self.records.get(p, reference.name, size) for p in batch}
            budgets = {p: r.usage.generated_tokens for p, r in pools.items() if r is not None}
            seconds += await self._run(entrant, size, jobs, scorer, {}, budgets)
        self._tell_cell(entrant, size, seconds)

    def _batches(self, problems: Sequence[int]) -> Iterator[Sequence[int]]:
        batch = self.comparison.batch
        yield from (problems[at : at + batch] for at in range(0, len(problems), batch))

    def _job(self, problem: int, tree: SearchTree | None = None) -> Job:
        task = self.loaded.tasks[problem - self.start]
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
        strategy = entrant.make(size)
        if budgets is not None:
            caps = {job.tree.root_id: budgets[problem] for problem, job in jobs.items()}
            strategy = Capped(strategy, caps)
        rules = SearchRules(strategy, BestScore(), extract=self.loaded.extract, split=split_steps)
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
        tree, expected = run.tree, self.loaded.tasks[problem - self.start].answer
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
        self._lost = self._lost + 1 if record.failures.share == 1 else 0
        if self._lost == min(_LOST_IN_A_ROW, self.world.size):
            failures = self.records.failures(entrant.name, size)
            raise SearchError(
                f"stopped at {entrant.name}@{size}: nothing came of {self._lost} searches in a "
                f"row; {failures}, most often: {failures.most_frequent}; then run the same "
                "command again, which makes the searches that failed anew and keeps the others"
            )

    # --- what is said

    def _tell_cell(self, entrant: Entrant, size: int, seconds: float) -> None:
        failures = self.records.failures(entrant.name, size, range(self.start, self.stop))
        said = f"; {failures}, most often: {failures.most_frequent}" if failures.share else ""
        self._tell(f"{entrant.name}@{size} in {seconds:.1f} s{said}")

    def _tell(self, line: str) -> None:
        self.report(f"problems {self.start}-{self.stop - 1}: {line}")


# --- all shards ----------------------------------------------------------------------------------


def run_comparison(
    comparison: Comparison, world: World, out: Path, *, jobs: int = 1, report: Report
) -> None:
    """Make every search that is not in `out` yet; `report` gets a line as each cell ends.

    With `jobs` above 1 the shards are measured by that many processes of one thread each, which
    write their lines to stderr. Raises what the models raise, and `SearchError` when nothing at all
    comes from them; what was measured stays.
    """
    open_folder(comparison, world, out)
    shards = comparison.shards(world)
    if jobs == 1 or len(shards) == 1:
        records = RecordFile(out)
        measured = [
            _Shard(comparison, world, out, start, stop, report, records) for start, stop in shards
        ]
        progress = _Progress(comparison, measured, report)
        for shard in measured:
            shard.report = progress
            run_blocking(shard.measure())
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
    """Puts the number of cells that are done before every line."""

    def __init__(self, comparison: Comparison, shards: Sequence[_Shard], report: Report) -> None:
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


def _measure(comparison: Comparison, world: World, out: Path, start: int, stop: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before the world loads torch
    measure_shard(comparison, world, out, start, stop, _to_stderr)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
