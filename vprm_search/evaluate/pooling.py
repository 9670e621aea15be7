"""From the files of a run to pools of candidates: no model is asked, no picture is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vprm_search.aggregate import AGGREGATIONS, path_score
from vprm_search.answers import answer_classes
from vprm_search.budget import Prices
from vprm_search.compare.report import many
from vprm_search.datasets.graders import answer_said
from vprm_search.datasets.known import SetName
from vprm_search.datasets.problem_set import Item, ProblemSet, read_problem_set
from vprm_search.errors import RecordError
from vprm_search.evaluate import generation, scoring
from vprm_search.evaluate.candidates import FACTS, Candidate, CandidateFile
from vprm_search.evaluate.folder import CALLED, Facts, RunFolder
from vprm_search.evaluate.grading import GradeFile, check_graded
from vprm_search.evaluate.lines import Line
from vprm_search.evaluate.pool import NO_ANSWER, PooledCandidate, PooledProblem
from vprm_search.evaluate.scoring import ScoreFile
from vprm_search.evaluate.side_by_side import FREE

LIKELIHOOD = "likelihood"
SET = "set"
CRITIC, GRADER = "critic", "grader"
"""Families of facts in a manifest: "critic prm", "grader mathvista"."""


class RecordedRun:
    """The files of a run, for whoever reads them.

    Args:
        path: the folder.
        problems: the set that it is of; its pictures need not be there.
        grader: whose grades count. Default: the first that graded.
        prices: what tokens cost. Default: nothing.

    Raises:
        RecordError: there are no candidates, they were not graded, or a file is damaged.
        ConfigError: the manifest cannot be read.
    """

    def __init__(
        self,
        path: Path,
        problems: ProblemSet,
        *,
        grader: str | None = None,
        prices: Prices = FREE,
    ) -> None:
        self.folder = RunFolder(path)
        self.problems, self._prices = problems, prices
        facts = self.folder.facts(FACTS)
        if facts is None:
            raise RecordError(f"{path}: there are no candidates; run --stage generate")
        self.sampling = facts
        self.candidates = CandidateFile(path, facts)
        self.graders = self.folder.kinds(GRADER)
        self.grader = grader or next(iter(self.graders), "")
        graded = self.folder.facts(f"{GRADER} {self.grader}")
        if graded is None:
            raise RecordError(
                f"{path}: nothing was graded {f'by {grader}' if grader else 'yet'} (graders there: "
                f"{', '.join(self.graders) or 'none'}); run --stage grade"
            )
        self._grades = GradeFile(path, self.grader, graded)
        self.critics = {name: self.folder.facts(f"{CRITIC} {name}") or {}
                        for name in self.folder.kinds(CRITIC)}  # fmt: skip
        self._scores = {name: ScoreFile(path, name, told) for name, told in self.critics.items()}

    @property
    def graded(self) -> list[Item]:
        """The problems whose answer is published."""
        return [item for item in self.problems if item.answer_type != "none"]

    def complete(self, item: Item, n: int) -> bool:
        """Tell whether a problem has its first `n` candidates, failed ones counted."""
        return all(self.candidates.lines.there(item.row, index) for index in range(n))

    def largest(self) -> int:
        """Return the most candidates, without a gap, that a problem has."""
        return self.candidates.largest(self.problems)

    def told(self, n: int) -> dict[str, Any]:
        """Return what a report says of the run itself, as plain JSON."""
        return {
            "sampling": self.sampling,
            "critics": self.critics,
            "grader": self.grader,
            "currency": self._prices.currency,
            "without_answer": len(self.problems) - len(self.graded),
            "incomplete": sum(not self.complete(item, n) for item in self.graded),
            "failed_calls": self.candidates.lines.failures,
            "graders": self._by_grader(n) if len(self.graders) > 1 else {},
        }

    def _by_grader(self, n: int) -> dict[str, dict[str, int]]:
        """Return by grader how many candidates it called right, and how many it graded."""
        facts = {name: self.folder.facts(f"{GRADER} {name}") or {} for name in self.graders}
        files = {name: GradeFile(self.folder.path, name, told) for name, told in facts.items()}
        counts = {name: {"right": 0, "graded": 0, "agrees": 0} for name in files}
        for item in self.graded:
            candidates = [c for c in self.candidates.of(item) if c.index < n and not c.failed]
            ours = self._grades.of(item, candidates)
            for name, file in files.items():
                for index, line in file.of(item, candidates).items():
                    right = line["right"]
                    counts[name]["right"] += bool(right)
                    counts[name]["graded"] += right is not None
                    counts[name]["agrees"] += index in ours and right == ours[index]["right"]
        return counts

    def pools(self, n: int, *, unpublished: bool = False) -> Iterator[PooledProblem]:
        """Yield the first `n` candidates of every problem that has them.

        A call that failed is a candidate without an answer. Raises `RecordError` where scores or
        grades are of other texts, or are not there.

        Args:
            n: candidates of a problem.
            unpublished: with the problems whose answer is not published; their candidates count as
                wrong.
        """
        for item in self.problems if unpublished else self.graded:
            if self.complete(item, n):
                yield self._pool(item, [c for c in self.candidates.of(item) if c.index < n])

    def _pool(self, item: Item, candidates: list[Candidate]) -> PooledProblem:
        grades = self._grades.of(item, candidates)
        if item.answer_type == "none":
            said = [answer_said(candidate.text) for candidate in candidates]
        else:
            check_graded(item, candidates, grades)
            said = [grades[c.index]["said"] if c.index in grades else None for c in candidates]
        classes = answer_classes(said, choices=item.choices)
        scores = {name: file.of(item.row) for name, file in self._scores.items()}
        pooled = []
        for candidate, answer, vote in zip(candidates, said, classes, strict=True):
            own = {name: lines.get(candidate.index) for name, lines in scores.items()}
            for name, line in own.items():
                _check(name, self._scores[name], candidate, line)
            scored, seconds, cost = self._scoring(own)
            pooled.append(
                PooledCandidate(
                    index=candidate.index,
                    text=candidate.text,
                    answer=answer or "",
                    vote_class=NO_ANSWER if vote is None else vote,
                    right=candidate.index in grades and bool(grades[candidate.index]["right"]),
                    scores=self._by_critic(candidate, own),
                    generated_tokens=candidate.generated_tokens,
                    scored_tokens=scored,
                    seconds=candidate.seconds + seconds,
                    cost=generation.cost_of(candidate, self._prices) + cost,
                )
            )
        return PooledProblem(
            id=item.id,
            row=item.row - 1,
            group=item.group,
            variant=item.variant,
            category=item.category,
            candidates=tuple(pooled),
        )

    def _by_critic(
        self, candidate: Candidate, lines: dict[str, Line | None]
    ) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name, line in lines.items():
            scores = () if line is None else line["scores"]
            if self.critics[name].get("kind") == "whole":
                found[name] = scores[-1] if scores else None
            else:
                found |= {f"{name}:{rule}": path_score(rule, scores) for rule in AGGREGATIONS}
        if self.sampling.get(LIKELIHOOD):
            found[LIKELIHOOD] = candidate.likelihood
        return found

    def _scoring(self, lines: dict[str, Line | None]) -> tuple[int, float, float]:
        """Return tokens, seconds and cost of the first critic that scores steps."""
        of_steps = (name for name in lines if self.critics[name].get("kind") != "whole")
        line = lines.get(next(of_steps, ""))
        if line is None:
            return 0, 0.0, 0.0
        return line["scored_tokens"], line["seconds"], scoring.cost_of(line, self._prices)


def critic_names(critics: Mapping[str, Facts], *, likelihood: bool) -> list[str]:
    """Return what critics' scores are called in a pool.

    Args:
        critics: their facts (`Critic.facts`) by name.
        likelihood: whether the policy tells its own.
    """
    names = []
    for name, facts in critics.items():
        whole = facts.get("kind") == "whole"
        names += [name] if whole else [f"{name}:{rule}" for rule in AGGREGATIONS]
    return [*names, *([LIKELIHOOD] if likelihood else [])]


def set_of_run(path: Path, file: Path | None, images: Path | None) -> ProblemSet:
    """Return the problem set of a run, from a file or from where it was when the run was made.

    Raises `RecordError` if it is not there any more; its pictures may be missing.
    """
    facts = RunFolder(path).facts(SET) or {}
    told: Mapping[str, str] = facts.get(CALLED, {})
    place = file or Path(told.get("file", ""))
    if not place.exists() or not (file or told):
        raise RecordError(f"{path}: its problem set is not at {place}; give it (--problems FILE)")
    root = images or (Path(told["images"]) if file is None and told else None)
    if root is not None and not root.is_dir():
        root = None  # they are needed to be shown only
    name: SetName = facts.get("name", "")
    return read_problem_set(place, image_root=root, name=name or None, check_images=False)


def run_section(told: Mapping[str, Any]) -> str:
    """Return what `RecordedRun.told` says, as a section of Markdown."""
    sampling = told["sampling"]
    first = "the most likely solution" if sampling["greedy_first"] else "drawn as the others"
    lines = [
        f"Policy: {sampling['policy']}, temperature {sampling['temperature']:g}, top_p "
        f"{sampling['top_p']:g}, prompt {sampling['prompt']['name']}, candidate 0 {first}, seed "
        f"{sampling['seed']}.",
        *(f"{name}: {facts.get(CALLED, '')} ({facts['identity'][:16]})"
          for name, facts in told["critics"].items()),
        f"Graded by: {told['grader']}.",
    ]  # fmt: skip
    for name, counts in told["graders"].items():
        lines.append(
            f"{name} calls {counts['right']} of {counts['graded']} candidates right, and agrees "
            f"with {told['grader']} on {counts['agrees']}."
        )
    for field, one, more, said in (
        (
            "failed_calls",
            "candidate failed and counts",
            "candidates failed and count",
            "as without an answer",
        ),
        ("without_answer", "problem has", "problems have", "no published answer: left out"),
        ("incomplete", "problem has", "problems have", "not all candidates yet: left out"),
    ):
        if told[field]:
            lines.append(f"{many(told[field], one, more)} {said}.")
    body = "\n".join(f"- {line}" for line in lines)
    return f"## The run\n\n{body}\n"


def _check(name: str, file: ScoreFile, candidate: Candidate, line: Line | None) -> None:
    critic = {"prm": " --scorer MODEL", "orm": " --orm MODEL", "judge": " --judge MODEL"}
    again = f"run --stage score{critic.get(name, '')}"
    if line is None:
        if not candidate.failed:
            raise RecordError(
                f"{file.lines.path}: candidate {candidate.index} of row {candidate.row} has no "
                f"score; {again}"
            )
    elif line["of"] != candidate.content:
        raise RecordError(
            f"{file.lines.path}: the score of candidate {candidate.index} of row {candidate.row} "
            f"is of another text; {again}"
        )
