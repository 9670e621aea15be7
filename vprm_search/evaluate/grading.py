"""The third stage: whether candidates are right, a file for each grader. It needs no model.

The rule is the set's published one. A chat model may judge the answers, too: its verdicts are a
file beside the rule's. Answers are read out of the texts here, by the rules of this version; what
another version graded, or what was graded by another published answer, is graded again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vprm_search import __version__
from vprm_search.datasets.answer_judge import PROMPT_VERSION, AnswerJudge
from vprm_search.datasets.graders import Grade, Grader
from vprm_search.datasets.problem_set import Item, ProblemSet
from vprm_search.errors import RecordError
from vprm_search.evaluate.candidates import Candidate, CandidateFile
from vprm_search.evaluate.folder import Facts, key_of
from vprm_search.evaluate.lines import Keyed, KeyedLines, Line
from vprm_search.evaluate.side_by_side import Done, Losses, Progress
from vprm_search.ids import digest

VERDICTS = "verdicts.jsonl"
_BATCH = 64  # problems whose grades are written together
Answers = list[tuple[Item, str]]


class Grading(Protocol):
    """Anything that tells whether solutions are right."""

    @property
    def name(self) -> str:
        """Its name, that of its file, too."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what its grades depend on, as plain JSON."""
        ...

    async def grade(self, answers: Answers) -> list[Grade]:
        """Grade solutions, in order; `right` is None where nobody knows."""
        ...


@dataclass(frozen=True, slots=True)
class ByRule:
    """Grades by a set's published rule, or by the sameness of answers."""

    rule: Grader

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.rule.name

    def facts(self) -> dict[str, Any]:
        """Return the rule's name."""
        return {"rule": self.rule.name}

    async def grade(self, answers: Answers) -> list[Grade]:
        """Grade solutions, in order."""
        return [self.rule.grade(item, text) for item, text in answers]


@dataclass(frozen=True, slots=True)
class ByJudge:
    """Grades by a chat model's word; what it was asked before it is not asked again.

    Args:
        judge: asks the chat model.
        called: what the chat model is called.
    """

    judge: AnswerJudge
    called: str

    @property
    def name(self) -> str:
        """Every judge's: a run has one."""
        return "judge"

    def facts(self) -> dict[str, Any]:
        """Return the model's name and the prompt's version."""
        return {"judge": self.called, "prompt": PROMPT_VERSION}

    async def grade(self, answers: Answers) -> list[Grade]:
        """Grade solutions, in order; those without a verdict are asked for by the next run."""
        return await self.judge.grade(answers)


class _Shape(Keyed):
    of: str
    said: str | None
    right: bool | None


class GradeFile:
    """The grades that one grader gave.

    Args:
        folder: of the run.
        name: of the grader.
        facts: what its grades depend on (`Grading.facts`).

    Raises:
        RecordError: a damaged line, or grades of another grader.
    """

    def __init__(self, folder: Path, name: str, facts: Facts) -> None:
        path = folder / f"grades-{name}.jsonl"
        self.lines = KeyedLines(path, _Shape, key_of(facts), lambda line: line["right"] is None)

    def of(self, item: Item, candidates: list[Candidate]) -> dict[int, Line]:
        """Return the lines of candidates by index, without those that are of other contents."""
        lines = self.lines.of(item.row)
        return {
            candidate.index: lines[candidate.index]
            for candidate in candidates
            if candidate.index in lines
            and lines[candidate.index]["of"] == graded_content(item, candidate)
        }


def graded_content(item: Item, candidate: Candidate) -> str:
    """Name what is graded: a candidate with its text, the published answer, and this version."""
    known = (item.answer, *item.also, item.letters, item.answer_type, *item.choices)
    return digest("grade", __version__, candidate.content, *known, str(item.precision)).hex()[:16]


@dataclass(slots=True)
class GradingRun:
    """Candidates being graded.

    Args:
        problems: the set.
        candidates: what is graded, but for those whose call failed.
        grading: what grades.
        file: where grades are kept.
        progress: is told of all that comes.
    """

    problems: ProblemSet
    candidates: CandidateFile
    grading: Grading
    file: GradeFile
    progress: Progress = lambda _: None

    async def run(self, n: int) -> None:
        """Grade the first `n` candidates of every problem with a published answer.

        Raises:
            RecordError: there are candidates for another problem.
            SearchError: nothing came of many batches in a row.
        """
        losses = Losses(f"grading ({self.grading.name})")
        for batch in self._batches(n):
            grades = await self.grading.grade([(item, c.text) for item, c in batch])
            lines = [
                {
                    "row": candidate.row,
                    "index": candidate.index,
                    "of": graded_content(item, candidate),
                    "said": grade.said,
                    "right": grade.right,
                }
                for (item, candidate), grade in zip(batch, grades, strict=True)
            ]
            self.file.lines.append(lines)
            failed = sum(line["right"] is None for line in lines)
            self.progress(Done(len(lines), failed))
            losses.note("no verdict" if failed == len(lines) else "")

    def _batches(self, n: int) -> Iterator[list[tuple[Item, Candidate]]]:
        batch: list[tuple[Item, Candidate]] = []
        problems = 0
        for item in self.problems:
            if item.answer_type == "none":
                continue
            candidates = [c for c in self.candidates.of(item) if c.index < n and not c.failed]
            known = self.file.of(item, candidates)
            left = [c for c in candidates if not self._graded(c, known)]
            batch += [(item, candidate) for candidate in left]
            problems += bool(left)
            if problems == _BATCH:
                yield batch
                batch, problems = [], 0
        if batch:
            yield batch

    def _graded(self, candidate: Candidate, known: dict[int, Line]) -> bool:
        return candidate.index in known and known[candidate.index]["right"] is not None


def check_graded(item: Item, candidates: list[Candidate], lines: dict[int, Line]) -> None:
    """Raise `RecordError` if a candidate has no grade."""
    for candidate in candidates:
        if not candidate.failed and candidate.index not in lines:
            raise RecordError(
                f"row {item.row}, candidate {candidate.index} was not graded yet, or by another "
                "version; run --stage grade"
            )
