"""Scored and labelled paths: what a calibration is fitted on, one JSON line each.

A line is `{"problem": id, "policy": name, "scorer": identity, "steps": [{"step": text, "score":
P('+') or null, "label": true, false or null}, …], "correct": true, false or null}`. The labels may
come from anywhere; `score_records` makes lines from the label records of `monte_carlo`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vprm_search.aggregate import counted_scores, path_score
from vprm_search.errors import RecordError, ScorerError
from vprm_search.labelling.records import LabelledSolution, ProblemRecord
from vprm_search.types import ImageData, Problem, ScoreRequest, ScoreResult, StepScorer

_BATCH = 64


@dataclass(frozen=True, slots=True)
class ScoredStep:
    """One step: its text, its score, and whether it is right (None: unknown, for both)."""

    text: str
    score: float | None
    label: bool | None


@dataclass(frozen=True, slots=True)
class ScoredPath:
    """One solution of `policy` to `problem`, scored by `scorer`.

    `correct` says whether its final answer is right; None if it has none or nobody knows.
    """

    problem: str
    policy: str
    scorer: str
    steps: tuple[ScoredStep, ...]
    correct: bool | None = None

    def path_score(self, aggregate: str) -> float | None:
        """Return the path score, as a search would make it; None if a step has no score."""
        texts = [step.text for step in self.steps]
        return path_score(aggregate, counted_scores(texts, [step.score for step in self.steps]))

    def to_line(self) -> str:
        """Return the path as one line of JSON, newline included."""
        data = {
            "problem": self.problem,
            "policy": self.policy,
            "scorer": self.scorer,
            "steps": [{"step": s.text, "score": s.score, "label": s.label} for s in self.steps],
            "correct": self.correct,
        }
        return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> ScoredPath:
        """Read a line written by `to_line`. Raises `RecordError` on anything else."""
        try:
            data = json.loads(line)
            steps = tuple(
                ScoredStep(_text(s["step"]), _score(s["score"]), _label(s["label"]))
                for s in data["steps"]
            )
            problem, policy, scorer = (_text(data[n]) for n in ("problem", "policy", "scorer"))
            return cls(problem, policy, scorer, steps, _label(data.get("correct")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecordError(f"not a scored path: {error!r} in {line[:80]!r}") from error


def read_scored_paths(path: Path) -> Iterator[ScoredPath]:
    """Read all paths of a file. Raises `RecordError` naming the first damaged line."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield ScoredPath.from_line(line)
                except RecordError as error:
                    raise RecordError(f"{path} line {number}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error


def write_scored_paths(path: Path, paths: Iterable[ScoredPath]) -> int:
    """Write paths to a file, whole or not at all; return how many there are."""
    partial = path.with_name(path.name + ".part")
    count = 0
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for scored in paths:
            file.write(scored.to_line())
            count += 1
    partial.replace(path)
    return count


async def score_records(
    records: Iterable[ProblemRecord],
    scorer: StepScorer,
    images_of: Callable[[ProblemRecord], tuple[ImageData, ...]],
    *,
    policy: str,
    threshold: float = 0.0,
    system: str = "",
) -> AsyncIterator[ScoredPath]:
    """Score every labelled solution of the records; yield one path each, in order.

    A step is right if the share of its continuations that end right is above `threshold` (as in
    VisualPRM400K: 0). `images_of` finds the pictures of a record. Solutions that several samples
    share come once for each of them: they are draws of the policy. Raises what the scorer raises.
    """
    identity = str(getattr(scorer, "identity", ""))
    stream = ((record, solution) for record in records for solution in record.solutions)
    while batch := list(islice(stream, _BATCH)):
        requests = [_request(record, solution, images_of, system) for record, solution in batch]
        results = await scorer.score(requests)
        if len(results) != len(requests):
            raise ScorerError(f"the scorer got {len(requests)} requests, returned {len(results)}")
        for (record, solution), result in zip(batch, results, strict=True):
            path = ScoredPath(
                record.id, policy, identity, _steps(solution, result, threshold), _ended(solution)
            )
            for _ in range(solution.copies):
                yield path


def _request(
    record: ProblemRecord,
    solution: LabelledSolution,
    images_of: Callable[[ProblemRecord], tuple[ImageData, ...]],
    system: str,
) -> ScoreRequest:
    problem = Problem(record.question, record.images, system)
    return ScoreRequest(problem, tuple(s.step for s in solution.steps), images_of(record))


def _steps(
    solution: LabelledSolution, result: ScoreResult, threshold: float
) -> tuple[ScoredStep, ...]:
    return tuple(
        ScoredStep(label.step, score.value, label.positive(threshold))
        for label, score in zip(solution.steps, result.scores, strict=True)
    )


def _ended(solution: LabelledSolution) -> bool | None:
    return solution.correct if solution.finish == "stop" else None


def step_points(paths: Sequence[ScoredPath]) -> tuple[list[float], list[bool], list[str]]:
    """Return scores, labels and problems of all steps that have a score and a label, `[steps]`."""
    known = [
        (step.score, step.label, path.problem)
        for path in paths
        for step in path.steps
        if step.score is not None and step.label is not None
    ]
    return [k[0] for k in known], [k[1] for k in known], [k[2] for k in known]


def path_points(
    paths: Sequence[ScoredPath], aggregate: str
) -> tuple[list[float], list[bool], list[str]]:
    """Return path scores, correctness and problems of all paths that have both, `[paths]`."""
    known = [
        (score, path.correct, path.problem)
        for path in paths
        if path.correct is not None and (score := path.path_score(aggregate)) is not None
    ]
    return [k[0] for k in known], [k[1] for k in known], [k[2] for k in known]


def by_policy(paths: Iterable[ScoredPath]) -> Mapping[str, list[ScoredPath]]:
    """Return the paths of each policy, in the order in which the policies first appear.

    Raises `RecordError` if one policy's paths were scored by several scorers.
    """
    groups: dict[str, list[ScoredPath]] = {}
    for path in paths:
        group = groups.setdefault(path.policy, [])
        if group and group[0].scorer != path.scorer:
            raise RecordError(
                f"the paths of policy {path.policy!r} have two scorers, {group[0].scorer!r} and "
                f"{path.scorer!r}; a calibration belongs to one"
            )
        group.append(path)
    return groups


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _score(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"score {value!r} is not a probability")
    return float(value)


def _label(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"label {value!r} is neither true, false nor null")
    return value
