"""Search strategies beside the pool, each at what the first N candidates of the pool generated.

They are made and kept as those of `vprm-search compare` are (`evaluate.searches`), on the problems
of a set; the set's grader decides on their answers, as on those of the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vprm_search.budget import Prices
from vprm_search.compare.entrants import REFERENCE, SAMPLE_CHOICES, entrants_of
from vprm_search.compare.worlds import LoadedWorld, Task
from vprm_search.datasets.graders import Grader
from vprm_search.datasets.problem_set import Item, ProblemSet
from vprm_search.errors import ConfigError, RecordError
from vprm_search.evaluate.candidates import CandidateFile
from vprm_search.evaluate.critics import COSTS, Table
from vprm_search.evaluate.estimators import MAJORITY, VOTE, sizes_of
from vprm_search.evaluate.prompts import PROMPTS, Prompt
from vprm_search.evaluate.search_records import Choice, Record, RecordFile
from vprm_search.evaluate.search_summary import Measured, cells_of, summarise
from vprm_search.evaluate.searches import Budgets
from vprm_search.evaluate.side_by_side import FREE
from vprm_search.types import Policy, StepScorer

LEAST_N = 4
"""Of fewer candidates' tokens no strategy can make a search worth the name."""


def strategies_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return strategies by name, each once. Raises `ConfigError` for one that is not known."""
    if REFERENCE in names:
        raise ConfigError(f"--strategy {REFERENCE} is the pool itself; name another one")
    return tuple(entrant.name for entrant in entrants_of(names)[1:])


def search_sizes(n: int) -> tuple[int, ...]:
    """Return the N's at which strategies search beside a pool of `n`.

    Raises `ConfigError` if there is none.
    """
    sizes = tuple(size for size in sizes_of(n) if size >= LEAST_N)
    if not sizes:
        raise ConfigError(
            f"--strategy needs --n {LEAST_N} at least, for it to have a budget; got {n}"
        )
    return sizes


@dataclass(frozen=True, slots=True)
class SetProblems:
    """Problems of a set with a policy and a scorer of one's own, as a world to search in.

    Args:
        problems: the set.
        policy: loads what proposes steps.
        scorer: loads a scorer, and returns what makes scorers of it that have kept nothing.
        names: what names both, as plain JSON.
        prompt: what a question is put into.
    """

    problems: ProblemSet
    policy: Callable[[], Policy] = field(repr=False)
    scorer: Callable[[], Callable[[], StepScorer]] = field(repr=False)
    names: Mapping[str, Any] = field(default_factory=dict)
    prompt: Prompt = PROMPTS["plain"]

    @property
    def size(self) -> int:
        """The number of problems."""
        return len(self.problems)

    def identity(self) -> dict[str, Any]:
        """Return digests of the problems and of their images' bytes, and what names the models.

        Raises `ImageError` for an image that is not there.
        """
        return {"world": "file", **self.problems.identity(), **self.names}

    def load(self, start: int, stop: int) -> LoadedWorld:
        """Read the images and load the models."""
        tasks = []
        for item in self.problems[start:stop]:
            loaded = self.problems.load(item)
            tasks.append(Task(self.prompt.put(loaded.problem), loaded.images, expected_of(item)))
        new_scorer = self.scorer()
        models = {"scorer": getattr(new_scorer(), "identity", "")}
        return LoadedWorld(tasks, self.policy(), new_scorer, models=models)


def expected_of(item: Item) -> str:
    """Return the right answer of a problem: the letters of its choices, else its text."""
    return item.letters if item.answer_type == "choice" else item.answer


def budgets_of(problems: ProblemSet, candidates: CandidateFile) -> Budgets:
    """Return what tells what the first candidates of a problem, by its place, generated.

    It raises `RecordError` if there are fewer.
    """

    @cache
    def budget(place: int, size: int) -> int:
        item = problems[place]
        tokens = [c.generated_tokens for c in candidates.of(item) if c.index < size]
        if len(tokens) < size:
            raise RecordError(
                f"{candidates.lines.path}: row {item.row} has {len(tokens)} of {size} "
                "candidates, whose tokens are the searches' budget; run --stage generate"
            )
        return sum(tokens)

    return budget


def searched(
    run: Path, problems: ProblemSet, table: Table, grader: Grader, prices: Prices = FREE
) -> dict[str, Any]:
    """Return what the searches of a run came to (`search_summary.summarise`), beside its pool.

    Only problems of the table count. Raises `RecordError` for a damaged record, or one of another
    set.

    Args:
        run: the folder.
        problems: the set.
        table: of the pool: its first N candidates are best-of-N.
        grader: decides on answers.
        prices: what tokens cost. Default: nothing.
    """
    rows = {problems[at].id: at for at in range(len(problems))}
    places = {rows[place.id]: place for place in table.places}
    file, kept = RecordFile(run), []
    for record in file:
        if record.problem >= len(problems):
            continue  # of a run over more of the set
        item = problems[record.problem]
        if record.expected != expected_of(item):
            raise RecordError(
                f"{run}: a search of row {item.row} was made for another answer; give the set it "
                "was made for, or another --out folder"
            )
        if record.problem in places:
            kept.append(record)

    def rule(record: Record, choice: Choice) -> bool:
        return bool(grader.grade(problems[record.problem], choice.answer or "").right)

    cells = cells_of(file, kept, rule, prices=prices)
    sizes = sorted({cell.size for cell in cells} & set(table.sizes))
    pools = [best_of_n(table, size, tuple(places)) for size in sizes]
    return summarise([*pools, *cells], 1.0, name=table.name, places=places)


def best_of_n(table: Table, size: int, problems: tuple[int, ...]) -> Measured:
    """Return best-of-N as the first N candidates of a pool have it, by the selectors of samples."""
    at = table.sizes.index(size)
    first = {name: np.array([one[n, at] for one in table.first])
             for n, name in enumerate(table.selectors)}  # fmt: skip
    known = {"majority": first[MAJORITY]}
    for critic in set(table.critics) - set(table.lacking):
        family, _, rule = critic.partition(":")
        if family == "prm":
            known[f"best-score:{rule}"] = first[critic]
            known[f"weighted-vote:{rule}"] = first[f"{VOTE}{critic}"]
    right = {choice: known[choice] for choice in SAMPLE_CHOICES if choice in known}
    costs = {name: np.array([one[at, n] for one in table.costs]) for n, name in enumerate(COSTS)}
    return Measured(REFERENCE, size, problems, costs, right)
