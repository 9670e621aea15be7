"""Search strategies beside the pool, each at what the first N candidates of the pool generated.

They are made by the loop of `compare` and kept as it keeps them, one line with its tree for each
search; the set's grader decides on their answers, as on those of the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vprm_search.budget import Prices
from vprm_search.compare.comparison import Comparison
from vprm_search.compare.entrants import REFERENCE, SEARCH_CHOICES, entrants_of
from vprm_search.compare.records import Record, RecordFile
from vprm_search.compare.shard import Shard
from vprm_search.compare.summary import HEADLINE
from vprm_search.compare.worlds import LoadedWorld, Task
from vprm_search.datasets.graders import Grader
from vprm_search.datasets.problem_set import Item, ProblemSet
from vprm_search.errors import ConfigError, RecordError
from vprm_search.evaluate.candidates import CandidateFile
from vprm_search.evaluate.pool import SearchedProblem
from vprm_search.evaluate.prompts import Prompt
from vprm_search.evaluate.side_by_side import FREE, Done, Progress
from vprm_search.tree import SearchTree
from vprm_search.types import Policy, StepScorer

FACTS = "searches"
LEAST_N = 4
"""Of fewer candidates' tokens no strategy can make a search worth the name."""


def strategies_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return strategies by name, each once. Raises `ConfigError` for one that is not known."""
    if REFERENCE in names:
        raise ConfigError(f"--strategy {REFERENCE} is the pool itself; name another one")
    return tuple(entrant.name for entrant in entrants_of(names)[1:])


def folder_of(run: Path) -> Path:
    """Return where the searches of a run are kept."""
    return run / "searches"


class _Records(RecordFile):
    """Records whose writing is told of."""

    def __init__(self, out: Path, progress: Progress, prices: Prices) -> None:
        super().__init__(out)
        self._progress, self._prices = progress, prices

    def append(self, record: Record, tree: SearchTree) -> None:
        super().append(record, tree)
        self._progress(
            Done(
                1,
                int(bool(record.failures.share)),
                generated_tokens=record.usage.generated_tokens,
                scored_tokens=record.usage.scored_tokens,
                cost=self._prices.cost_of(record.usage),
            )
        )


@dataclass(slots=True)
class Searching:
    """Searches being made.

    Args:
        problems: the set.
        prompt: what a question is put into.
        candidates: whose tokens are the budgets.
        names: the strategies.
        sizes: the N's.
        policy: what proposes steps.
        new_scorer: makes scorers that have kept nothing.
        out: folder of the run.
        seed: makes all draws.
        max_failed: the share of its calls that may fail in a strategy at an N that is a result.
        batch: problems whose searches advance together (16); a run that is killed loses those.
        prices: what tokens cost. Default: nothing.
        progress: is told of all that comes.
        report: gets a line as a strategy ends on a part of the set.
    """

    problems: ProblemSet
    prompt: Prompt
    candidates: CandidateFile
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    policy: Policy
    new_scorer: Callable[[], StepScorer]
    out: Path
    seed: int = 0
    max_failed: float = 0.05
    batch: int = 16
    prices: Prices = FREE
    progress: Progress = lambda _: None
    report: Callable[[str], None] = lambda _: None
    _budgets: dict[tuple[int, int], int] = field(default_factory=dict)

    async def run(self) -> dict[str, tuple[int, int]]:
        """Make the searches that are not there; return calls that failed, and all, by "name@N".

        Raises:
            RecordError: a problem has not all its candidates.
            SearchError: nothing came of many searches in a row.
        """
        folder = folder_of(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(
            (REFERENCE, *self.names),
            self.sizes,
            SEARCH_CHOICES,
            self.seed,
            batch=self.batch,
            max_failed=self.max_failed,
        )
        records = _Records(folder, self.progress, self.prices)
        for start in range(0, len(self.problems), self.batch):
            part = range(start, min(start + self.batch, len(self.problems)))
            shard = Shard(
                comparison,
                part,
                lambda part=part: self._loaded(part),  # type: ignore[misc]
                records,
                self.report,
                len(self.problems),
                self._budget,
            )
            await shard.measure()
        failures = {}
        for name in self.names:
            for size in self.sizes:
                found = records.failures(name, size)
                if failed := found.lost + found.unscored:
                    failures[f"{name}@{size}"] = failed, found.candidates + found.steps
        return failures

    def _loaded(self, part: range) -> LoadedWorld:
        tasks = []
        for place in part:
            loaded = self.problems.load(self.problems[place])
            answer = _expected(self.problems[place])
            tasks.append(Task(self.prompt.put(loaded.problem), loaded.images, answer))
        return LoadedWorld(tasks, self.policy, self.new_scorer)

    def _budget(self, place: int, size: int) -> int:
        """Return what the first candidates generated. Raises `RecordError` if there are fewer."""
        if (place, size) not in self._budgets:
            item = self.problems[place]
            tokens = [c.generated_tokens for c in self.candidates.of(item) if c.index < size]
            if len(tokens) < size:
                raise RecordError(
                    f"{self.candidates.lines.path}: row {item.row} has {len(tokens)} of {size} "
                    "candidates, whose tokens are the searches' budget; run --stage generate"
                )
            self._budgets[place, size] = sum(tokens)
        return self._budgets[place, size]


def searched(
    run: Path, problems: ProblemSet, grader: Grader, prices: Prices = FREE
) -> Iterator[SearchedProblem]:
    """Yield what the searches of a run came to, of problems with a published answer.

    Raises `RecordError` for a damaged record, or one of another set.
    """
    folder = folder_of(run)
    if not folder.is_dir():
        return
    for record in RecordFile(folder):
        if record.problem >= len(problems):
            continue  # of a run over more of the set
        item = problems[record.problem]
        if record.expected != _expected(item):
            raise RecordError(
                f"{folder}: a search of row {item.row} was made for another answer; give the set "
                "it was made for, or remove the folder"
            )
        if item.answer_type == "none":
            continue
        yield SearchedProblem(
            id=item.id,
            strategy=record.name,
            size=record.size,
            right=float(bool(grader.grade(item, _said(record)).right)),
            generated_tokens=record.usage.generated_tokens,
            scored_tokens=record.usage.scored_tokens,
            seconds=record.seconds,
            cost=prices.cost_of(record.usage),
        )


def _said(record: Record) -> str:
    choice: Any = record.choices.get(HEADLINE)
    return "" if choice is None or choice.answer is None else str(choice.answer)


def _expected(item: Item) -> str:
    return item.letters if item.answer_type == "choice" else item.answer
