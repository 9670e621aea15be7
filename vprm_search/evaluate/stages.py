"""The stages over the files of one folder: what is there already is not made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from vprm_search.budget import Prices
from vprm_search.compare.entrants import SEARCH_CHOICES
from vprm_search.datasets.problem_set import ProblemSet
from vprm_search.errors import ConfigError, RecordError
from vprm_search.evaluate.candidates import FACTS, CandidateFile, Sampling
from vprm_search.evaluate.folder import CALLED, SEARCHES, Facts, RunFolder, key_of
from vprm_search.evaluate.generation import Generation
from vprm_search.evaluate.grading import GradeFile, Grading, GradingRun
from vprm_search.evaluate.lines import KeyedLines
from vprm_search.evaluate.pooling import CRITIC, GRADER, SET
from vprm_search.evaluate.prompts import Prompt
from vprm_search.evaluate.scoring import Critic, ScoreFile, Scoring
from vprm_search.evaluate.search_records import MAX_FAILED, RecordFile
from vprm_search.evaluate.searches import Comparison, Shard
from vprm_search.evaluate.side_by_side import FREE, Progress
from vprm_search.evaluate.strategies import SetProblems, budgets_of, search_sizes, strategies_of
from vprm_search.types import Policy, StepScorer

Watch = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens a progress bar: what is done, and how many candidates there are to be done."""


