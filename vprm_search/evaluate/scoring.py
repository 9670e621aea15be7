"""The second stage: the critics' scores of candidates, a file for each critic.

All candidates of a problem go to the scorer in one call, so its picture is encoded once and what
they share is computed once. Kept are the scores of the steps: any aggregation comes from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from vprm_search.budget import Prices
from vprm_search.datasets.problem_set import Item, ProblemSet
from vprm_search.errors import ImageError, InputError
from vprm_search.evaluate.candidates import Candidate, CandidateFile
from vprm_search.evaluate.folder import CALLED, Facts, key_of
from vprm_search.evaluate.lines import Amount, Count, Keyed, KeyedLines, Line
from vprm_search.evaluate.prompts import Prompt
from vprm_search.evaluate.side_by_side import FREE, Done, Losses, Progress, SharedTime, side_by_side
from vprm_search.scoring.reasons import BAD_IMAGE, BAD_INPUT, TOO_LONG, code_of
from vprm_search.steps import REFERENCE_MAX_STEPS, split_solution
from vprm_search.types import COUNTED, Counts, ScoreRequest, ScoreResult, StepScorer, Usage

CriticKind = Literal["steps", "whole"]
_FINAL: Final = frozenset({TOO_LONG, BAD_INPUT, BAD_IMAGE})
"""Why there will never be a score."""


@dataclass(frozen=True, slots=True)
class Critic:
    """What scores candidates, under a name.

    Args:
        name: "prm", "orm", "judge", or your own.
        scorer: any step scorer.
        called: what the scorer is called.
        kind: "steps" scores the steps of a solution as VisualPRM cuts them, "whole" the solution
            as one step: outcome scores (VisualPRM's ORM mode).
        max_steps: of "steps": as many at most, consecutive ones merged (12); None merges none.
    """

    name: str
    scorer: StepScorer
    called: str
    kind: CriticKind = "steps"
    max_steps: int | None = REFERENCE_MAX_STEPS

    def facts(self) -> dict[str, Any]:
        """Return what its scores depend on, as plain JSON."""
        cut = {"max_steps": self.max_steps} if self.kind == "steps" else {}
        identity = str(getattr(self.scorer, "identity", "")) or self.called
        return {CALLED: self.called, "identity": identity, "kind": self.kind, **cut}

    def steps(self, text: str) -> tuple[str, ...]:
        """Return what is scored. Raises `InputError` if the text is too long."""
        if self.kind == "whole":
            return (text,)
        return tuple(split_solution(text, max_steps=self.max_steps))


class _Shape(Keyed):
    of: str
    scores: list[float | None]
    reason: str
    scored_tokens: Count
    counts: dict[Annotated[str, Field(pattern=f"^({'|'.join(COUNTED)})$")], Amount]
    seconds: Amount


class ScoreFile:
    """The scores that one critic gave.

    Args:
        folder: of the run.
        critic: its name.
        facts: what its scores depend on (`Critic.facts`).

    Raises:
        RecordError: a damaged line, or scores of another scorer.
    """

    def __init__(self, folder: Path, critic: str, facts: Facts) -> None:
        path = folder / f"scores-{critic}.jsonl"
        self.lines = KeyedLines(path, _Shape, key_of(facts), _to_be_scored_again)

    def of(self, row: int) -> dict[int, Line]:
        """Return the lines of a row by index."""
        return self.lines.of(row)

    def left(self, row: int, candidates: list[Candidate]) -> list[Candidate]:
        """Return the candidates of a row that have no score as they are now, and may get one."""
        lines = self.of(row)
        return [
            candidate
            for candidate in candidates
            if not self.lines.has(row, candidate.index)
            or lines[candidate.index]["of"] != candidate.content
        ]


def _to_be_scored_again(line: Line) -> bool:
    return bool(line["reason"]) and code_of(line["reason"]) not in _FINAL


@dataclass(frozen=True, slots=True)
class _Piece:
    item: Item
    candidates: tuple[Candidate, ...]


@dataclass(slots=True)
class Scoring:
    """Candidates being scored by one critic.

    Args:
        problems: the set.
        prompt: what a question was put into; the scorer sees it, too.
        candidates: what is scored, but for those whose call failed.
        critic: what scores.
        file: where scores are kept; what is there is not scored again.
        width: problems side by side; 1 for a scorer in this process.
        prices: what tokens cost. Default: nothing.
        progress: is told of all that comes.
    """

    problems: ProblemSet
    prompt: Prompt
    candidates: CandidateFile
    critic: Critic
    file: ScoreFile
    width: int = 1
    prices: Prices = FREE
    progress: Progress = lambda _: None

    async def run(self, n: int) -> None:
        """Score the first `n` candidates of every problem.

        Raises:
            RecordError: there are candidates for another problem or other pictures.
            SearchError: nothing came of many calls in a row.
        """
        clock, losses = SharedTime(), Losses(f"scoring ({self.critic.name})")

        async def work(piece: _Piece) -> None:
            begun = clock.begin_one()
            results = await self._scored(piece)
            seconds = clock.end_one(begun)[0] / len(piece.candidates)
            lines = [
                _line(candidate, result, seconds, first=not place)
                for place, (candidate, result) in enumerate(
                    zip(piece.candidates, results, strict=True)
                )
            ]
            self.file.lines.append(lines)
            failed = [line["reason"] for line in lines if line["reason"]]
            self.progress(
                Done(
                    len(lines),
                    len(failed),
                    scored_tokens=sum(line["scored_tokens"] for line in lines),
                    cost=sum(cost_of(line, self.prices) for line in lines),
                )
            )
            again = [line["reason"] for line in lines if _to_be_scored_again(line)]
            losses.note(again[0] if len(again) == len(lines) else "")

        await side_by_side(self._pieces(n), work, self.width)

    def _pieces(self, n: int) -> Iterator[_Piece]:
        for item, _ in self.candidates.checked(self.problems):
            there = [c for c in self.candidates.of(item) if c.index < n and not c.failed]
            if left := self.file.left(item.row, there):
                yield _Piece(item, tuple(left))

    async def _scored(self, piece: _Piece) -> list[ScoreResult]:
        try:
            loaded = self.problems.load(piece.item)
        except ImageError as error:
            return [ScoreResult.failed(1, f"{BAD_IMAGE}: {error}") for _ in piece.candidates]
        problem = self.prompt.put(loaded.problem)
        results: dict[int, ScoreResult] = {}
        requests: dict[int, ScoreRequest] = {}
        for candidate in piece.candidates:
            try:
                if not candidate.text.strip():
                    raise InputError("there is no text")
                steps = self.critic.steps(candidate.text)
                requests[candidate.index] = ScoreRequest(problem, steps, loaded.images)
            except InputError as error:
                results[candidate.index] = ScoreResult.failed(1, f"{BAD_INPUT}: {error}")
        if requests:
            scored = await self.critic.scorer.score(list(requests.values()))
            results |= dict(zip(requests, scored, strict=True))
        return [results[candidate.index] for candidate in piece.candidates]


def _line(candidate: Candidate, result: ScoreResult, seconds: float, *, first: bool) -> Line:
    """Return a line; the first candidate of a call has what all of them share."""
    shared = result.prefix_tokens if first else 0
    counts: dict[str, Any] = {k: v for k, v in result.cost.counts().items() if v}
    return {
        "row": candidate.row,
        "index": candidate.index,
        "of": candidate.content,
        "scores": [score.value for score in result.scores],
        "reason": next((s.reason or "no score" for s in result.scores if s.value is None), ""),
        "scored_tokens": shared + sum(result.step_tokens),
        "counts": counts,
        "seconds": seconds,
    }


def cost_of(line: Line, prices: Prices) -> float:
    """Return what scoring a candidate cost, in the currency of the prices."""
    counts = replace(Counts(**line["counts"]), scored_tokens=line["scored_tokens"])
    return prices.cost_of(Usage(**counts.counts()))
