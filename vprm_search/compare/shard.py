"""One shard of a comparison: its searches at equal generated tokens, recorded as they end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vprm_search.budget import Budget
from vprm_search.compare.cell import same_strategy
from vprm_search.compare.entrants import Entrant, described, entrants_of
from vprm_search.compare.records import Failures, Record, RecordFile, chosen
from vprm_search.compare.worlds import LoadedWorld
from vprm_search.errors import ConfigError, SearchError
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.search import BestScore
from vprm_search.steps import split_steps
from vprm_search.tree import SearchTree
from vprm_search.types import StepScorer

if TYPE_CHECKING:
    from vprm_search.compare.comparison import Comparison

_LOST_IN_A_ROW = 10
"""So many searches of which nothing came end the run: the server is down."""


class SharedTime:
    """Time that is shared evenly by all that is under way: wall time and CPU time.

    Args:
        active: searches, or other pieces of work, that are under way from the start.
    """

    def __init__(self, active: int = 0) -> None:
        self._active = active
        self._share = [0.0, 0.0]
        self._last = self._now()

    def begin_one(self) -> tuple[float, float]:
        """Count one more; return what `end_one` wants of it."""
        self._pass()
        self._active += 1
        return self._share[0], self._share[1]

    def end_one(self, begun: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
        """Return the seconds and CPU seconds of one that has just ended."""
        self._pass()
        self._active -= 1
        return self._share[0] - begun[0], self._share[1] - begun[1]

    def _pass(self) -> None:
        now = self._now()
        for place in range(2):
            self._share[place] += (now[place] - self._last[place]) / max(1, self._active)
        self._last = now

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


@dataclass(slots=True)
class Shard:
    """One shard being measured; the problems and models are loaded when first needed.

    Args:
        comparison: what is compared.
        problems: the problems of the shard.
        load: loads them, with the models.
        records: what is measured already; what is measured now is added.
        report: gets a line as each cell ends.
        size: the problems of all shards.
        budgets: the tokens that a problem's searches of a size may generate, where best-of-N was
            sampled elsewhere. Default: what its own best-of-N of that size generated.
    """

    comparison: Comparison
    problems: range
    load: Callable[[], LoadedWorld]
    records: RecordFile
    report: Callable[[str], None]
    size: int
    budgets: Callable[[int, int], int] | None = None
    _loaded: LoadedWorld | None = None
    _lost: int = 0

    @property
    def loaded(self) -> LoadedWorld:
        if self._loaded is None:
            self._loaded = self.load()
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
        failed = sum(record.failures.share for record in known) / self.size
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
        self._lost = self._lost + 1 if record.failures.share == 1 else 0
        if self._lost == min(_LOST_IN_A_ROW, self.size):
            failures = self.records.failures(entrant.name, size)
            raise SearchError(
                f"stopped at {entrant.name}@{size}: nothing came of {self._lost} searches in a "
                f"row; {failures}, most often: {failures.most_frequent}; then run the same "
                "command again, which makes the searches that failed anew and keeps the others"
            )

    # --- what is said

    def _tell_cell(self, entrant: Entrant, size: int, seconds: float) -> None:
        failures = self.records.failures(entrant.name, size, self.problems)
        said = f"; {failures}, most often: {failures.most_frequent}" if failures.share else ""
        self._tell(f"{entrant.name}@{size} in {seconds:.1f} s{said}")

    def _tell(self, line: str) -> None:
        self.report(f"problems {self.problems[0]}-{self.problems[-1]}: {line}")