@dataclass(slots=True)
class Stages:
    """One folder, and what is to be in it.

    Args:
        problems: the set.
        folder: of the run; the caller keeps other processes out (`RunFolder.locked`).
        n: candidates of every problem.
        width: problems side by side (8).
        prices: what tokens cost. Default: nothing.
        watch: opens a progress bar.
        failures: by stage, how many candidates failed, and of how many.
        reasons: by stage, why one of them did, where that is known.
    """

    problems: ProblemSet
    folder: RunFolder
    n: int
    width: int = 8
    prices: Prices = FREE
    watch: Watch = lambda _, __: nullcontext(lambda _: None)
    failures: dict[str, tuple[int, int]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    async def generate(self, sampling: Sampling, load: Callable[[], Policy]) -> None:
        """Sample candidates; the policy is loaded if some are to be made.

        Raises:
            ConfigError: the folder has candidates of other settings, or is one of `compare`.
            RecordError: it has candidates for another problem or other pictures.
            SearchError: nothing came of many calls in a row.
        """
        facts = sampling.facts()
        if "world" in (self.folder.facts(SEARCHES) or {}):
            raise ConfigError(
                f"{self.folder.path} has the searches of vprm-search compare; give evaluate an "
                "--out folder of its own"
            )
        self._let_go(FACTS, facts, lambda known: CandidateFile(self.folder.path, known).lines)
        for kind, told in ((SET, self._set()), (FACTS, facts)):
            self.folder.check(kind, told)
        file = CandidateFile(self.folder.path, facts)
        left = sum(not file.has(item, place) for item in self.problems for place in range(self.n))
        policy = load() if left else None  # before anything is written: its name may be wrong
        for kind, told in ((SET, self._set()), (FACTS, facts)):
            self.folder.settle(kind, told)
        if policy is not None:
            run = Generation(
                self.problems, policy, sampling.prompt, sampling.greedy_first, file, self.width
            )
            run.prices = self.prices
            with self.watch("generate", left) as run.progress:
                await run.run(self.n)
        else:
            for _ in file.checked(self.problems):
                pass
        self._note("generate", file.lines)

    def check(self, critics: Sequence[Critic], gradings: Sequence[Grading]) -> None:
        """Raise `ConfigError` if others of these names were at work in the folder.

        A reward model on a server is asked what it is.
        """
        for one in critics:
            self._check_critic(one)
        for grading in gradings:
            self.folder.check(f"{GRADER} {grading.name}", grading.facts())

    def _check_critic(self, critic: Critic) -> Facts:
        """Return a critic's facts. Raises as `check`."""
        facts, kind = critic.facts(), f"{CRITIC} {critic.name}"
        self._let_go(
            kind, facts, lambda known: ScoreFile(self.folder.path, critic.name, known).lines
        )
        return self.folder.check(kind, facts)

    async def score(self, critics: Sequence[Critic]) -> None:
        """Score candidates by each critic; in this process one problem after the other.

        Raises what `Scoring.run` raises, and `ConfigError` for another scorer of the same name.
        """
        candidates, prompt = self.candidates()
        there = self._there(candidates)
        for critic in critics:
            facts = self._check_critic(critic)
            self.folder.settle(f"{CRITIC} {critic.name}", facts)
            file = ScoreFile(self.folder.path, critic.name, facts)
            run = Scoring(self.problems, prompt, candidates, critic, file, self.width, self.prices)
            with self.watch(f"score ({critic.name})", max(0, there - len(file.lines))) as bar:
                run.progress = bar
                await run.run(self.n)
            self._note(f"score ({critic.name})", file.lines)

    async def search(
        self,
        names: Sequence[str],
        policy: Callable[[], Policy],
        scorer: tuple[Critic, Callable[[], StepScorer]],
        *,
        max_failed: float = MAX_FAILED,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Let strategies search with what the first N candidates generated, N from 4 on.

        Args:
            names: of the strategies.
            policy: loads the policy.
            scorer: the process reward model as a critic, and what makes scorers of it that have
                kept nothing.
            max_failed: the share of its calls that may fail in a result.
            report: gets a line as a strategy ends on a part of the set.

        Raises:
            ConfigError: a strategy that is not known, or other searches are in the folder.
            RecordError: a problem has not all its candidates.
            SearchError: nothing came of many searches in a row.
        """
        strategies = strategies_of(names)
        candidates, prompt = self.candidates()
        critic, new_scorer = scorer
        facts = {"run": candidates.run, "scorer": critic.facts()["identity"]}
        self.folder.settle(SEARCHES, facts)
        sizes = search_sizes(self.n)
        count = len(strategies) * len(sizes) * len(self.problems)
        made = policy()
        world = SetProblems(self.problems, lambda: made, lambda: new_scorer, prompt=prompt)
        comparison = Comparison(
            strategies, sizes, SEARCH_CHOICES, batch=self.width, shard=self.width,
            max_failed=max_failed,
        )  # fmt: skip
        budgets = budgets_of(self.problems, candidates)
        with self.watch("search", count) as progress:
            records = RecordFile(
                self.folder.path, lambda record: progress(record.done(self.prices))
            )
            for part in comparison.shards(world):
                shard = Shard(comparison, part, world, records, report, budgets)
                await shard.measure()
        for name, size in product(strategies, sizes):
            failures = records.failures(name, size)
            if failed := failures.lost + failures.unscored:
                self.failures[f"{name}@{size}"] = failed, failures.candidates + failures.steps

    async def grade(self, gradings: Sequence[Grading]) -> None:
        """Grade candidates by each grader; no pictures are needed. Raises as `GradingRun.run`."""
        candidates, _ = self.candidates()
        there = self._there(candidates)
        for grading in gradings:
            facts = grading.facts()
            self.folder.settle(f"{GRADER} {grading.name}", facts)
            file = GradeFile(self.folder.path, grading.name, facts)
            run = GradingRun(self.problems, candidates, grading, file)
            with self.watch(f"grade ({grading.name})", max(0, there - len(file.lines))) as bar:
                run.progress = bar
                await run.run(self.n)
            self._note(f"grade ({grading.name})", file.lines)

    def candidates(self) -> tuple[CandidateFile, Prompt]:
        """Return the candidates that are there, and the prompt they were made with.

        Raises `RecordError` if there are none.
        """
        facts: dict[str, Any] | None = self.folder.facts(FACTS)
        if facts is None:
            raise RecordError(f"{self.folder.path}: there are no candidates; run --stage generate")
        return CandidateFile(self.folder.path, facts), Prompt(**facts["prompt"])

    def _let_go(self, kind: str, facts: Facts, read: Callable[[Facts], KeyedLines]) -> None:
        """Let files of a kind be made with other facts where each of their calls has failed."""
        known = self.folder.facts(kind)
        if known is not None and key_of(known) != key_of(facts):
            lines = read(known)
            if lines.failures == len(lines):
                lines.path.unlink(missing_ok=True)
                self.folder.forget(kind, *([SET] if kind == FACTS else []))

    def _set(self) -> dict[str, Any]:
        """Return what the manifest says of the set; where its files are does not matter."""
        places = {"file": self.problems.path, "images": self.problems.image_root}
        called = {name: str(path.resolve()) for name, path in places.items()}
        return {CALLED: called, "name": self.problems.name}

    def largest(self) -> int:
        """Return the most candidates, without a gap, that a problem has."""
        candidates, _ = self.candidates()
        return candidates.largest(self.problems)

    def _there(self, candidates: CandidateFile) -> int:
        return sum(candidates.has(item, place) for item in self.problems for place in range(self.n))

    def _note(self, stage: str, lines: KeyedLines) -> None:
        if lost := lines.lost:
            self.failures[stage] = (lines.failures, len(lines))
            self.reasons[stage] = lost.get("error") or lost.get("reason") or "no verdict"
